"""The primitives of a site's transform: each is an invertible P that turns X into X P and W into W P⁻ᵀ.

X' W'ᵀ = X P (W P⁻ᵀ)ᵀ = X Wᵀ for every invertible P. A primitive can act on both sides, states its cost online, and can
be written to a file and read again.

Shapes: T tokens, O outputs, I = D channels, N blocks of K channels, A·B the factorization of a Kronecker product.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_cores, hadamard_transform, online_hadamard
from quant_engine.online.transforms import permuted, times_blocks, times_kronecker, times_matrix
from quant_engine.transforms.matrices import times_inverse_transpose


@dataclass(frozen=True, kw_only=True, eq=False)
class Primitive(ABC):
    """One invertible matrix P. ``name`` is its key in :data:`PRIMITIVES` and in files.

    Every method raises ValueError if a width does not fit the primitive.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def width(self) -> int | None:
        """The width I that P acts on; None if it acts on every width that its block divides."""

    @abstractmethod
    def cost(self, width: int) -> int:
        """Multiply-adds per token if P is applied online."""

    @abstractmethod
    def _apply(self, x_TI: Tensor) -> Tensor: ...

    @abstractmethod
    def _apply_inverse_transpose(self, w_OI: Tensor) -> Tensor: ...

    def apply(self, x_TI: Tensor) -> Tensor:
        """X P, [..., I], in the dtype and on the device of ``x_TI``. Differentiable."""
        self._check(x_TI.shape[-1])
        return self._apply(x_TI)

    def apply_online(self, x_TI: Tensor) -> Tensor:
        """X P as quantized modules compute it, with bits that do not depend on installed optional packages."""
        return self.apply(x_TI)

    def apply_inverse_transpose(self, w_OI: Tensor) -> Tensor:
        """W P⁻ᵀ, [..., I], in the dtype of ``w_OI``. An inversion of P is computed in fp64.

        Raises:
            NumericalInstability: P is singular, not finite, or so ill-conditioned that W' Pᵀ misses W by 1e-6.
        """
        self._check(w_OI.shape[-1])
        return self._apply_inverse_transpose(w_OI)

    def to(self, device: torch.device | str) -> Self:
        """The same P with its parameters on ``device``."""
        return dataclasses.replace(self, **{key: tensor.to(device) for key, tensor in self.tensors().items()})

    def fields(self) -> dict[str, Any]:
        """The part that is stored as JSON: the name, and the parameters that are not tensors."""
        return {"name": self.name} | {key: value for key, value in self._values() if not isinstance(value, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters that are tensors, contiguous, by name."""
        return {key: value.contiguous() for key, value in self._values() if isinstance(value, Tensor)}

    def _values(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def _check(self, width: int) -> None:
        if self.width not in (None, width):
            raise ValueError(f"a {self.name} transform of width {self.width} can not act on {width} channels")


@dataclass(frozen=True, kw_only=True, eq=False)
class Hadamard(Primitive):
    """P = Hᵀ of the given order, orthonormal; block-diagonal with equal blocks if the order is below the width."""

    name = "hadamard"
    order: int

    def __post_init__(self) -> None:
        if type(self.order) is not int or hadamard_cores(self.order) is None:
            raise ValueError(f"order is {self.order!r}, of which no Hadamard matrix can be constructed")

    @property
    def width(self) -> None:
        return None

    def apply_online(self, x_TI: Tensor) -> Tensor:
        self._check(x_TI.shape[-1])
        return online_hadamard(x_TI, self.order)

    def cost(self, width: int) -> int:
        """Count a butterfly along the power of two, and a dense product for each Paley core."""
        cores = hadamard_cores(self.order) or ()
        power = self.order // math.prod(cores)
        return width * (sum(cores) + power.bit_length() - 1)

    def _apply(self, x_TI: Tensor) -> Tensor:
        # One of the backends warns about rows that are not contiguous, as in a transposed covariance.
        return hadamard_transform(x_TI.contiguous(), order=self.order)

    def _apply_inverse_transpose(self, w_OI: Tensor) -> Tensor:
        return self._apply(w_OI)  # P is orthogonal: P⁻ᵀ = P


@dataclass(frozen=True, kw_only=True, eq=False)
class Block(Primitive):
    """P is block-diagonal with N different blocks [K, K]."""

    name = "block"
    blocks_NKK: Tensor

    def __post_init__(self) -> None:
        _expect_float("blocks_NKK", self.blocks_NKK, dims=3)

    @property
    def width(self) -> int:
        return self.blocks_NKK.shape[0] * self.blocks_NKK.shape[1]

    def cost(self, width: int) -> int:
        return width * self.blocks_NKK.shape[-1]

    def _apply(self, x_TI: Tensor) -> Tensor:
        return times_blocks(x_TI, self.blocks_NKK)

    def _apply_inverse_transpose(self, w_OI: Tensor) -> Tensor:
        return self._merged(times_inverse_transpose(self._split(w_OI), self.blocks_NKK), w_OI)

    def _split(self, x_TI: Tensor) -> Tensor:
        blocks, size = self.blocks_NKK.shape[:2]
        return x_TI.reshape(-1, blocks, size).transpose(0, 1)  # [N, T, K]

    def _merged(self, x_NTK: Tensor, like_TI: Tensor) -> Tensor:
        return x_NTK.transpose(0, 1).reshape(like_TI.shape)  # [N, T, K] → [..., I]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kronecker(Primitive):
    """P = left ⊗ right (FlatQuant, ICML 2025): a token, seen as a matrix [A, B], becomes leftᵀ X right."""

    name = "kronecker"
    left_AA: Tensor
    right_BB: Tensor

    def __post_init__(self) -> None:
        _expect_float("left_AA", self.left_AA, dims=2)
        _expect_float("right_BB", self.right_BB, dims=2)

    @property
    def width(self) -> int:
        return self.left_AA.shape[0] * self.right_BB.shape[0]

    def cost(self, width: int) -> int:
        return width * (self.left_AA.shape[0] + self.right_BB.shape[0])

    def _apply(self, x_TI: Tensor) -> Tensor:
        return times_kronecker(x_TI, self.left_AA, self.right_BB)

    def _apply_inverse_transpose(self, w_OI: Tensor) -> Tensor:
        """Compute left⁻¹ W right⁻ᵀ per row, one factor after the other along the last axis."""
        # fp64 between the two factors too, so that the result is rounded only once.
        a, b = self.left_AA.shape[0], self.right_BB.shape[0]
        w_OAB = times_inverse_transpose(w_OI.double().reshape(-1, b), self.right_BB).reshape(-1, a, b)
        w_OBA = times_inverse_transpose(w_OAB.mT.reshape(-1, a), self.left_AA).reshape(-1, b, a)
        return w_OBA.mT.reshape(w_OI.shape).to(w_OI.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Permutation(Primitive):
    """X P = X[:, index]. ``index_D`` is int64 and contains every channel once."""

    name = "permutation"
    index_D: Tensor

    def __post_init__(self) -> None:
        if self.index_D.dtype is not torch.int64 or self.index_D.ndim != 1:
            raise ValueError(f"index_D is {self.index_D.dtype} {list(self.index_D.shape)}, not int64 [D]")
        if not torch.equal(self.index_D.sort().values, torch.arange(self.width, device=self.index_D.device)):
            raise ValueError(f"index_D is not a permutation of its {self.width} channels")

    @property
    def width(self) -> int:
        return self.index_D.shape[0]

    def cost(self, width: int) -> int:  # noqa: ARG002 -- moving channels multiplies nothing, at any width
        return 0

    def _apply(self, x_TI: Tensor) -> Tensor:
        return permuted(x_TI, self.index_D.to(x_TI.device))

    def _apply_inverse_transpose(self, w_OI: Tensor) -> Tensor:
        return self._apply(w_OI)  # P is orthogonal: P⁻ᵀ = P


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Primitive):
    """P is any invertible ``matrix_DD``."""

    name = "dense"
    matrix_DD: Tensor

    def __post_init__(self) -> None:
        _expect_float("matrix_DD", self.matrix_DD, dims=2)

    @property
    def width(self) -> int:
        return self.matrix_DD.shape[0]

    def cost(self, width: int) -> int:
        return width * width

    def _apply(self, x_TI: Tensor) -> Tensor:
        return times_matrix(x_TI, self.matrix_DD)

    def _apply_inverse_transpose(self, w_OI: Tensor) -> Tensor:
        return times_inverse_transpose(w_OI, self.matrix_DD)


PRIMITIVES: Final[dict[str, type[Primitive]]] = {
    kind.name: kind for kind in (Hadamard, Block, Kronecker, Permutation, Dense)
}
"""Every primitive by its name."""


def primitive_from(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Primitive:
    """Build the primitive with these ``fields()`` and ``tensors()``, bit for bit.

    Raises:
        ValueError: the name is unknown, or the named field is missing, unknown, or of a wrong type or shape.
    """
    name = fields.get("name")
    if not isinstance(name, str) or name not in PRIMITIVES:
        raise ValueError(f"name is {name!r}; the primitives are {', '.join(PRIMITIVES)}")
    # The values come from a file that anyone may have written, so names and types are checked against the declaration.
    declared = {field.name: field.type is Tensor for field in dataclasses.fields(PRIMITIVES[name])}
    for given, is_tensor in ((fields.keys() - {"name"}, False), (tensors.keys(), True)):
        expected = {key for key in declared if declared[key] is is_tensor}
        if given != expected:
            kind = "tensors" if is_tensor else "fields"
            raise ValueError(f"{name} has the {kind} {sorted(expected)}, and not {sorted(map(str, given))}")
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{key} is {type(tensor).__name__}, not a tensor")
    return PRIMITIVES[name](**{key: fields[key] for key in fields if key != "name"}, **tensors)


def _expect_float(field: str, tensor: Tensor, *, dims: int) -> None:
    square = tensor.shape[-1:] == tensor.shape[-2:-1]
    if tensor.ndim != dims or not square or tensor.numel() == 0 or not tensor.is_floating_point():
        wanted = {2: "[K, K]", 3: "[N, K, K]"}[dims]
        raise ValueError(f"{field} is {tensor.dtype} {list(tensor.shape)}, not floating point {wanted}")
