"""The files of a model directory, without torch: opened safely, and described by config and headers alone."""

from quant_engine.model_files.description import ModelDescription, describe_directory
from quant_engine.model_files.headers import MAX_HEADER_BYTES, MAX_TENSORS, StoredTensor
from quant_engine.model_files.opening import DEFAULT_RULES, FileRules, ModelFiles
from quant_engine.model_files.parsing import safe_config

__all__ = [
    "DEFAULT_RULES",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "FileRules",
    "ModelDescription",
    "ModelFiles",
    "StoredTensor",
    "describe_directory",
    "safe_config",
]
