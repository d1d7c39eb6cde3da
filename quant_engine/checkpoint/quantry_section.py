"""Write and read the ``quantry`` section of an exported config.json: the online transforms and clips of a checkpoint.

    "transforms": {KEY: [{"name": "kronecker", "tensors": {"left_AA": {"name": TENSOR, "shape": [A, A]}, …}}, …]}
    "online":     {LINEAR: {"transform": KEY or null, "clip_ratio": 1.0}}

A transform is listed once for all linears that share an input, under the name of the first of them. Its tensors are in
the checkpoint's safetensors files, in fp32 (closed-form blocks in bfloat16 or e4m3, permutations in int64), with the
names ``KEY.online.<position>.<field>``. Version 1 had a ``hadamard_order`` for each linear, and no tensors.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quant_engine.checkpoint.online import STORED_DTYPES, OnlineInput
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.errors import InvalidModel, ModelNotFound, UnsupportedPolicy
from quant_engine.model_files.opening import MAX_CONFIG_BYTES
from quant_engine.online.section import READERS, StoredPrimitive, stored_inputs, tensor_name
from quant_engine.policy import Profile
from quant_engine.transforms.primitives import Primitive, primitive_from

FORMAT_VERSION: Final = 2


class Reach(StrEnum):
    """The readers that can load a checkpoint."""

    ANYWHERE = "anywhere"
    """Nothing is online: every reader of compressed-tensors."""
    HADAMARD = "hadamard"
    """A Hadamard is online: readers of compressed-tensors' ``transform_config``, and our loader."""
    LOADER = "loader"
    """Something else is online: our loader alone; others refuse the checkpoint."""


def reach(linears: Sequence[QuantizedLinear]) -> Reach:
    """Return the narrowest reach that a linear requires."""
    transforming = [linear.online for linear in linears if linear.online.transforms]
    if not transforming:
        return Reach.ANYWHERE
    # transform_config can express a single Hadamard for a linear, and no other transform.
    return Reach.LOADER if any(online.order is None for online in transforming) else Reach.HADAMARD


def has_second_grid(linears: Sequence[QuantizedLinear]) -> bool:
    """Whether compressed-tensors' own forward can run the checkpoint, and rounds its inputs on another grid."""
    # It would leave a clip out, and can not be given any other transform.
    readable = reach(linears) is not Reach.LOADER and all(linear.online.clip_ratio == 1.0 for linear in linears)
    return readable and any(linear.served is not None for linear in linears)


def check_profile_of(linears: Sequence[QuantizedLinear], profile: Profile) -> None:
    """Refuse linears that a checkpoint of ``profile`` can not express.

    Raises:
        UnsupportedPolicy: the profile is universal, and a linear has an online transform or a clip.
    """
    busy = [linear for linear in linears if not linear.online.is_identity]
    if profile == "universal" and busy:
        what = "a transform is online" if busy[0].online.transforms else "activations are clipped"
        raise UnsupportedPolicy(
            detail=f"output.profile is 'universal', but in front of {busy[0].name} {what} ({len(busy)} linears in "
            "all), which plain from_pretrained would leave out.",
            hint="Set policy.online to 'none' and activations.clip to 'none', or output.profile to 'rotated'.",
        )


def online_section(linears: Sequence[QuantizedLinear]) -> dict[str, Any]:
    """Return the section."""
    keys = _transform_keys(linears)
    kind = reach(linears)
    return {
        "format_version": FORMAT_VERSION,
        "profile": "universal" if all(linear.online.is_identity for linear in linears) else "rotated",
        "reach": kind.value,
        "transforms": {
            key: [_entry(key, position, primitive) for position, primitive in enumerate(primitives)]
            for primitives, key in keys.items()
        },
        "online": {
            linear.name: {
                "transform": keys.get(linear.online.primitives),
                "clip_ratio": linear.online.clip_ratio,
            }
            for linear in linears
            if not linear.online.is_identity
        },
    }


def online_tensors(linears: Sequence[QuantizedLinear]) -> list[dict[str, Tensor]]:
    """Return the tensors to which the section refers, one dictionary for each transform."""
    return [
        {
            tensor_name(key, position, field): tensor
            for position, primitive in enumerate(primitives)
            for field, tensor in primitive.tensors().items()
        }
        for primitives, key in _transform_keys(linears).items()
    ]


