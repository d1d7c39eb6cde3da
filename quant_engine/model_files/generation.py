"""Read a model's ``generation_config.json``, and check the types of its settings.

transformers reads most settings without a look at their types, so a broken file would fail where a user generates.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from quant_engine.errors import EngineError, InvalidModel
from quant_engine.model_files.opening import ModelFiles
from quant_engine.model_files.parsing import REPAIR

GENERATION: Final = "generation_config.json"

SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""The settings that only sampling reads."""

_Check = Callable[[Any], bool]


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_token(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, list) and all(map(_is_int, value)))


def _of(check: _Check, what: str, *names: str) -> dict[str, tuple[_Check, str]]:
    return dict.fromkeys(names, (check, what))


_TYPES: Final[Mapping[str, tuple[_Check, str]]] = {
    **_of(_is_bool, "true or false", "do_sample", "use_cache", "renormalize_logits", "token_healing"),
    **_of(_is_number, "a number", *(name for name in SAMPLING if name != "top_k")),
    **_of(_is_number, "a number", "repetition_penalty", "length_penalty", "guidance_scale", "max_time"),
    **_of(_is_int, "a whole number", "top_k", "num_beams", "num_return_sequences", "no_repeat_ngram_size"),
    **_of(_is_int, "a whole number", "max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    **_of(_is_token, "a token id or a list of them", "bos_token_id", "eos_token_id", "forced_bos_token_id"),
    **_of(_is_token, "a token id or a list of them", "forced_eos_token_id", "decoder_start_token_id"),
    **_of(_is_int, "a token id", "pad_token_id"),
    **_of(lambda value: isinstance(value, list), "a list", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
}


def read_generation(files: ModelFiles) -> dict[str, Any] | None:
    """Return the settings; None where the model has no such file.

    Raises:
        UnsafeCheckpoint: the file may not be opened.
        InvalidModel: it is no JSON object, or a setting has another type than every reader expects.
    """
    if not files.has(GENERATION):
        return None
    content = files.read_json(GENERATION)
    for name, (is_right, what) in _TYPES.items():
        value = content.get(name)
        if value is not None and not is_right(value):
            raise InvalidModel(detail=f"The model's {GENERATION} has a {name} that is not {what}.", hint=REPAIR)
    return content


def generation_problem(files: ModelFiles) -> EngineError | None:
    """Return what :func:`read_generation` raises; None where the file can be used or there is none."""
    try:
        read_generation(files)
    except EngineError as error:
        return error
    return None
