"""Load an exported checkpoint: ``from_pretrained`` and the online half that it does not know about."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quant_engine.checkpoint.config import unbarred
from quant_engine.checkpoint.online import attach_online
from quant_engine.checkpoint.section import read_config, read_online, unusable
from quant_engine.models.configuration import attention_implementation


def load(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A checkpoint that Quantry exported, ready to run: its logits are the quantized model's, bit for bit.

    ``AutoModelForCausalLM.from_pretrained`` reads the weights; the transforms of the ``quantry`` section are then
    put in front of the linears they belong to. Runs no remote code and reaches no network.

    Args:
        path: the checkpoint's directory.
        device: where the model should be.
        dtype: the type to compute in; the checkpoint's own by default. Another one rounds the scales differently, so
            the logits are then close to the quantized model's, not equal.

    Raises:
        ModelNotFound: there is no checkpoint.
        UnsafeCheckpoint: the ``quantry`` section is missing, of another version, malformed, or does not fit the model;
            or a tensor of a transform is missing, of another shape, or not finite.
    """
    directory = Path(path)
    content = read_config(directory)
    online = read_online(directory, content["quantry"], device)
    config = _configuration(directory, content)
    with _quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention_implementation(config),
        )
        model = model.to(device).eval()  # type: ignore[arg-type]  # transformers' stub leaves the device out
        compressor: Any = model.hf_quantizer
        compressor.compressor.decompress_model(model)
    _in_one_type(model)
    for name, settings in online.items():
        try:
            linear = model.get_submodule(name)
        except AttributeError as error:
            raise unusable(f"it names {name!r}, which the model does not have") from error
        if not isinstance(linear, nn.Linear):
            raise unusable(f"{name} is no linear")
        misfit = settings.misfit(linear.in_features)
        if misfit is not None:
            raise unusable(f"{misfit} of {name}")
        attach_online(linear, settings)
    return model


def _in_one_type(model: PreTrainedModel) -> None:
    """fp4 is unpacked to bfloat16 whatever the model computes in, and a linear takes its weight's type alone."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme"):
            module.weight.data = module.weight.data.to(model.dtype)


def _configuration(directory: Path, content: Mapping[str, Any]) -> Any:
    """The model's configuration, with what bars other readers taken out."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config.quantization_config = unbarred(content.get("quantization_config"))
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning about stored transforms: to ``from_pretrained`` they are unexpected."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
