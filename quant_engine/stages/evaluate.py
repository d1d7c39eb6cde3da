"""Stage ``evaluate``: the perplexity of the original and the quantized model, on text that calibration does not use."""

from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from quant_engine.calibration import (
    Purpose,
    evaluation_windows,
    load_tokenizer,
    self_windows,
    token_ids,
)
from quant_engine.evaluation.perplexity import PerplexityResult, passes, perplexity
from quant_engine.models import StreamedModel
from quant_engine.policy import SELF, Perplexity
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.text import dataset_inputs, resolved_dataset, text_for
from quant_engine.stages.quantize.block_files import Plans, block_linears, quantized_reader
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json

PERPLEXITY_FILE = "perplexity.json"
STATE_SHARE: Final = 0.1
"""The largest share of a pass's time that may go into writing states. A pass is short compared with the stages before,
and on an accelerator a state takes as long as a block."""


def evaluate_stage(run: Run, settings: Perplexity, quantized: Path, plans: Plans, upstream: str) -> Stage:
    """The stage that writes ``perplexity.json``: one unit per block and pass, both models in the checkpoint's type."""
    total = 2 * run.model.blocks * passes(window_shapes(settings))

    def produce(directory: Path, progress: StageProgress) -> None:
        windows = windows_of(run, settings)
        # The checkpoint's own type, not fp32: the perplexity must be that of the exported model (docs/decisions/0005).
        model = StreamedModel(run.source, dtype=run.source.dtype, device=run.spec.device)
        read, prepare = quantized_reader(quantized, block_linears(run, plans), model)
        # One state file for each pass, because both are in this directory.
        first, second = (
            run.execution(StateFile(directory, name, share=STATE_SHARE)) for name in ("original", "quantized")
        )
        measure = partial(perplexity, model, windows, on_block=progress.advance)
        found = {
            "original": measure(execution=first),
            "quantized": measure(read=read, prepare=prepare, execution=second),
        }
        write_json(directory / PERPLEXITY_FILE, {name: perplexity_fields(result) for name, result in found.items()})

    return Stage(
        name="evaluate",
        unit="block",
        total=total,
        inputs=evaluation_inputs(run, settings, upstream),
        produce=produce,
        resumable=True,
    )


def evaluation_inputs(run: Run, settings: Perplexity, upstream: str) -> dict[str, Any]:
    """The inputs that a perplexity depends on."""
    return {
        "upstream": upstream,
        "perplexity": settings.model_dump(mode="json"),
        "text": dataset_inputs(run, settings.dataset, Purpose.EVALUATION, settings.tokens),
    }


def read_perplexity(directory: Path) -> dict[str, Any]:
    """``original`` and ``quantized``, each with perplexity, mean_nll and predicted."""
    found: dict[str, Any] = read_json(directory / PERPLEXITY_FILE)
    return found


def windows_of(run: Run, settings: Perplexity) -> list[Tensor]:
    """The evaluation text as windows of token ids [B, T]."""
    if resolved_dataset(run, settings.dataset) == SELF:
        # Another seed than calibration's, so that the model is not measured on what it was calibrated on.
        samples = -(-settings.tokens // settings.sequence_length)  # rounded up
        seed = run.spec.calibration.seed + 1
        ids = self_windows(run.source, samples=samples, sequence_length=settings.sequence_length, seed=seed).flatten()
    else:
        text = text_for(run, settings.dataset, Purpose.EVALUATION, settings.tokens)
        ids = token_ids(load_tokenizer(run.spec.model_dir, run.base.rules), text)
    return evaluation_windows(ids, tokens=settings.tokens, sequence_length=settings.sequence_length)


def window_shapes(settings: Perplexity) -> list[Tensor]:
    """Windows of the right shapes with undefined values, to count the passes before any text is read."""
    return evaluation_windows(Tensor(settings.tokens), tokens=settings.tokens, sequence_length=settings.sequence_length)


def perplexity_fields(result: PerplexityResult) -> dict[str, float | int]:
    """The result as JSON."""
    return {"perplexity": result.perplexity, "mean_nll": result.mean_nll, "predicted": result.predicted}
