"""Compare the streamed model with the one that plain transformers makes of the same files.

A misread model can be quantized, verified and published without a sign, because every later check comes from the same
reading. So before anything is computed, transformers itself loads the original files, and both answer the same tokens.

Shapes: B samples, T tokens, V vocabulary.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant_engine.errors import ModelMisread, NumericalInstability
from quant_engine.model_files.description import weight_files
from quant_engine.model_files.headers import INDEX, SINGLE
from quant_engine.model_files.unread import is_harmless
from quant_engine.models.configuration import attention_implementation
from quant_engine.models.faults import fault_of_the_model
from quant_engine.models.source import CheckpointSource
from quant_engine.models.streaming import StreamedModel

_SAMPLES, _TOKENS = 1, 32
_BOUNDS: Final = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""The largest relative difference that rounding can cause; of the same operations there should be none."""
_MARGIN: Final = 1.25
"""Memory that loading takes for each byte of the loaded model."""

Compared = Literal["whole model", "first block and head", "none"]


@dataclass(frozen=True)
class Oracle:
    """What was compared with transformers.

    Attributes:
        relative_difference: ‖Δ logits‖ / ‖logits‖; None where nothing was compared.
        transformers: the version of transformers that answered.
    """

    compared: Compared
    relative_difference: float | None
    transformers: str = transformers.__version__


NOT_ASKED: Final = Oracle("none", None)
"""Of a quantized checkpoint: transformers does not load every kind of them on a CPU."""


@dataclass(frozen=True)
class _Plan:
    compared: Compared
    dtype: torch.dtype

    @property
    def whole(self) -> bool:
        return self.compared == "whole model"


@torch.no_grad()
def ask_transformers(source: CheckpointSource, *, available: int, scratch: Path) -> Oracle:
    """Compare the logits on fixed tokens, in fp32 where that fits into memory.

    Args:
        available: bytes of memory. A model that does not fit, neither in fp32 nor in its own type, is compared without
            its other blocks: transformers loads the first block and the head.
        scratch: a directory on the model's disk or another one, where links to the checked files are put for a while.

    Raises:
        ModelMisread: the logits differ by more than rounding, or transformers finds other tensors.
        NumericalInstability: the original's logits are not finite.
        InvalidModel: transformers can not load or run the model.
    """
    # In the type that the original has, whatever type the export will have.
    original = replace(source, export_dtype=None)
    plan = _plan(original, available)
    with fault_of_the_model("Running the original"):
        model = StreamedModel(original, dtype=plan.dtype)
        ids_BT = _fixed_ids(model)
        ours_BTV = streamed_logits(model, ids_BT, blocks=model.blocks if plan.whole else 1)
        theirs_BTV = _plain_logits(original, plan, ids_BT, scratch)
    if not bool(torch.isfinite(theirs_BTV).all()):
        raise unstable(plan.dtype)
    difference = relative_difference(theirs_BTV, ours_BTV)
    if not difference <= _BOUNDS[plan.dtype]:
        raise ModelMisread(
            detail=f"Quantry reads this model differently from transformers {transformers.__version__}: the relative "
            f"difference over logits ({plan.compared}) is {difference:.2e}, the bound {_BOUNDS[plan.dtype]:.0e}.",
            hint="Nothing was quantized. Report the model; meanwhile, load it with transformers and save it again.",
        )
    return Oracle(plan.compared, difference)


def streamed_logits(model: StreamedModel, ids_BT: Tensor, *, blocks: int) -> Tensor:
    """Return the logits [B, T, V] of the first ``blocks`` blocks and the head."""
    entered = model.enter(ids_BT)
    hidden_BTD = entered.hidden_BTD
    for index in range(blocks):
        with model.block(index) as block:
            hidden_BTD = block(hidden_BTD, **entered.layer_arguments[index])
    return model.leave(hidden_BTD)


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Return ‖expected − found‖ / ‖expected‖ in fp64; the difference itself where ``expected`` is zero."""
    norm = float(expected.double().norm())
    difference = float((expected.double() - found.double()).norm())
    return difference / norm if norm else difference


def unstable(dtype: torch.dtype) -> NumericalInstability:
    """Return the error for an original whose own logits are not finite in ``dtype``."""
    name = str(dtype).removeprefix("torch.")
    half = dtype is torch.float16
    return NumericalInstability(
        detail=f"The original itself, in {name}, gives NaN or infinity, before any quantization."
        + (" Its activations are larger than float16 can hold." if half else ""),
        hint="Save the model in bfloat16 (dtype=torch.bfloat16), and submit that."
        if half
        else "Check the weights against the model's original: they may hold NaN or infinity.",
    )


def _plan(source: CheckpointSource, available: int) -> _Plan:
    parameters = sum(_count(tensor.shape) for tensor in source.stored.values())
    for dtype in (torch.float32, source.dtype):
        if _MARGIN * parameters * dtype.itemsize < available:
            return _Plan("whole model", dtype)
    return _Plan("first block and head", torch.float32)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _fixed_ids(model: StreamedModel) -> Tensor:
    length = min(_TOKENS, int(model.config.max_position_embeddings))
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, int(model.config.vocab_size), (_SAMPLES, length), generator=generator)


def _plain_logits(source: CheckpointSource, plan: _Plan, ids_BT: Tensor, scratch: Path) -> Tensor:
    # fork_rng: transformers draws random numbers for what it does not find, and a run's bits may not depend on it.
    with tempfile.TemporaryDirectory(dir=scratch) as name, torch.random.fork_rng(devices=[]), _quiet():
        directory = Path(name)
        config = _write_model(source, directory, None if plan.whole else 1)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=plan.dtype,
            attn_implementation=attention_implementation(config),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # pickled weights can run code
        )
        model, report = loaded
        _check_report(source, report, plan)
        logits_BTV: Tensor = model.eval()(ids_BT, use_cache=False).logits
        return logits_BTV


def _write_model(source: CheckpointSource, directory: Path, layers: int | None) -> Any:
    """Put the model's checked weight files and its sanitized config alone into ``directory``. Return the config."""
    config = dict(source.description.config)
    if layers is not None:
        config["num_hidden_layers"] = layers
        if isinstance(config.get("layer_types"), list):
            config["layer_types"] = config["layer_types"][:layers]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # Also one that holds nothing: transformers opens every file that the index names.
    for file in weight_files(source.files):
        # Under the name that the index gives it: a link of the Hub's cache leads to a file of another name.
        (directory / file).symlink_to(source.files.path(file))
    if not source.files.has(SINGLE):
        (directory / INDEX).write_bytes(source.files.read_bytes(INDEX))
    return transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _check_report(source: CheckpointSource, report: dict[str, Any], plan: _Plan) -> None:
    """Refuse a model in which transformers misses a tensor, or finds one that it does not use."""
    stored = source.description.tensors
    strange = {str(name) for name in report["missing_keys"]} | {str(each) for each in report["mismatched_keys"]}
    if plan.whole:
        unused = report["unexpected_keys"]
        strange |= {name for name in unused if name not in stored or not is_harmless(name, stored[name])}
    if strange:
        raise ModelMisread(
            detail=f"transformers {transformers.__version__} misses or does not use tensors that Quantry reads: "
            f"{', '.join(sorted(strange)[:3])[:400]}.",
            hint="Nothing was quantized. Load the model with transformers, save it again, and submit that.",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing tables and progress bars into the log."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
