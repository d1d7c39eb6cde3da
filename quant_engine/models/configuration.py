"""Build transformers' configuration from a ``config.json``, and a model whose parameters have no memory."""

import re
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from quant_engine.errors import UnsupportedArchitecture

_FIELD: Final = re.compile(r"field '([A-Za-z0-9_]{1,80})'", re.ASCII)
# The errors that transformers raises for values that its configurations and models can not use.
_CONFIG_ERRORS: Final = (
    StrictDataclassError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
)


def model_configuration(config: dict[str, Any]) -> Any:
    """Return the transformers configuration of a sanitized ``config.json``, with the defaults of its class.

    Raises:
        UnsupportedArchitecture: transformers refuses a value.
    """
    # for_model takes the model type as a separate argument.
    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(config["model_type"], **fields)
    except _CONFIG_ERRORS as error:
        raise _bad_config(error) from error


def attention_implementation(config: Any) -> str:
    """Return the attention implementation for a transformers configuration.

    Every process that has to give equal bits uses it. ``sdpa`` silently ignores the soft cap of the attention logits
    (Gemma 2); ``eager`` applies it.
    """
    return "sdpa" if getattr(config, "attn_logit_softcapping", None) is None else "eager"


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """Return a model of a transformers configuration with every tensor on the meta device.

    Raises:
        UnsupportedArchitecture: transformers refuses a value.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention_implementation(config)
            )
    except _CONFIG_ERRORS as error:
        raise _bad_config(error) from error


def _bad_config(error: Exception) -> UnsupportedArchitecture:
    # The name of the field is in the text alone.
    field = _FIELD.search(str(error)) if isinstance(error, StrictDataclassFieldValidationError) else None
    what = "values" if field is None else f"a value of {field[1]}"
    return UnsupportedArchitecture(
        detail=f"config.json has {what} that transformers refuses for this model class.",
        hint="Check config.json against the model's original.",
    )
