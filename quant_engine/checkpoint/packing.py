"""A linear's quantized weight as compressed-tensors stores it in ``pack-quantized`` form.

Shapes: O output channels, I input channels.
"""

from dataclasses import dataclass

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy, QuantizationType
from torch import Tensor

from quant_engine.checkpoint.online import OnlineInput
from quant_engine.grids import Quantized
from quant_engine.policy import ActivationQuantization, WeightQuantization


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """How one linear of an exported model is quantized."""

    name: str
    weights: WeightQuantization
    activations: ActivationQuantization
    online: OnlineInput


def packed_tensors(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """``<name>.weight_packed`` (int32, dense bits), ``.weight_scale`` and ``.weight_shape``."""
    scale = quantized.scale.flatten() if quantized.scale.numel() == 1 else quantized.scale
    return {
        f"{name}.weight_packed": pack_to_int32(quantized.codes, quantized.bits).contiguous(),
        f"{name}.weight_scale": scale.contiguous(),
        f"{name}.weight_shape": torch.tensor(quantized.codes.shape),
    }


_STRATEGIES = {
    "channel": QuantizationStrategy.CHANNEL,
    "group": QuantizationStrategy.GROUP,
    "tensor": QuantizationStrategy.TENSOR,
}


def quantization_scheme(
    weights: WeightQuantization, activations: ActivationQuantization, targets: list[str]
) -> QuantizationScheme:
    """The compressed-tensors scheme of these settings, in ``pack-quantized`` format."""
    weight_args = QuantizationArgs(
        num_bits=weights.format.bits,
        type=QuantizationType.INT,
        strategy=_STRATEGIES[weights.granularity],
        group_size=weights.group_size,
        symmetric=True,
        dynamic=False,
    )
    input_args = None
    if activations.format.bits is not None:
        input_args = QuantizationArgs(
            num_bits=activations.format.bits,
            type=QuantizationType.INT,
            strategy=QuantizationStrategy.TOKEN,
            symmetric=True,
            dynamic=True,
        )
    return QuantizationScheme(
        targets=targets, weights=weight_args, input_activations=input_args, format="pack-quantized"
    )
