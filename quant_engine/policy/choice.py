"""The presets that most people want, and the check that a request chooses what is done to its model."""

from dataclasses import dataclass
from typing import Final

from quant_engine.policy.presets import PRESETS
from quant_engine.policy.types import Policy


@dataclass(frozen=True, kw_only=True)
class Popular:
    """A preset that most people want.

    Attributes:
        preset: its name.
        loads_in: the engines that compute what was measured (docs/serving.md), as a message lists them.
    """

    preset: str
    loads_in: str


POPULAR: Final = (
    Popular(preset="w8a8", loads_in="plain transformers, vLLM and SGLang on GPUs up to Hopper"),
    Popular(preset="w4a16", loads_in="plain transformers, vLLM and SGLang"),
    Popular(preset="nvfp4", loads_in="plain transformers, vLLM and SGLang, with four-bit inputs on Blackwell alone"),
)
"""By docs/measurements.md: the nearest to the original, the smallest with 16-bit inputs, four bits throughout."""

_NEEDED: Final = ("weights.format", "activations.format", "targets", "transform.kind")
"""What decides the result and where it loads. A policy without a preset has to state it."""


def popular_presets() -> str:
    """Return what a message says about the popular presets: what each is and what it loads in."""
    choices = " ".join(
        f"'{each.preset}': {PRESETS[each.preset].description} Loads in: {each.loads_in}." for each in POPULAR
    )
    return f"A job has to say what is done to its model. The presets that most people want are: {choices}"


def choice_required() -> str:
    """Return the text that asks a client of the API for a preset."""
    example = f'"policy": {{"preset": "{POPULAR[0].preset}"}}'
    return f"{popular_presets()} Send for example {example}; GET /v1/presets lists all {len(PRESETS)}."


def undecided(requested: Policy) -> tuple[str, ...]:
    """Return what a request leaves open: the fields that a policy without a preset lacks; none where it is whole."""
    if requested.preset is not None or ("task" in requested.model_fields_set and requested.task == "evaluate"):
        return ()
    return tuple(name for name in _NEEDED if not _gives(requested, name))


def _gives(requested: Policy, name: str) -> bool:
    field, _, member = name.partition(".")
    if field not in requested.model_fields_set:
        return False
    return not member or member in getattr(requested, field).model_fields_set
