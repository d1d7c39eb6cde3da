"""Which checkpoints need this plugin: those that plain vLLM would not compute as they were measured."""

import os
from collections.abc import Mapping
from typing import Any

REFERENCE = "QUANTRY_VLLM_REFERENCE"
"""Set to 1, this environment variable makes the plugin serve every checkpoint of Quantry, with plain matrix products
instead of kernels: to check accuracy on a device that has no kernel for a format."""


def reference_only() -> bool:
    """Whether every linear is computed by the reference path."""
    return os.environ.get(REFERENCE) == "1"


def claims(section: Any, quantization: Mapping[str, Any]) -> bool:
    """Whether the plugin serves the checkpoint.

    Args:
        section: ``quantry`` of config.json, or None.
        quantization: ``quantization_config``.
    """
    if not isinstance(section, Mapping) or quantization.get("quant_method") != "compressed-tensors":
        return False
    return reference_only() or bool(section.get("online")) or any(map(_has_integers_below_eight, _inputs(quantization)))


def _inputs(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = quantization.get("config_groups") or {}
    return [group["input_activations"] for group in groups.values() if group.get("input_activations")]


def _has_integers_below_eight(arguments: Mapping[str, Any]) -> bool:
    # vLLM's kernels leave these activations in 16 bits, or round them to eight.
    return arguments.get("type") == "int" and int(arguments.get("num_bits", 8)) < 8
