"""Check the original before anything is computed: transformers reads the same model, and its numbers are finite."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import Tensor

from quant_engine.calibration import Purpose
from quant_engine.models import (
    NOT_ASKED,
    StreamedModel,
    ask_transformers,
    fault_of_the_model,
    streamed_logits,
    unstable,
)
from quant_engine.policy import BUILT_IN, SELF
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.text import documents_for, resolved_dataset

_TOKENS: Final = 64
_CHARACTERS: Final = 2000


def check_original(run: Run, scratch: Path) -> dict[str, Any]:
    """Compare the model with transformers, and return what was compared, for the report.

    Args:
        scratch: a directory for links to the model's files, which are removed again.

    Raises:
        ModelMisread: it is read differently here.
        NumericalInstability: the original gives NaN or infinity.
        InvalidModel: it can not be run.
    """
    if run.base.is_quantized:
        return asdict(NOT_ASKED)
    oracle = ask_transformers(run.base, available=psutil.virtual_memory().available, scratch=scratch)
    # fp16 ends at 65504. Calibration is in fp32, so without this the overflow would be met after hours, in 'evaluate'.
    if run.source.dtype is torch.float16:
        _check_float16(run)
    return asdict(oracle)


def _check_float16(run: Run) -> None:
    with fault_of_the_model("Running the original on text"):
        model = StreamedModel(run.base, dtype=torch.float16, device=run.spec.device)
        logits_BTV = streamed_logits(model, _text_ids(run), blocks=model.blocks)
    if not bool(torch.isfinite(logits_BTV).all()):
        raise unstable(torch.float16)


def _text_ids(run: Run) -> Tensor:
    """The first tokens [1, T] of the calibration text as deployment has them; of the built-in text for ``self``."""
    dataset = run.spec.calibration.dataset
    if resolved_dataset(run, dataset) == SELF:
        dataset = BUILT_IN
    text = documents_for(run, dataset, Purpose.CALIBRATION, _TOKENS)[0].text[:_CHARACTERS]
    ids = run.tokenizer(text)["input_ids"]
    return torch.tensor(ids[: min(_TOKENS, int(run.model.config.max_position_embeddings))])[None]
