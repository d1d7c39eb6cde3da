"""A view of a checkpoint with a rotation of the residual stream (R1) and of the value heads (R2) in its weights.

With h' = h R1 the whole stream is rotated, and with v' = v R2 every value head, without any work at inference (QuaRot,
arXiv 2404.00456, section 4; SpinQuant, arXiv 2405.16406, section 3). RMSNorm commutes with a rotation after its weight
g is folded into the linears that read it, so

    embedding  E R1           linears that read the stream  W diag(g) R1        norms  1
    head       W diag(g) R1   linears that write to it      R1ᵀ W,  b R1
    values     R2ᵀ W, b R2 in each head                     attention output  W R2 in each head's columns

Nothing is mean-centered, because that is not exact for RMSNorm. Arithmetic is in fp64, and rounded once.

Shapes: D hidden size, K head size, L blocks, O out features, I in features, C rows of a chunk.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from quant_engine.errors import UnsupportedPolicy
from quant_engine.interface.architectures import Architecture, ProducerKind, architecture_of
from quant_engine.models.configuration import model_configuration
from quant_engine.models.rotation import ResidualRotation, check_orthogonal
from quant_engine.models.sites import Site, head_size, model_sites
from quant_engine.models.weight_source import WeightSource

_CHUNK_ROWS: Final = 8192
"""Rows rotated at a time, so that an embedding is never held in fp64 as a whole."""


@dataclass(frozen=True)
class _Rewrite:
    """How one tensor is changed: the steps in the order of the fields. ``block`` chooses the R2.

    Attributes:
        source: the stored tensor from which it is computed.
        norm_fill: for the weight of a norm that is folded into its readers: the value that makes it multiply by 1.
        norm: the norm whose weight multiplies the columns.
        stream_columns: the columns are channels of the stream, and are multiplied: · R1.
        stream_rows: the rows are channels of the stream, and are multiplied: R1ᵀ ·.
        head_columns: the columns are channels of heads, and are multiplied in each head: · R2.
        value_rows: how many of the last rows are channels of value heads; they are multiplied in each head: R2ᵀ ·.
    """

    source: str
    block: int = 0
    norm_fill: float | None = None
    norm: str | None = None
    stream_columns: bool = False
    stream_rows: bool = False
    head_columns: bool = False
    value_rows: int = 0

    @property
    def row_by_row(self) -> bool:
        """Whether each row can be rewritten independently of the others."""
        return not (self.stream_rows or self.value_rows)


@dataclass(frozen=True)
class RotatedSource:
    """The model of ``base`` with ``rotation`` fused in: the same function, with an untied head and norms of one.

    A :class:`WeightSource`. Tensors are rewritten when they are read, and the results are not stored, so each reading
    costs a product with R1.

    Raises (from the constructor):
        UnsupportedArchitecture: the model is of no supported class.
        UnsupportedPolicy: it has norms between its linears and the stream, or the matrices do not have its sizes.
        NumericalInstability: a matrix is not orthogonal.
    """

    base: WeightSource
    rotation: ResidualRotation

    def __post_init__(self) -> None:
        """Refuse a model or matrices with which the rotated model would not be the same function."""
        if self._architecture.post_norms:
            raise UnsupportedPolicy(
                detail=f"A rotation of the residual stream can not be fused into a {self._architecture.class_name}: "
                f"its blocks have norms after their linears ({', '.join(self._architecture.post_norms)}).",
                hint="Use online rotations: policy.online 'all'.",
            )
        configuration = self._configuration
        wanted = (configuration.hidden_size, configuration.hidden_size)
        check_orthogonal("R1", self.rotation.r1_DD, wanted)
        if self.rotation.r2_LKK is not None:
            size = head_size(configuration)
            check_orthogonal("R2", self.rotation.r2_LKK, (configuration.num_hidden_layers, size, size))

    @property
    def directory(self) -> Path:
        """Where the stored checkpoint and its tokenizer are."""
        return self.base.directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the stored checkpoint with the head untied."""
        # The head is folded with the final norm and the embedding is not, so they are two matrices now.
        return self.base.config | {"tie_word_embeddings": False}

    @cached_property
    def tensors(self) -> dict[str, Path]:
        """The stored tensors and the head, each with the file that its values come from."""
        head, stored = f"{self._architecture.head}.weight", dict(self.base.tensors)
        return stored | {head: stored[self._rewrites[head].source]} if self._tied else stored

    @property
    def dtype(self) -> torch.dtype:
        """The stored weights' type."""
        return self.base.dtype

    @property
    def computed_dtype(self) -> torch.dtype:
        """The type in which the original computes."""
        return self.base.computed_dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weights, and of the head where it was tied."""
        configuration = self._configuration
        head = configuration.vocab_size * configuration.hidden_size * self.dtype.itemsize
        return self.base.weight_bytes + (head if self._tied else 0)

    def stored_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the tensors of the checkpoint that reading ``names`` uses, folded norms included."""
        names = list(names)
        rewrites = [self._rewrites[name] for name in names if name in self._rewrites]
        plain = [name for name in names if name not in self._rewrites]
        norms = [rewrite.norm for rewrite in rewrites if rewrite.norm is not None]
        return self.base.stored_names([*plain, *norms, *(rewrite.source for rewrite in rewrites)])

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Attach what the stored checkpoint attaches."""
        self.base.attach(module, prefix=prefix, device=device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the stored model's fingerprint and the rotation's."""
        return hashlib.sha256(f"{self.base.fingerprint} rotated by {self.rotation.fingerprint}".encode()).hexdigest()

    def read(
        self, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the named tensors, rotated, as ``dtype`` on ``device``; tensors without a rewrite are read as stored.

        Raises:
            InvalidModel, ModelNotFound: see :class:`CheckpointSource`.
        """
        names = list(names)
        plain = [name for name in names if name not in self._rewrites]
        read = self.base.read(plain, dtype=dtype, device=device)
        # Stored half precision is exact in fp32, which costs half of what fp64 would.
        wide = torch.promote_types(dtype, torch.float32)
        for name in names:
            if name in self._rewrites:
                read[name] = self._rewritten(self._rewrites[name], wide, device).to(dtype)
        # In the order of the request, as every source gives them.
        return {name: read[name] for name in names}

    def _rewritten(self, rewrite: _Rewrite, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        stored = self.base.read([rewrite.source], dtype=dtype, device=device)[rewrite.source]
        if rewrite.norm_fill is not None:
            return torch.full_like(stored, rewrite.norm_fill)
        norm_D = None
        if rewrite.norm is not None:
            norm_D = self.base.read([rewrite.norm], dtype=torch.float64, device=device)[rewrite.norm]
            norm_D = norm_D + self._architecture.norm_offset
        r1_DD = self.rotation.r1_DD.to(stored.device, torch.float64)
        r2_LKK = self.rotation.r2_LKK
        r2_KK = None if r2_LKK is None else r2_LKK[rewrite.block].to(stored.device, torch.float64)
        # A product from the left needs all rows together.
        if not rewrite.row_by_row:
            return _rotated(stored, rewrite, norm_D, r1_DD, r2_KK).to(dtype)
        chunks = [_rotated(rows_CI, rewrite, norm_D, r1_DD, r2_KK).to(dtype) for rows_CI in stored.split(_CHUNK_ROWS)]
        return torch.cat(chunks)

    @cached_property
    def _architecture(self) -> Architecture:
        return architecture_of(self.base.config)

    @cached_property
    def _configuration(self) -> Any:
        return model_configuration(self.base.config)

    @property
    def _tied(self) -> bool:
        return bool(self._configuration.tie_word_embeddings)

    @cached_property
    def _rewrites(self) -> dict[str, _Rewrite]:
        """The rewrite of each tensor that is changed, by the tensor's name."""
        architecture = self._architecture
        embedding, norm, head = (
            f"{module}.weight" for module in (architecture.embedding, architecture.final_norm, architecture.head)
        )
        # With this stored weight a norm multiplies by exactly 1.
        norm_fill = 1.0 - architecture.norm_offset
        rewrites = {
            embedding: _Rewrite(embedding, stream_columns=True),
            norm: _Rewrite(norm, norm_fill=norm_fill),
            head: _Rewrite(embedding if self._tied else head, norm=norm, stream_columns=True),
        }
        for site in model_sites(self._configuration, architecture):
            # A site after a norm is read from the stream; the readers of the other sites write to it.
            if site.kind is ProducerKind.NORM_WEIGHT:
                rewrites |= _stream_input(site, norm_fill)
            else:
                rewrites |= _stream_output(site)
        # Second, because the value rows' and o_proj's rewrites of the stream have to exist already.
        if self.rotation.r2_LKK is not None:
            for site in model_sites(self._configuration, architecture):
                if site.kind is ProducerKind.VALUE_ROWS:
                    _add_value_heads(rewrites, site)
        return rewrites


def _stream_input(site: Site, norm_fill: float) -> dict[str, _Rewrite]:
    """Return the rewrites of the linears that read the stream through a norm, and of the norm."""
    norm = f"{site.producer}.weight"
    readers = [f"{reader}.weight" for reader in site.all_readers]
    rewrites = {name: _Rewrite(name, site.block, norm=norm, stream_columns=True) for name in readers}
    return rewrites | {norm: _Rewrite(norm, site.block, norm_fill=norm_fill)}


def _stream_output(site: Site) -> dict[str, _Rewrite]:
    """Return the rewrites of the linears that write to the stream.

    They include a bias; where a model has none, nobody reads it.
    """
    names = [f"{reader}.{parameter}" for reader in site.all_readers for parameter in ("weight", "bias")]
    return {name: _Rewrite(name, site.block, stream_rows=True) for name in names}


def _add_value_heads(rewrites: dict[str, _Rewrite], site: Site) -> None:
    """Add R2 to the rewrites: in the rows that make the values, and in the columns of the linears that read them."""
    for reader in site.all_readers:
        name = f"{reader}.weight"
        rewrites[name] = replace(rewrites[name], head_columns=True)
    for parameter in ("weight", "bias"):
        name = f"{site.producer}.{parameter}"
        rewrite = rewrites.get(name, _Rewrite(name, site.block))
        # Query heads of one group share a value head (GQA), so there are fewer value rows than features.
        rewrites[name] = replace(rewrite, value_rows=site.features // site.tied)


def _rotated(stored: Tensor, rewrite: _Rewrite, norm_D: Tensor | None, r1_DD: Tensor, r2_KK: Tensor | None) -> Tensor:
    """Return a weight [O, I] or a bias [O] after its rewrite, in fp64."""
    value = stored.to(torch.float64)
    if norm_D is not None:
        value = value * norm_D
    if rewrite.stream_columns:
        value = value @ r1_DD
    if rewrite.head_columns and r2_KK is not None:
        value = (value.unflatten(-1, (-1, len(r2_KK))) @ r2_KK).flatten(-2)  # [O, heads, K] → [O, I]
    if rewrite.stream_rows:
        value = r1_DD.T @ value
    if rewrite.value_rows and r2_KK is not None:
        first = len(value) - rewrite.value_rows
        heads = value[first:].unflatten(0, (-1, len(r2_KK)))  # [heads, K, I], or [heads, K] for a bias
        rotated = torch.einsum("kj,hk...->hj...", r2_KK, heads).flatten(0, 1)
        value = torch.cat([value[:first], rotated])
    return value