def read_config(directory: Path) -> dict[str, Any]:
    """Read ``config.json``, which has to have a ``quantry`` section of a known version.

    Raises:
        ModelNotFound: there is no ``config.json``.
        InvalidModel: it is too large, is not a JSON object, or has no such section.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            detail=f"There is no config.json in {directory.name!r}.", hint="Give the directory of a checkpoint."
        )
    # Larger than for a dense model, because the section lists every linear.
    if path.stat().st_size > MAX_CONFIG_BYTES * 16:
        raise unusable("config.json is too large")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise unusable("config.json is not JSON") from error
    own_section(content if isinstance(content, dict) else {})
    return dict(content)


def own_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``quantry`` section of a configuration. Raises: InvalidModel: it has none of a known version."""
    section = config.get("quantry")
    version = section.get("format_version") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(version, int) or version not in READERS:
        known = " or ".join(map(str, READERS))
        raise unusable(f"config.json has no quantry section of format version {known}")
    return section


def read_online(
    shards: Sequence[Path], section: Mapping[str, Any], device: torch.device | str
) -> dict[str, OnlineInput]:
    """Return the online operations of every linear, with tensors on ``device``; linears of a site share primitives.

    Args:
        shards: the checkpoint's safetensors files. The caller has checked them where they are foreign.

    Raises:
        InvalidModel: the section is malformed, a tensor is missing, of another shape or type, or not finite.
    """
    try:
        inputs = stored_inputs(section)
    except ValueError as error:
        raise unusable(f"the quantry section of config.json can not be read: {error}") from error
    transforms = {each.key: each.primitives for each in inputs.values() if each.key is not None}
    wanted = {
        tensor_name(key, position, field): shape
        for key, entries in transforms.items()
        for position, entry in enumerate(entries)
        for field, shape in entry.tensors.items()
    }
    stored = _stored_tensors(shards, wanted)
    built = {
        key: tuple(_primitive(entry, key, position, stored).to(device) for position, entry in enumerate(entries))
        for key, entries in transforms.items()
    }
    return {
        name: OnlineInput(primitives=() if each.key is None else built[each.key], clip_ratio=each.clip_ratio)
        for name, each in inputs.items()
    }


def unusable(reason: str) -> InvalidModel:
    """Return the error for a checkpoint that contradicts its own description."""
    return InvalidModel(
        detail=f"The checkpoint can not be loaded: {reason}.",
        hint="Load a checkpoint that Quantry exported, unchanged; for others use from_pretrained.",
    )


def _transform_keys(linears: Sequence[QuantizedLinear]) -> dict[tuple[Primitive, ...], str]:
    """Return each transform's key. Primitives are compared by identity, because a site's linears share them."""
    keys: dict[tuple[Primitive, ...], str] = {}
    for linear in linears:
        if linear.online.transforms:
            keys.setdefault(linear.online.primitives, linear.name)
    return keys


def _entry(key: str, position: int, primitive: Primitive) -> dict[str, Any]:
    tensors = {
        field: {"name": tensor_name(key, position, field), "shape": list(tensor.shape)}
        for field, tensor in primitive.tensors().items()
    }
    return primitive.fields() | ({"tensors": tensors} if tensors else {})


def _primitive(entry: StoredPrimitive, key: str, position: int, stored: Mapping[str, Tensor]) -> Primitive:
    tensors = {field: stored[tensor_name(key, position, field)] for field in entry.tensors}
    try:
        return primitive_from(entry.fields, tensors)
    except ValueError as error:
        raise unusable(f"primitive {position} of transform {key} is not valid ({error})") from error


def _stored_tensors(shards: Sequence[Path], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the wanted tensors from the safetensors files, and check their shapes.

    They are copied from the mapped file, because torch aligns its own memory, and the bits of a product may depend on
    the alignment.
    """
    found: dict[str, Tensor] = {}
    for shard in shards if wanted else ():
        try:
            with safe_open(shard, framework="pt") as file:
                for name in wanted.keys() & set(file.keys()):
                    shape = file.get_slice(name).get_shape()
                    if tuple(shape) != wanted[name]:
                        raise unusable(f"{name} has the shape {shape}, and the section says {list(wanted[name])}")
                    found[name] = _checked(name, file.get_tensor(name).clone())
        except SafetensorError as error:
            raise unusable(f"{shard.name} is not a usable safetensors file") from error
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise unusable(f"no file holds the tensor {missing[0]}")
    return found


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in STORED_DTYPES:
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in STORED_DTYPES))
        raise unusable(f"{name} is {tensor.dtype}, none of {known}")
    if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
        raise unusable(f"{name} is not finite")
    return tensor
