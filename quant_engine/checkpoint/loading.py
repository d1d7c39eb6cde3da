"""Load an exported checkpoint: ``from_pretrained``, and the online transforms that it does not know."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quant_engine.checkpoint.config import without_refusal_marker
from quant_engine.checkpoint.online import OnlineInput
from quant_engine.checkpoint.quantry_section import read_config, read_online, unusable
from quant_engine.checkpoint.runtime import attach_served
from quant_engine.models.configuration import attention_implementation
from quant_engine.models.served_inputs import ActivationGrid


def load(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    grid: ActivationGrid = ActivationGrid.ENGINES,
) -> PreTrainedModel:
    """Load a checkpoint that Quantry exported; its logits equal those of the quantized model, bit for bit.

    ``AutoModelForCausalLM.from_pretrained`` reads the weights. Then the transforms of the ``quantry`` section, and the
    rounding of integer inputs as engines compute it, are attached in front of their linears. No remote code is run, and
    no network is used.

    Args:
        path: the checkpoint's directory.
        device: where the model should be.
        dtype: the type to compute in; the checkpoint's own by default. Another one rounds the scales differently, so
            the logits are then close to the quantized model's, not equal.
        grid: "compressed-tensors" rounds integer inputs as plain ``from_pretrained`` does.

    Raises:
        ModelNotFound: there is no checkpoint.
        InvalidModel: the ``quantry`` section is missing, of another version, malformed, or does not fit the model;
            or a tensor of a transform is missing, of another shape, or not finite.
    """
    directory = Path(path)
    content = read_config(directory)
    # Before the weights, so that a malformed section fails at once.
    online = read_online(sorted(directory.glob("*.safetensors")), content["quantry"], device)
    config = _configuration(directory, content)
    with _quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # pickled weights can run code
            attn_implementation=attention_implementation(config),
        )
        model = model.to(device).eval()  # type: ignore[arg-type]  # transformers' stub leaves the device out
        # Decompressed now, because the next step converts the dense weights.
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
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme"):
            attach_served(module, online.get(name, OnlineInput()), grid)
    return model


def _in_one_type(model: PreTrainedModel) -> None:
    """Convert the weights of quantized linears to the type of the model."""
    # fp4 is always unpacked to bfloat16, and a linear accepts inputs of its weight's type only.
    for module in model.modules():
        if isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme"):
            module.weight.data = module.weight.data.to(model.dtype)


def _configuration(directory: Path, content: Mapping[str, Any]) -> Any:
    """Return the model's configuration without the marker that makes other readers refuse it."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config.quantization_config = without_refusal_marker(content.get("quantization_config"))
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warning of ``from_pretrained`` about the tensors of transforms, which it does not expect."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
