"""Stage ``calibrate``: text to windows, and one pass over the blocks to one record per site."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from quant_engine.calibration import (
    RESERVOIR_TOKENS,
    SELF,
    Purpose,
    calibration_windows,
    capture_records,
    load_tokenizer,
    self_windows,
    split_samples,
    token_ids,
)
from quant_engine.stages.context import Run, dataset_inputs, quantiles_of, resolved_dataset, text_for
from quant_engine.stages.files import Progress, Stage

RECORDS = "records"


def calibrate_stage(run: Run, upstream: str) -> Stage:
    """Writes ``windows.safetensors`` and ``records/``. One unit per block."""
    calibration = run.spec.calibration
    quantiles = quantiles_of(run.spec.policy)
    tokens = calibration.samples * calibration.sequence_length

    def produce(directory: Path, progress: Progress) -> None:
        windows_ST = _windows(run)
        save_file({"windows": windows_ST}, directory / "windows.safetensors")
        (directory / RECORDS).mkdir()
        capture_records(
            run.model,
            windows_ST,
            run.sites,
            directory / RECORDS,
            split=split_samples(calibration.samples, calibration.holdout),
            quantiles=quantiles,
            seed=calibration.seed,
            on_block=progress.reach,
        )

    return Stage(
        name="calibrate",
        unit="block",
        total=1 + max(site.block for site in run.sites),
        inputs={
            "upstream": upstream,
            "calibration": calibration.model_dump(mode="json"),
            "text": dataset_inputs(run, calibration.dataset, Purpose.CALIBRATION, tokens),
            "quantiles": quantiles,
            "reservoir": RESERVOIR_TOKENS,
        },
        produce=produce,
    )


def _windows(run: Run) -> Tensor:
    calibration = run.spec.calibration
    samples, length = calibration.samples, calibration.sequence_length
    if resolved_dataset(run, calibration.dataset) == SELF:
        run.observer.log(f"The model writes {samples} samples of {length} tokens as its own calibration text.")
        return self_windows(run.source, samples=samples, sequence_length=length, seed=calibration.seed)
    text = text_for(run, calibration.dataset, Purpose.CALIBRATION, samples * length)
    ids = token_ids(load_tokenizer(run.spec.model_dir), text)
    return calibration_windows(ids, samples=samples, sequence_length=length, seed=calibration.seed)
