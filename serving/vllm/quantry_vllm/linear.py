"""The method of a quantized linear: transform, clip, round where no kernel does, then vLLM's own kernel."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.linear import LinearMethodBase

from quantry_vllm.inputs import OnlineTransform
from quantry_vllm.online.grid import ServedIntegers
from quantry_vllm.online.section import StoredInput


@dataclass(frozen=True)
class InputRounding:
    """What is left to do with a transformed input before the kernel has it.

    Attributes:
        integers: to which the input is rounded here, because no kernel rounds to them; None where the kernel rounds.
        clip_ratio: ρ; larger values get the last code.
    """

    integers: ServedIntegers | None
    clip_ratio: float

    def __call__(self, x_TI: Tensor) -> Tensor:
        if self.integers is not None:
            return self.integers.rounded(x_TI, self.clip_ratio)
        if self.clip_ratio == 1.0:
            return x_TI
        # The kernel takes the scale from the largest value that it sees.
        limit_T1 = x_TI.abs().amax(dim=-1, keepdim=True) * self.clip_ratio
        return torch.clamp(x_TI, min=-limit_T1, max=limit_T1)


class QuantryLinearMethod(LinearMethodBase):
    """Wraps the method that computes with the quantized weight.

    Args:
        inner: that method.
        name: of the linear, for errors.
        stored: the transform; None for none.
        rounding: what is done after it.
    """

    def __init__(self, inner: LinearMethodBase, name: str, stored: StoredInput | None, rounding: InputRounding):
        self.inner = inner
        self.name = name
        self.stored = stored
        self.rounding = rounding

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Create the parameters of the weight and of the transform."""
        self.inner.create_weights(
            layer,
            input_size_per_partition=input_size_per_partition,
            output_partition_sizes=output_partition_sizes,
            input_size=input_size,
            output_size=output_size,
            params_dtype=params_dtype,
            **extra_weight_attrs,
        )
        if self.stored is not None and self.stored.primitives:
            rank = get_tensor_model_parallel_rank() if input_size != input_size_per_partition else 0
            layer.online = OnlineTransform(
                self.name, self.stored, width=input_size, local=input_size_per_partition, rank=rank
            )

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Check that the transform was loaded, and let the kernel arrange its weight."""
        if hasattr(layer, "online"):
            layer.online.check()
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the output of the linear [..., O]."""
        if hasattr(layer, "online"):
            x = layer.online(x)
        return self.inner.apply(layer, self.rounding(x), bias)
