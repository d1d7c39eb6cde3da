"""Load a rotated checkpoint: ``from_pretrained`` and the online half that it does not know about."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from quant_engine.checkpoint.config import FORMAT_VERSION
from quant_engine.checkpoint.online import OnlineInput, attach_online
from quant_engine.errors import ModelNotFound, UnsafeCheckpoint
from quant_engine.models.source import MAX_CONFIG_BYTES
from quant_engine.transforms.primitives import Hadamard


def load(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A checkpoint that Quantry exported, ready to run: its logits are the quantized model's, bit for bit.

    ``AutoModelForCausalLM.from_pretrained`` reads the weights; the Hadamard rotations of the ``quantry`` section are
    then put in front of the linears they belong to. Runs no remote code and reaches no network.

    Args:
        path: the checkpoint's directory.
        device: where the model should be.
        dtype: the type to compute in; the checkpoint's own by default. Another one rounds the scales differently, so
            the logits are then close to the quantized model's, not equal.

    Raises:
        ModelNotFound: there is no checkpoint.
        UnsafeCheckpoint: the ``quantry`` section is missing, of another version, or does not fit the model.
    """
    directory = Path(path)
    online = _online_inputs(directory)
    with _quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
        model = model.to(device).eval()  # type: ignore[arg-type]  # transformers' stub leaves the device out
        compressor: Any = model.hf_quantizer
        compressor.compressor.decompress_model(model)
    for name, settings in online.items():
        try:
            linear = model.get_submodule(name)
        except AttributeError as error:
            raise _unusable(f"it names {name!r}, which the model does not have") from error
        width = getattr(linear, "in_features", 0)
        if settings.order is not None and (settings.order < 1 or width % settings.order):
            raise _unusable(f"a Hadamard of order {settings.order} does not fit the {width} inputs of {name}")
        attach_online(linear, settings)
    return model


def _online_inputs(directory: Path) -> dict[str, OnlineInput]:
    path = directory / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            detail=f"There is no config.json in {directory.name!r}.", hint="Give the directory of a checkpoint."
        )
    if path.stat().st_size > MAX_CONFIG_BYTES * 16:
        raise _unusable("config.json is too large")
    try:
        section = json.loads(path.read_bytes()).get("quantry")
        if section is None or section["format_version"] != FORMAT_VERSION:
            raise _unusable(f"config.json has no quantry section of format version {FORMAT_VERSION}")
        return {
            name: OnlineInput(
                primitives=() if entry["hadamard_order"] is None else (Hadamard(order=entry["hadamard_order"]),),
                clip_ratio=float(entry["clip_ratio"]),
            )
            for name, entry in section["online"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable("the quantry section of config.json is malformed") from error


def _unusable(reason: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        detail=f"The checkpoint can not be loaded: {reason}.",
        hint="Load a checkpoint that Quantry exported, unchanged; for others use from_pretrained.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning about stored Hadamard matrices: they are for other runtimes, and unexpected here."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
