"""Convert a GGUF file to the dense safetensors directory that the rest of the engine reads.

GGUF stores block-quantized tensors and its own form of the tokenizer; transformers reads both. The result is an
ordinary checkpoint in float32 without any mark of its origin. Its weights are the values that GGUF's codes represent.
"""

import logging
import struct
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant_engine.errors import InvalidModel

_log = logging.getLogger(__name__)

# The errors that transformers' reader raises for bytes that it can not interpret.
_UNREADABLE: Final = (ValueError, KeyError, IndexError, RuntimeError, struct.error)


def convert_gguf(gguf_file: Path, output_dir: Path) -> None:
    """Write the model and the tokenizer of ``gguf_file`` into ``output_dir`` as float32 safetensors.

    An interrupted call leaves an incomplete directory. So the caller passes a new directory, and renames it after this
    function has returned.

    Raises:
        InvalidModel: it is not a GGUF file, or not one of a model transformers can read.
        OSError: a file can not be read or written.
    """
    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except _UNREADABLE as error:
        raise InvalidModel(
            detail=f"{gguf_file.name} can not be read as a GGUF model ({type(error).__name__}: {error}).",
            hint="Fetch the file again; if that does not help, it holds an architecture transformers does not convert.",
        ) from error
    # Both describe how the source was stored, which is not true of a dense checkpoint.
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    _log.info("Converted %s: %d parameters.", gguf_file.name, model.num_parameters())
