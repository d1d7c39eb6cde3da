"""The quantization method ``quantry``: compressed-tensors, and what a checkpoint says in its ``quantry`` section."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from torch import nn
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.transform.linear import get_layer_partition_names
from vllm.platforms import current_platform

from quantry_vllm.claims import reference_only
from quantry_vllm.inputs import Refused
from quantry_vllm.linear import InputRounding, QuantryLinearMethod
from quantry_vllm.online.grid import ServedIntegers
from quantry_vllm.online.section import StoredInput, stored_inputs
from quantry_vllm.reference import ReferenceLinearMethod

_MARKER = " behind online transforms that only quant_engine.checkpoint.load applies"
"""What a checkpoint's number types end with, so that other readers refuse it."""
_STORED_HADAMARD = r"\.hadamard\d+_input\.weight$"
"""Matrices for other readers: the plugin builds them from their orders."""
_KERNEL_BITS = 8
_PACKED_BITS = 4


class QuantryConfig(CompressedTensorsConfig):
    """Reads like compressed-tensors, and lets every linear transform and round its input as it was measured."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.inputs: dict[str, StoredInput] = {}

    def get_name(self) -> str:
        """Return the method's name."""
        return "quantry"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantryConfig":
        """Read ``quantization_config``, without what stops other readers and without what they transform."""
        plain = copy.deepcopy(config) | {"transform_config": None}
        for group in plain["config_groups"].values():
            group["weights"]["type"] = group["weights"]["type"].removesuffix(_MARKER)
        return super().from_config(plain)  # type: ignore[return-value]  # it builds ``cls``

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Read the ``quantry`` section, which vLLM passes with the model's configuration.

        Raises:
            Refused: it is missing or malformed.
        """
        del revision
        section = getattr(hf_config, "quantry", None)
        try:
            self.inputs = stored_inputs(section or {})
        except ValueError as error:
            raise Refused(
                f"The quantry section of {model_name} can not be read: {error}. Use a checkpoint that Quantry "
                "exported, unchanged, and a quantry-vllm that is as new."
            ) from error

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename the linears as the model's class does."""
        super().apply_vllm_mapper(hf_to_vllm_mapper)
        renamed = {hf_to_vllm_mapper._map_name(name): each for name, each in self.inputs.items()}  # noqa: SLF001
        self.inputs = {name: each for name, each in renamed.items() if name is not None}

    @staticmethod
    def get_checkpoint_weight_mapper() -> Any:
        """Leave out the matrices that other readers need."""
        import regex  # noqa: PLC0415 -- vLLM's own

        mapper = CompressedTensorsConfig.get_checkpoint_weight_mapper()
        mapper.orig_to_new_regex = {**mapper.orig_to_new_regex, regex.compile(_STORED_HADAMARD): None}
        return mapper

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Return the method of a layer.

        Raises:
            Refused: a linear can not be computed as it was measured.
        """
        if not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix)
        parts = get_layer_partition_names(prefix, self.packed_modules_mapping)
        stored = self._input_of(parts)
        found = self.get_scheme_dict(layer, layer_name=prefix)
        if not found:
            if stored is not None:
                raise Refused(f"{prefix} has a transform, but is not quantized. The config.json was changed.")
            return UnquantizedLinearMethod()
        return self._method(layer, prefix, found, stored)

    def _input_of(self, parts: list[str]) -> StoredInput | None:
        """Return what is done to the input of the linears that vLLM computes as one."""
        found = [self.inputs.get(part) for part in parts]
        if any(each != found[0] for each in found):
            raise Refused(
                f"vLLM computes {', '.join(parts)} as one linear, but they do not all have the same transform and "
                "clip. Quantize all of them with one policy."
            )
        return found[0]

    def _method(
        self, layer: nn.Module, prefix: str, found: Mapping[str, Any], stored: StoredInput | None
    ) -> LinearMethodBase:
        weights, inputs, layout = found["weights"], found["input_activations"], found["format"]
        integers = None
        if inputs is not None and inputs.type == "int" and _rounds_here(inputs, layout):
            integers, inputs = _integers(inputs), None
        ratio = 1.0 if stored is None else stored.clip_ratio
        inner: LinearMethodBase
        if reference_only() or not _has_kernel(weights, inputs, layout):
            # Integers are rounded on the grid of engines, which compressed-tensors' own forward does not have.
            if inputs is not None and inputs.type == "int":
                integers, inputs = _integers(inputs), None
            inner = ReferenceLinearMethod(weights, inputs, layout)
        else:
            layer.scheme = self._get_scheme_from_parts(weights, inputs, None, layout, prefix)
            inner = CompressedTensorsLinearMethod(self)
        return QuantryLinearMethod(inner, prefix, stored, InputRounding(integers, ratio))


def _integers(inputs: QuantizationArgs) -> ServedIntegers:
    group = inputs.group_size if inputs.strategy == QuantizationStrategy.GROUP else None
    return ServedIntegers(int(inputs.num_bits), group, bool(inputs.symmetric))


def _rounds_here(inputs: QuantizationArgs, layout: str) -> bool:
    """Whether no kernel rounds to these integers: any but those of an int8 product, unless Humming was asked for."""
    if layout == CompressionFormat.int_quantized.value and inputs.num_bits == _KERNEL_BITS:
        return False
    config = get_current_vllm_config_or_none()
    humming = config is not None and config.kernel_config.linear_backend == "humming"
    return not (humming and current_platform.is_cuda())


def _has_kernel(weights: QuantizationArgs, inputs: QuantizationArgs | None, layout: str) -> bool:
    """Whether vLLM has a kernel for this linear on this device. On a CPU these were run; a GPU has one for each."""
    if not current_platform.is_cpu():
        return True
    config = get_current_vllm_config_or_none()
    half = config is not None and config.model_config.dtype in (torch.float16, torch.bfloat16)
    if layout == CompressionFormat.pack_quantized.value:
        return weights.num_bits == _PACKED_BITS and half and inputs is None
    if inputs is None or weights.strategy != QuantizationStrategy.CHANNEL:
        return False
    # With AMX its int8 kernel stops at inputs in fp32.
    amx = torch.cpu._is_amx_tile_supported()  # noqa: SLF001 -- what vLLM itself asks
    return layout == CompressionFormat.float_quantized.value or half or not amx
