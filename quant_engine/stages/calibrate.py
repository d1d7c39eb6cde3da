"""Stage ``calibrate``: cut text into token windows, and measure one record per site in one pass over the blocks."""

from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.calibration import (
    RESERVOIR_TOKENS,
    Purpose,
    Recording,
    calibration_windows,
    capture_records,
    load_tokenizer,
    self_windows,
    split_samples,
    token_ids,
)
from quant_engine.policy import SELF
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.statistics import norms_of, quantiles_of
from quant_engine.stages.context.text import dataset_inputs, resolved_dataset, text_for
from quant_engine.stages.stage import Stage, StageProgress

RECORDS = "records"
_WINDOWS: Final = "windows.safetensors"


def calibrate_stage(run: Run, upstream: str) -> Stage:
    """The stage that writes ``windows.safetensors`` and ``records/``.

    One unit per block. A killed attempt loses the work on one block at most.
    """
    calibration = run.spec.calibration
    quantiles, norms = quantiles_of(run.spec.policy), norms_of(run.spec.policy)
    split = split_samples(calibration.samples, calibration.holdout)
    recording = Recording(split=split, quantiles=quantiles, norms=norms, seed=calibration.seed)
    tokens = calibration.samples * calibration.sequence_length

    def produce(directory: Path, progress: StageProgress) -> None:
        windows_ST = kept_windows(run, directory / _WINDOWS)
        (directory / RECORDS).mkdir(exist_ok=True)
        capture_records(
            run.model,
            windows_ST,
            run.sites,
            directory / RECORDS,
            recording,
            on_block=progress.reach,
            execution=run.execution(StateFile(directory)),
        )

    return Stage(
        name="calibrate",
        unit="block",
        # Blocks after the last site are not computed: no record needs them.
        total=1 + max(site.block for site in run.sites),
        inputs={
            "upstream": upstream,
            "calibration": calibration.model_dump(mode="json"),
            "text": dataset_inputs(run, calibration.dataset, Purpose.CALIBRATION, tokens),
            "quantiles": quantiles,
            "norms": norms,
            # Records drawn with another reservoir size hold other tokens, so they are not reused.
            "reservoir": RESERVOIR_TOKENS,
        },
        produce=produce,
        resumable=True,
    )


def read_windows(directory: Path) -> Tensor:
    """The token windows [S, T] that ``calibrate`` used."""
    return load_file(directory / _WINDOWS)["windows"]


def kept_windows(run: Run, path: Path) -> Tensor:
    """Return :func:`run_windows`, stored at ``path`` so that a resumed attempt reads the same windows."""
    # The file saves time too: with the data set ``self`` the model has to generate the text first.
    if not path.is_file():
        with atomic_write(path) as temporary:
            save_file({"windows": run_windows(run)}, temporary)
    return load_file(path)["windows"]


def training_windows(run: Run, windows_ST: Tensor) -> Tensor:
    """The fit and the validation samples, without the test samples, which only reports use."""
    calibration = run.spec.calibration
    return windows_ST[: split_samples(calibration.samples, calibration.holdout).training]


def run_windows(run: Run) -> Tensor:
    """The run's calibration windows [S, T]: fit, validation and test samples, in this order."""
    calibration = run.spec.calibration
    samples, length = calibration.samples, calibration.sequence_length
    if resolved_dataset(run, calibration.dataset) == SELF:
        run.observer.log(f"The model writes {samples} samples of {length} tokens as its own calibration text.")
        return self_windows(run.source, samples=samples, sequence_length=length, seed=calibration.seed)
    text = text_for(run, calibration.dataset, Purpose.CALIBRATION, samples * length)
    ids = token_ids(load_tokenizer(run.spec.model_dir, run.base.rules), text)
    return calibration_windows(ids, samples=samples, sequence_length=length, seed=calibration.seed)
