"""The policy: what to quantize, how to transform it first, and how to search for the best transform.

All types are frozen and validated. Importing this module loads no torch, so the API can use it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from quant_engine.policy.fields import Frozen, Name
from quant_engine.policy.formats import ActivationQuantization, WeightQuantization
from quant_engine.policy.search import AnySearch
from quant_engine.policy.selection import AnySelection
from quant_engine.policy.training import AnyTraining
from quant_engine.policy.transform import Residual, Transform
from quant_engine.policy.tuning import Tuning


class Nothing(Frozen):
    """In place of a preset's search, training, tuning, selection or residual rotation: none. Null means the same.

    A client that writes null for all that was left out can only say it like this.
    """

    kind: Literal["none"] = "none"
    """There is none."""


def _none_by_name(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("kind") != "none":
        return value
    if len(value) > 1:
        raise ValueError("has no other fields with kind 'none'; remove them")
    return None


class Override(Frozen):
    """Other settings for some linears."""

    match: Annotated[Name, Field(examples=["re:.*layers\\.0\\..*"])]
    """The linears: a name, its last part, a glob, or ``re:`` and a pattern that matches the whole name."""
    weights: WeightQuantization | None = None
    """How their weights are rounded. Null: as the others."""
    activations: ActivationQuantization | None = None
    """How their inputs are rounded. Null: as the others."""
    transform: Transform | None = None
    """The transform of their inputs. Null: as the others."""


Pattern = Annotated[Name, Field(examples=["down_proj"])]


class Policy(Frozen):
    """What is done to a model. What a request leaves out is the preset's (:func:`resolve_policy`)."""

    nulls_reach_down: ClassVar[bool] = True
    later_fields: ClassVar[frozenset[str]] = frozenset({"tuning"})

    version: Literal[1] = 1
    """The version of this format."""
    preset: Annotated[Name, Field(examples=["w4a16"])] | None = None
    """The preset to start from, one of ``GET /v1/presets``. All other fields override it, field by field."""
    task: Literal["quantize", "evaluate"] = "quantize"
    """``evaluate`` measures the model as it is, dense or already quantized, and changes nothing. Every other field then
    has to have the value that the preset ``evaluate`` has."""
    weights: WeightQuantization = WeightQuantization()
    """How weights are rounded."""
    activations: ActivationQuantization = ActivationQuantization()
    """How the inputs of linears are rounded."""
    targets: Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=64, fail_fast=True)] = ("down_proj",)
    """The linears to quantize: names, their last parts, globs, ``Linear`` for all, or ``re:`` and a pattern that
    matches the whole name."""
    ignore: Annotated[tuple[Pattern, ...], Field(max_length=64, fail_fast=True)] = ("lm_head",)
    """The linears to leave as they are, although ``targets`` matches them."""
    transform: Transform = Transform()
    """The transform of each site's input."""
    online: Literal["none", "inner", "all"] = "all"
    """Where transforms may be computed at inference in front of a linear: nowhere, only inside the attention and the
    feed-forward (``inner``), or at every site (``all``)."""
    residual: Annotated[
        Residual | None, BeforeValidator(_none_by_name, json_schema_input_type=Residual | Nothing | None)
    ] = None
    """A rotation of the residual stream, which costs nothing at inference. Null: none."""
    search: Annotated[
        AnySearch | None, BeforeValidator(_none_by_name, json_schema_input_type=AnySearch | Nothing | None)
    ] = None
    """How the scales are searched. Null: they are not."""
    training: Annotated[
        AnyTraining | None, BeforeValidator(_none_by_name, json_schema_input_type=AnyTraining | Nothing | None)
    ] = None
    """How transforms are trained. Null: they are not."""
    tuning: Annotated[Tuning | None, BeforeValidator(_none_by_name, json_schema_input_type=Tuning | Nothing | None)] = (
        None
    )
    """How the scales and norms of the rounded model are trained on the original's predictions. Null: they are not."""
    selection: Annotated[
        AnySelection | None, BeforeValidator(_none_by_name, json_schema_input_type=AnySelection | Nothing | None)
    ] = None
    """How the transform of each layer is chosen among candidates. Null: all have ``transform``."""
    overrides: Annotated[tuple[Override, ...], Field(max_length=64, fail_fast=True)] = ()
    """Other settings for some linears. A later one overrides an earlier one, field by field."""
