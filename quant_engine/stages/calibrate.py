"""Stage ``calibrate``: cut text into token windows, and measure one record per site in one pass over the blocks."""

from pathlib import Path
from typing import Any, Final

from quant_engine.atomic_write import atomic_write
from quant_engine.calibration import (
    RESERVOIR_TOKENS,
    Purpose,
    Recording,
    capture_records,
    split_samples,
)
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.statistics import norms_of, quantiles_of
from quant_engine.stages.context.text import dataset_inputs
from quant_engine.stages.context.windows import beginning_of, calibration_windows_of
from quant_engine.stages.stage import Stage, StageProgress
from quant_engine.windows import Windows, stored_windows, write_windows

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
        windows = kept_windows(run, directory / _WINDOWS)
        (directory / RECORDS).mkdir(exist_ok=True)
        capture_records(
            run.model,
            windows,
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
            # The model's fingerprint does not cover its tokenizer.
            "begun_with": beginning_of(run, calibration.special_tokens, calibration.dataset).ids,
            "quantiles": quantiles,
            "norms": norms,
            # Records drawn with another reservoir size hold other tokens, so they are not reused.
            "reservoir": RESERVOIR_TOKENS,
        },
        produce=produce,
        resumable=True,
    )


def read_windows(directory: Path) -> Windows:
    """The windows [S, T] that ``calibrate`` used."""
    return stored_windows(directory / _WINDOWS)


def kept_windows(run: Run, path: Path) -> Windows:
    """Return the run's windows, stored at ``path`` so that a resumed attempt reads the same windows."""
    # The file saves time too: with the data set ``self`` the model has to generate the text first.
    if not path.is_file():
        with atomic_write(path) as temporary:
            write_windows(temporary, calibration_windows_of(run))
    return stored_windows(path)


def calibrated_windows(run: Run, directory: Path) -> dict[str, Any]:
    """What the report says of the windows that ``calibrate`` used."""
    windows = read_windows(directory)
    return {
        "special_tokens": list(windows.special_tokens),
        "pack": run.spec.calibration.pack,
        "sequence_length": windows.length,
        "samples": len(windows),
        "tokens": windows.tokens,
    }


def training_windows(run: Run, windows: Windows) -> Windows:
    """The fit and the validation samples, without the test samples, which only reports use."""
    calibration = run.spec.calibration
    return windows[: split_samples(calibration.samples, calibration.holdout).training]
