"""The files of a model directory, without torch: opened safely, and described by config and headers alone."""

from quant_engine.model_files.adapters import ADAPTER_CONFIG, adapter_problem
from quant_engine.model_files.code_scales import Granularity, ScaledWeight
from quant_engine.model_files.companions import check_companions, companion_problem
from quant_engine.model_files.description import ModelDescription, describe_directory
from quant_engine.model_files.generation import generation_problem
from quant_engine.model_files.headers import MAX_HEADER_BYTES, MAX_TENSORS, StoredTensor
from quant_engine.model_files.opening import DEFAULT_RULES, FileRules, ModelFiles
from quant_engine.model_files.parsing import safe_config
from quant_engine.model_files.quantization_signs import (
    QuantizationKind,
    SourceQuantization,
    check_source,
    has_quantization_section,
    source_quantization,
    without_quantization,
)

__all__ = [
    "ADAPTER_CONFIG",
    "DEFAULT_RULES",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "FileRules",
    "Granularity",
    "ModelDescription",
    "ModelFiles",
    "QuantizationKind",
    "ScaledWeight",
    "SourceQuantization",
    "StoredTensor",
    "adapter_problem",
    "check_companions",
    "check_source",
    "companion_problem",
    "describe_directory",
    "generation_problem",
    "has_quantization_section",
    "safe_config",
    "source_quantization",
    "without_quantization",
]
