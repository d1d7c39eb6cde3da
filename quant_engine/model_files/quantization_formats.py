"""The formats of quantized checkpoints: how a configuration or a tensor's name gives one away, and what it is called.

Data alone; :mod:`quant_engine.model_files.quantization_signs` looks for it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from quant_engine.errors import UnsupportedQuantization

COMPRESSED_TENSORS: Final = "compressed-tensors"
MODELOPT: Final = "modelopt"
UNNAMED: Final = "an unnamed format"

SECTIONS: Final = ("quantization_config", "compression_config")
"""Keys of config.json, at any depth, that hold a quantization."""

SIGN_FILES: Final = {
    "hf_quant_config.json": MODELOPT,
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
"""Files beside config.json that describe a quantization, and the method of one that does not name its own."""

SCALED_METHODS: Final = ("fp8", "fbgemm-fp8", "w8a8-fp8", "w8a8-int8", "blockwise-int8")
"""Methods that store codes of eight bits in ``weight``, and factors in a tensor beside it."""

CODES_OF: Final = dict.fromkeys(("fp8", "fbgemm-fp8", "w8a8-fp8", MODELOPT), "F8_") | dict.fromkeys(
    ("w8a8-int8", "blockwise-int8"), "I8"
)
"""How the type of a method's codes begins. The bits of one type, read as another, are other weights."""

READABLE_ALGORITHMS: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MIXED_PRECISION")
"""The ``quant_algo`` of ModelOpt whose weights are such codes. Of a mixture, the tensors decide."""

_NAMES: Final = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "gptq-marlin": "GPTQ",
    "awq-marlin": "AWQ",
    "marlin": "Marlin",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "modelopt-fp4": "ModelOpt NVFP4",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "eetq": "EETQ",
    "higgs": "HIGGS",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "torchao": "torchao",
    "bitnet": "BitNet",
    "fp-quant": "FP-Quant",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "quark": "Quark",
    "quip": "QuIP#",
    "mlx": "MLX",
    "gguf": "GGUF",
    "sinq": "SINQ",
    "fp8": "FP8",
    "fbgemm-fp8": "FBGEMM FP8",
    "w8a8-fp8": "FP8",
    "w8a8-int8": "int8",
    "blockwise-int8": "int8",
    COMPRESSED_TENSORS: COMPRESSED_TENSORS,
    MODELOPT: "ModelOpt",
}

TENSOR_SIGNS: Final = tuple(
    (re.compile(rf"\.({ending})\Z"), name)
    for ending, name in (
        (
            r"weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.(?s:.*))|SCB|weight_format",
            "bitsandbytes",
        ),
        (r"g_idx", "GPTQ"),
        (r"qweight|qzeros", "GPTQ or AWQ"),
        (r"weight_scale_2", "ModelOpt NVFP4"),
        (r"pre_quant_scale", "ModelOpt AWQ or SmoothQuant"),
        (r"(gate_up|down|gate|up|weight)(_proj)?_blocks", "MXFP4"),
        (r"weight_packed|weight_shape|weight_g_idx|weight_global_scale", COMPRESSED_TENSORS),
        (r"weight\._(data|scale|shift)", "Quanto"),
        (r"W_q", "HQQ"),
        (r"codebooks|codes", "AQLM"),
        (r"trellis|suh|svh", "EXL3"),
        (r"q_weight|q_invperm|q_groups", "EXL2"),
        (r"Qidxs", "QuIP#"),
        (r"biases", "MLX"),
        (r"weight_zero_point", "codes with zero points"),
    )
)
"""Endings of tensor names that only quantized checkpoints have, and the format; the first that fits decides."""

_SHOWN: Final = re.compile(r"[A-Za-z0-9._#/-]{1,40}")
_DENSE: Final = "Give the dense original that it was made from"
_REMEDIES: Final = {
    "GGUF": "or load it with transformers (from_pretrained with gguf_file) and save it with save_pretrained",
    "bitsandbytes": "or load it with transformers, call model.dequantize() and save it with save_pretrained",
    "MXFP4": "or load it with transformers and Mxfp4Config(dequantize=True) and save it with save_pretrained",
    COMPRESSED_TENSORS: "or put back the config.json with the quantization_config that belongs to it",
}
_OTHERWISE: Final = "or a checkpoint that was saved with compressed-tensors, or in FP8 with its scales"


def normal(method: Any) -> str:
    """Return a ``quant_method`` as the tables here spell it; empty for none."""
    return str(method).strip().lower().replace("_", "-") if isinstance(method, str) else ""


def format_name(method: str) -> str:
    """Return what people call a method; one that is not known by its own name where that is a word."""
    return _NAMES.get(method) or (method if _SHOWN.fullmatch(method) else UNNAMED)


def method_of(section: Mapping[str, Any], default: str = "") -> str:
    """Return the method of a section, also where older writers left out its name."""
    method = normal(section.get("quant_method"))
    producer = section.get("producer")
    if not method and ("quant_algo" in section or (isinstance(producer, Mapping) and normal(producer.get("name")))):
        return MODELOPT
    # ModelOpt has such groups too.
    if method == "sparseml" or (not method and "config_groups" in section):
        return COMPRESSED_TENSORS
    if not method and any(key.startswith(("load_in_", "bnb_")) for key in section):
        return "bitsandbytes"
    return method or default


def unsupported(name: str, sign: str) -> UnsupportedQuantization:
    """Return the error for a source in a format that can not be read.

    Args:
        sign: what gave it away, such as a file or a tensor.
    """
    why = "without its configuration" if name == COMPRESSED_TENSORS else "here"
    return UnsupportedQuantization(
        detail=f"The model is already quantized: {name} ({sign}). Weights of this format can not be read {why}.",
        hint=f"{_DENSE}, {_REMEDIES.get(name, _OTHERWISE)}.",
    )


def unusable(reason: str) -> UnsupportedQuantization:
    """Return the error for codes, scales and configurations that do not belong together."""
    return UnsupportedQuantization(
        detail=f"The model is already quantized, and it can not be read: {reason}.", hint=f"{_DENSE}, {_OTHERWISE}."
    )
