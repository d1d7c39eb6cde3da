"""Checkpoints as other writers of compressed-tensors write them: by its own functions and ``save_pretrained``."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.transform import TransformConfig, apply_transform_config
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny_models import tiny_tokenizer

DYNAMIC = {"strategy": "token", "symmetric": True, "dynamic": True}


def scheme(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, **fields: Any) -> QuantizationScheme:
    """One scheme, by default of every linear."""
    return QuantizationScheme(
        weights=QuantizationArgs(**weights),
        input_activations=None if inputs is None else QuantizationArgs(**inputs),
        **({"targets": ["Linear"]} | fields),
    )


W4A16 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True,
         "scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn}  # fmt: skip
MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True,
         "scale_dtype": torch.uint8, "zp_dtype": torch.uint8}  # fmt: skip


def write_peer(
    dense: Path,
    directory: Path,
    schemes: list[QuantizationScheme],
    *,
    ignore: tuple[str, ...] = ("lm_head",),
    transforms: Mapping[str, Any] | None = None,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """Quantize ``dense`` to nearest and save it.

    Args:
        transforms: a ``transform_config``, applied before.
        change: does something to the model before it is compressed.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    if transforms is not None:
        apply_transform_config(model, TransformConfig.model_validate(transforms))
    groups: dict[str, Any] = {f"group_{index}": each for index, each in enumerate(schemes)}
    config = QuantizationConfig(config_groups=groups, ignore=list(ignore), quantization_status="initialized")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _fill(module)
    if change is not None:
        change(model)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(str(directory))
    tiny_tokenizer().save_pretrained(directory)
    return directory


def reference_logits(directory: Path, ids_BT: Tensor) -> Tensor:
    """What a plain ``from_pretrained`` gives."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    with torch.no_grad():
        logits: Tensor = model(ids_BT, use_cache=False).logits
    return logits


def edit_config(directory: Path, **fields: Any) -> None:
    """Change ``quantization_config``."""
    path = directory / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= fields
    path.write_text(json.dumps(content))


@torch.no_grad()
def _fill(linear: Any) -> None:
    """Scales of the weight's extrema, and fixed ones of inputs where the scheme has them."""
    arguments, w_OI = linear.quantization_scheme.weights, linear.weight
    size = arguments.group_size or w_OI.shape[1]
    grouped = w_OI.reshape(len(w_OI), -1, size) if arguments.strategy != "tensor" else w_OI.reshape(1, 1, -1)
    low, high = grouped.amin(-1), grouped.amax(-1)
    options: dict[str, Tensor] = {}
    if hasattr(linear, "weight_global_scale"):
        options["global_scale"] = generate_gparam(w_OI.min(), w_OI.max())
        linear.weight_global_scale.copy_(options["global_scale"])
    scale, zero = calculate_qparams(low, high, arguments, **options)
    linear.weight_scale.copy_(scale.reshape(linear.weight_scale.shape))
    if hasattr(linear, "weight_zero_point"):
        linear.weight_zero_point.copy_(zero.reshape(linear.weight_zero_point.shape))
    if hasattr(linear, "input_scale"):
        linear.input_scale.fill_(0.03)
        linear.input_zero_point.fill_(0)
    if hasattr(linear, "input_global_scale"):
        linear.input_global_scale.fill_(200.0)
    linear.quantization_status = QuantizationStatus.FROZEN
