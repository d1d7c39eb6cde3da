"""Bounded, strict field types that every request model is built from.

Pydantic's defaults accept ``true`` for an integer, NUL bytes in a string and ``1e400`` for a float. PostgreSQL or a
tensor can not hold these values. The types here refuse them in one place.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator

from quant_engine.policy.nulls import without_left_out

MAX_INT32 = 2**31 - 1
_MAX_TEXT = 2_000_000


def _clean_text(value: object) -> object:
    """Refuse characters that a database or a tokenizer can not hold: NUL and lone surrogates."""
    # Other types are left to the field's own check, which names the type that it needs.
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("must not contain the NUL character; remove it")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("must be valid Unicode; remove lone surrogates") from None
    return value


class Frozen(BaseModel):
    """Base of every policy type: immutable, and an unknown field is an error.

    The text under a field is its description in the API's document.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    nulls_reach_down: ClassVar[bool] = False
    """Whether the objects inside one with nulls for left-out fields are read like it."""

    later_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that were added after jobs had stored hashes of policies. At their default they do not count, so that an
    unchanged policy keeps its hash."""

    @model_validator(mode="before")
    @classmethod
    def _without_left_out(cls, value: Any) -> Any:
        return without_left_out(cls, value, downwards=cls.nulls_reach_down)


Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_INT32)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0, le=MAX_INT32)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
Quantile = Annotated[float, Field(strict=True, ge=0.5, le=1.0)]
LearningRate = Annotated[float, Field(strict=True, gt=0.0, le=10.0)]
Name = Annotated[str, BeforeValidator(_clean_text), Field(strict=True, min_length=1, max_length=256)]
Text = Annotated[str, BeforeValidator(_clean_text), Field(strict=True, min_length=1, max_length=_MAX_TEXT)]
Content = Annotated[str, BeforeValidator(_clean_text), Field(strict=True, max_length=_MAX_TEXT)]  # may be empty


def kind_among(*types: type[BaseModel]) -> Discriminator:
    """Return a discriminator that chooses one of ``types`` by its ``kind``.

    Where a request leaves ``kind`` out, the first type that has all the given fields is chosen. So a request can
    override a single field of a preset without repeating its ``kind``.
    """

    def kind(value: Any) -> str | None:
        if not isinstance(value, dict):
            return getattr(value, "kind", None)
        # A kind that is not text gives None, which pydantic reports as an unknown kind.
        if value.get("kind") is not None:
            return value["kind"] if isinstance(value["kind"], str) else None
        fitting = [each for each in types if value.keys() <= each.model_fields.keys()]
        # Where no type has all the fields, the first one reports the unknown field.
        found: str = (fitting or list(types))[0].model_fields["kind"].default
        return found

    return Discriminator(kind)
