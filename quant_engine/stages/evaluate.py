"""Stage ``evaluate``: the perplexity of the original and the quantized model, on text that calibration does not use."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from quant_engine.calibration import Purpose
from quant_engine.checkpoint import ActivationGrid
from quant_engine.checkpoint.quantry_section import has_second_grid
from quant_engine.evaluation.perplexity import PerplexityResult, passes, perplexity
from quant_engine.execution import Execution
from quant_engine.models import StreamedModel
from quant_engine.policy import Perplexity
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.text import dataset_inputs
from quant_engine.stages.context.windows import beginning_of, evaluation_windows_of, window_shapes
from quant_engine.stages.quantize.block_files import Plans, block_linears, quantized_reader
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json
from quant_engine.windows import Windows

PERPLEXITY_FILE = "perplexity.json"
SECOND: Final = "compressed_tensors"
"""The name of the perplexity that compressed-tensors' own forward has, where it rounds on another grid."""
_WINDOWS: Final = "windows.json"
STATE_SHARE: Final = 0.1
"""The largest share of a pass's time that may go into writing states. A pass is short compared with the stages before,
and on an accelerator a state takes as long as a block."""


def evaluate_stage(run: Run, settings: Perplexity, quantized: Path, plans: Plans, upstream: str) -> Stage:
    """The stage that writes ``perplexity.json``: one unit per block and pass, all models in the checkpoint's type.

    A checkpoint that compressed-tensors' own forward rounds on another grid than engines is measured on both.
    """
    linears = block_linears(run, plans)
    second_grid = has_second_grid([each for block in linears.values() for each in block.values()])
    total = (3 if second_grid else 2) * run.model.blocks * passes(window_shapes(run, settings))

    def produce(directory: Path, progress: StageProgress) -> None:
        windows = kept_evaluation_windows(run, settings, directory)
        # The checkpoint's own type, not fp32: the perplexity must be that of the exported model (docs/decisions/0005).
        model = StreamedModel(run.source, dtype=run.source.dtype, device=run.spec.device)
        measure = partial(perplexity, windows=windows, on_block=progress.advance)

        def execution(name: str) -> Execution:
            # One state file for each model, because all are in this directory.
            return run.execution(StateFile(directory, name, share=STATE_SHARE))

        def exported(name: str, grid: ActivationGrid) -> dict[str, float | int | str]:
            read, prepare = quantized_reader(quantized, linears, model, grid)
            return perplexity_fields(measure(model, read=read, prepare=prepare, execution=execution(name)), model)

        found: dict[str, Any] = {"original": _of_the_original(run, partial(measure, execution=execution("original")))}
        found["quantized"] = exported("quantized", ActivationGrid.ENGINES)
        found[SECOND] = exported(SECOND, ActivationGrid.COMPRESSED_TENSORS) if second_grid else None
        write_json(directory / PERPLEXITY_FILE, found)

    return Stage(
        name="evaluate",
        unit="block",
        total=total,
        inputs=evaluation_inputs(run, settings, upstream),
        produce=produce,
        resumable=True,
    )


def _of_the_original(run: Run, measure: Callable[[StreamedModel], PerplexityResult]) -> dict[str, float | int | str]:
    """Measure the original as its users run it: unrotated, and in its own type."""
    original = StreamedModel(run.dense, dtype=run.dense.computed_dtype, device=run.spec.device)
    return perplexity_fields(measure(original), original)


def evaluation_inputs(run: Run, settings: Perplexity, upstream: str) -> dict[str, Any]:
    """The inputs that a perplexity depends on."""
    return {
        "upstream": upstream,
        "perplexity": settings.model_dump(mode="json"),
        "text": dataset_inputs(run, settings.dataset, Purpose.EVALUATION, settings.tokens),
        "begun_with": beginning_of(run, settings.special_tokens, settings.dataset).ids,
    }


def read_perplexity(directory: Path) -> dict[str, Any]:
    """``original``, ``quantized`` and :data:`SECOND`, each with perplexity, mean_nll, predicted and dtype, or None."""
    found: dict[str, Any] = read_json(directory / PERPLEXITY_FILE)
    return found


def kept_evaluation_windows(run: Run, settings: Perplexity, directory: Path) -> list[Windows]:
    """Return the evaluation windows, and store in ``directory`` what the report says of them."""
    windows = evaluation_windows_of(run, settings)
    facts = {
        "special_tokens": list(windows[0].special_tokens),
        "pack": True,
        "sequence_length": settings.sequence_length,
        "tokens": sum(each.tokens for each in windows),
        "predicted": sum(each.predicted for each in windows),
    }
    # A resumed attempt has the same windows, and leaves the file as it is.
    if not (directory / _WINDOWS).is_file():
        write_json(directory / _WINDOWS, facts)
    return windows


def evaluated_windows(directory: Path) -> dict[str, Any]:
    """What the report says of the windows that a perplexity was measured on."""
    found: dict[str, Any] = read_json(directory / _WINDOWS)
    return found


def perplexity_fields(result: PerplexityResult, model: StreamedModel) -> dict[str, float | int | str]:
    """The result as JSON, with the type in which ``model`` computed."""
    return {
        "perplexity": result.perplexity,
        "mean_nll": result.mean_nll,
        "predicted": result.predicted,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
