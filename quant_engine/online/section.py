"""Read the ``quantry`` section of a checkpoint's config.json: what each linear does to its input.

    "transforms": {KEY: [{"name": "kronecker", "tensors": {"left_AA": {"name": TENSOR, "shape": [A, A]}, …}}, …]}
    "online":     {LINEAR: {"transform": KEY or null, "clip_ratio": 1.0}}

Version 1 had a ``hadamard_order`` for each linear, and no tensors. Linears that share an input share a transform.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

HADAMARD: Final = "hadamard"


@dataclass(frozen=True)
class StoredPrimitive:
    """One factor of a transform.

    Attributes:
        fields: its name, and its parameters that are no tensors.
        tensors: the shape of each tensor by its field; they are stored as ``KEY.online.<position>.<field>``.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """The kind of the primitive."""
        return str(self.fields.get("name"))


@dataclass(frozen=True)
class StoredInput:
    """What one linear does to its input: X P₁ ⋯ P_n, then a clip to a part of the token's absmax.

    Attributes:
        key: the name under which the transform's tensors are stored; None without a transform.
    """

    key: str | None
    primitives: tuple[StoredPrimitive, ...]
    clip_ratio: float


def tensor_name(key: str, position: int, field: str) -> str:
    """Return the name of a transform's tensor."""
    return f"{key}.online.{position}.{field}"


def stored_inputs(section: Mapping[str, Any]) -> dict[str, StoredInput]:
    """Return what the section says of every linear that does more than to round its input.

    Raises:
        ValueError: the version is unknown, or the section is malformed.
    """
    version = section.get("format_version")
    reader = READERS.get(version) if isinstance(version, int) else None
    if reader is None:
        raise ValueError(f"its format version is none of {', '.join(map(str, READERS))}")
    try:
        return reader(section)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it is malformed") from error


def _version_1(section: Mapping[str, Any]) -> dict[str, StoredInput]:
    # This version had Hadamards only, which are built from their order.
    found = {}
    for name, entry in section["online"].items():
        order = entry["hadamard_order"]
        primitives = () if order is None else (StoredPrimitive({"name": HADAMARD, "order": order}, {}),)
        found[name] = StoredInput(None if order is None else name, primitives, _ratio(entry["clip_ratio"]))
    return found


def _version_2(section: Mapping[str, Any]) -> dict[str, StoredInput]:
    transforms = {
        key: tuple(_primitive(entry, key, position) for position, entry in enumerate(entries))
        for key, entries in section["transforms"].items()
    }
    return {
        name: StoredInput(
            entry["transform"],
            () if entry["transform"] is None else transforms[entry["transform"]],
            _ratio(entry["clip_ratio"]),
        )
        for name, entry in section["online"].items()
    }


READERS: Final[dict[int, Callable[[Mapping[str, Any]], dict[str, StoredInput]]]] = {1: _version_1, 2: _version_2}
"""A reader for each format version."""


def _primitive(entry: Mapping[str, Any], key: str, position: int) -> StoredPrimitive:
    """Read one primitive. A tensor's name has to be the one that its position requires."""
    tensors = {}
    for field, tensor in entry.get("tensors", {}).items():
        if tensor["name"] != tensor_name(key, position, field):
            raise ValueError(f"the {field} of transform {key} is not where it has to be")
        tensors[field] = tuple(tensor["shape"])
    return StoredPrimitive({name: value for name, value in entry.items() if name != "tensors"}, tensors)


def _ratio(value: Any) -> float:
    ratio = float(value)
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"a clip_ratio is {ratio}, not in (0, 1]")
    return ratio
