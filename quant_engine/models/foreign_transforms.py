"""Online transforms of checkpoints from other programs: the online part of compressed-tensors' ``transform_config``.

The fused part (``weight_input``, ``weight_output``) is in the weights already. Hadamards before or after a linear run
through compressed-tensors' own transform, so the results have the same bits.

Shapes: D = the order of a transform.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from compressed_tensors.transform import TransformArgs, TransformConfig, TransformLocation, TransformScheme
from compressed_tensors.transform.factory.hadamard import HadamardTransform
from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix
from compressed_tensors.transform.utils.matrix import get_transform_size
from compressed_tensors.utils import match_named_modules
from torch import Tensor, nn

from quant_engine.errors import InvalidModel, UnsupportedPolicy
from quant_engine.models.named_targets import plain_names
from quant_engine.models.source import CheckpointSource


@dataclass(frozen=True)
class Attachment:
    """A computation of a linear at run time: its name for people, and a function that attaches it.

    ``rounds`` says whether the function also attaches the rounding of the input.
    """

    name: str
    attach: Callable[[nn.Module], None]
    rounds: bool = False


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One named transform of the configuration, and where its matrices may be stored."""

    name: str
    scheme: TransformScheme
    base: CheckpointSource


def foreign_transforms(
    section: Mapping[str, Any], model: nn.Module, base: CheckpointSource
) -> dict[str, tuple[Attachment, ...]]:
    """Return the attachments of each linear by its name, in the order in which compressed-tensors attaches them.

    Args:
        section: the ``transform_config``; empty for none.
        model: an empty model whose names the targets are matched with.

    Raises:
        UnsupportedPolicy: a transform's type, or its place, is not supported here.
        InvalidModel: the section is malformed, or a matrix is missing or does not fit.
    """
    if not section:
        return {}
    try:
        groups = TransformConfig.model_validate(dict(section)).config_groups
    except (ValueError, TypeError) as error:
        raise _unusable("it is malformed") from error
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, tuple[Attachment, ...]] = {}
    for name, scheme in groups.items():
        group = _Group(name=name, scheme=scheme, base=base)
        for arguments in scheme.apply:
            if not arguments.is_online():
                continue
            # Refuse an unsupported transform even where it matches no module.
            build = _builder(group, arguments)
            targets, ignored = (plain_names(each, names) for each in (arguments.targets, arguments.ignore))
            for module_name, module in match_named_modules(model, targets, ignored):
                transform = _transform(group, arguments, module_name, module, build)
                attachment = Attachment("rotation", partial(_ATTACH[arguments.location], transform))
                found[module_name] = (*found.get(module_name, ()), attachment)
    return found


_Build = Callable[[_Group, int], Tensor]


def _builder(group: _Group, arguments: TransformArgs) -> _Build:
    kind, location = group.scheme.type, str(arguments.location)
    if location not in _ATTACH:
        raise _unsupported(group, f"is applied at {location!r}", f"Supported: {', '.join(_ATTACH)} of a linear.")
    if kind not in _MATRICES:
        raise _unsupported(group, f"is of type {kind!r}", f"Supported: {', '.join(_MATRICES)}.")
    if group.scheme.randomize:
        raise _unsupported(group, "is permuted at random for every linear", "Supported: randomize false.")
    return _MATRICES[kind]


def _transform(
    group: _Group, arguments: TransformArgs, name: str, module: nn.Module, build: _Build
) -> HadamardTransform:
    if not isinstance(module, nn.Linear):
        raise _unsupported(group, f"is applied to {name}, a {type(module).__name__}", "Supported: linears.")
    try:
        order = get_transform_size(module, arguments.location, group.scheme.head_dim)
    except ValueError as error:
        raise _unusable(f"{group.name} does not fit {name} ({error})") from error
    # The order depends on the module: its width, unless the scheme has a head_dim.
    weight = nn.Parameter(build(group, order), requires_grad=False)
    return HadamardTransform(weight, None, group.scheme, arguments, type(module))


def _constructed(group: _Group, order: int) -> Tensor:
    try:
        matrix_DD: Tensor = deterministic_hadamard_matrix(order, group.scheme.precision)
    except ValueError as error:
        raise _unusable(f"{group.name} has the order {order}, which is no power of two") from error
    return matrix_DD


def _stored(group: _Group, order: int) -> Tensor:
    """Read a randomly drawn matrix, which is stored once for all linears of its order, under the first of them."""
    # The first linear is not known here, so every tensor with the group's name is a candidate, and its order decides.
    endings = tuple(f".{group.name}_{location.value}.weight" for location in TransformLocation)
    for name in sorted(group.base.tensors):
        if name.endswith(endings):
            matrix_DD = group.base.read([name], dtype=group.scheme.precision)[name]
            if tuple(matrix_DD.shape) == (order, order):
                return matrix_DD.clone()  # a copy: the tensor that was read may be a view of the mapped file
    raise _unusable(f"no file holds the matrix of order {order} of {group.name}")


_MATRICES: Final[dict[str, _Build]] = {"hadamard": _constructed, "random-hadamard": _stored}


def _before(transform: HadamardTransform, linear: nn.Module) -> None:
    # Prepended, so that the input is transformed before any other hook reads it.
    linear.register_forward_pre_hook(lambda _module, inputs: (transform(inputs[0]), *inputs[1:]), prepend=True)


def _behind(transform: HadamardTransform, linear: nn.Module) -> None:
    linear.register_forward_hook(lambda _module, _inputs, output: transform(output))


_ATTACH: Final[dict[str, Callable[[HadamardTransform, nn.Module], None]]] = {"input": _before, "output": _behind}


def _unsupported(group: _Group, what: str, hint: str) -> UnsupportedPolicy:
    return UnsupportedPolicy(detail=f"The checkpoint's transform {group.name!r} {what}.", hint=hint)


def _unusable(reason: str) -> InvalidModel:
    return InvalidModel(
        detail=f"The checkpoint's transform_config can not be used: {reason}.",
        hint="Check that config.json is as the checkpoint's writer wrote it.",
    )
