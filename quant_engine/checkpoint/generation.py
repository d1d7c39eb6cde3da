"""Change a model's generation settings so that transformers can save them again, and say what was changed.

The meaning is kept. Settings without effect are removed. An explicit ``do_sample: false`` stays greedy, and the
settings of sampling are removed. Without ``do_sample``, settings of sampling turn it on, because other engines read
them so. A temperature of 0 is greedy to them, and transformers can not sample with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from transformers import GenerationConfig

from quant_engine.model_files.generation import GENERATION, SAMPLING

_OF_BEAMS: Final = ("early_stopping", "length_penalty")


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A configuration as a checkpoint has it.

    Attributes:
        content: None where it is left out.
        changes: sentences about what was changed, without the file's name.
    """

    content: Mapping[str, Any] | None
    changes: tuple[str, ...] = ()


def mended_generation(content: Mapping[str, Any]) -> Mended:
    """Return the settings with the smallest change that makes them valid; valid ones stay as they are."""
    mended, changes = dict(content), list[str]()
    for step in (_without_idle, _with_one_mode):
        if _is_valid(mended):
            break
        changed, sentences = step(mended)
        mended, changes = changed, changes + sentences
    if _is_valid(mended):
        return Mended(content=mended, changes=tuple(changes))
    return Mended(content=None, changes=("left out, because transformers refuses its settings",))


def mended_sentences(mended: Mended) -> tuple[str, ...]:
    """Return the changes with the file's name."""
    return tuple(f"{GENERATION}: {change}" for change in mended.changes)


def _without_idle(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    beams = [name for name in _OF_BEAMS if name in content and content.get("num_beams") in (None, 1)]
    padding = content.get("pad_token_id")
    negative = ["pad_token_id"] if isinstance(padding, int) and padding < 0 else []
    sentences = [f"removed {_listed(beams)}, which only a search with beams reads"] if beams else []
    sentences += ["removed pad_token_id, because no token has a negative id"] if negative else []
    return _without(content, (*beams, *negative)), sentences


def _with_one_mode(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Make the mode fit the settings: greedy where the model says so, else sampling."""
    sampling = [name for name in SAMPLING if content.get(name) is not None]
    if not sampling:
        return content, []
    if content.get("do_sample") is False:
        return _without(content, SAMPLING), [f"removed {_listed(sampling)}, because do_sample is false"]
    if content.get("temperature") == 0:
        return _without(content, SAMPLING), [f"removed {_listed(sampling)}, because a temperature of 0 is greedy"]
    sentence = f"set do_sample to true, because there is {_listed(sampling)} and no do_sample"
    return content | {"do_sample": True}, [sentence]


def _without(content: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in names}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _is_valid(content: dict[str, Any]) -> bool:
    try:
        # Strict validation is what save_pretrained requires.
        GenerationConfig.from_dict(dict(content)).validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True
