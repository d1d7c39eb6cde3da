"""Fuse a site's diagonal into the module that produces the tensor, and its inverse into every linear that reads it.

Y = X Wᵀ = (X Λ⁻¹)(W Λ)ᵀ with Λ = diag(s) (SmoothQuant, arXiv 2211.10438, equation 3). The producer's rows, or the
norm's weight, take Λ⁻¹. This is exact, because the operations between (RMSNorm's weight, attention's averaging,
act(gate)·up) are linear in them. The weight of a norm that multiplies by c + w becomes (c + w)/s − c. In a fused
linear only the rows that make the tensor change.

A permutation Π of the channels between the linears of a feed-forward is fused too (DuQuant, arXiv 2406.01721, has it
online): act(gate)·up is computed channel by channel, so the rows of gate and up, and the columns of down, may have any
common order.

Shapes: D in features, O out features, P parameters of the diagonal (P < D where heads tie them).
"""

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.interface.architectures import ProducerRows
from quant_engine.models.sites import Site


def fuse_scales(state: dict[str, Tensor], site: Site, scales_D: Tensor) -> None:
    """Divide the producer by ``scales_D``, multiply the readers' columns by it, and replace these entries of ``state``.

    ``state`` maps full parameter names to fp32 tensors; the tensors themselves are not modified. Arithmetic is in fp64.

    Raises:
        NumericalInstability: a scale is not a positive finite number, or tied channels disagree.
    """
    s_D = scales_D.to(torch.float64)
    if not bool((torch.isfinite(s_D) & (s_D > 0)).all()):
        raise NumericalInstability(
            detail=f"The scales of {site.name} are not all positive and finite.",
            hint="Use a larger quantile or the l2 statistic, or a lower learning rate.",
        )
    index_D = site.tie_index().to(s_D.device)
    # One value for each parameter of the diagonal; tied channels have to agree on it.
    s_P = s_D.new_empty(int(index_D.max()) + 1).scatter_(0, index_D, s_D)
    if not torch.equal(s_P[index_D], s_D):
        raise NumericalInstability(
            detail=f"The scales of {site.name} differ between heads that share a value head.",
            hint="This is a defect of the engine: report it with the job's policy.",
        )
    inverse_P = s_P.reciprocal()
    for parameter in (f"{site.producer}.weight", f"{site.producer}.bias"):
        if parameter in state:
            state[parameter] = _produced(state[parameter], inverse_P, site)
    # All readers see the scaled tensor, also those that are not quantized.
    for reader in site.all_readers:
        weight = state[f"{reader}.weight"]
        state[f"{reader}.weight"] = (weight.to(torch.float64) * s_D[None, :]).to(weight.dtype)


def fuse_permutation(state: dict[str, Tensor], site: Site, index_D: Tensor) -> None:
    """Give the site's channels the order ``index_D``: in the rows of its producer and its partners, and in the columns
    of its readers. Replaces these entries of ``state``; the tensors themselves are not modified.

    Args:
        index_D: int64, position j takes channel ``index_D[j]``.
    """
    for name, index_O in fused_rows(site, index_D).items():
        for parameter in (f"{name}.weight", f"{name}.bias"):
            if parameter in state:
                state[parameter] = state[parameter][index_O.to(state[parameter].device)]
    for reader in site.all_readers:
        weight = state[f"{reader}.weight"]
        state[f"{reader}.weight"] = weight[:, index_D.to(weight.device)]


def fused_rows(site: Site, index_D: Tensor) -> dict[str, Tensor]:
    """Return the row order [O] of each linear that makes the site's tensor, where its channels have the order
    ``index_D``. A fused linear has the rows of two linears, and both get that order."""
    index_O = index_D.cpu()
    if site.rows is ProducerRows.LAST:
        index_O = torch.cat([index_O, index_O + len(index_O)])
    return dict.fromkeys((site.producer, *site.partners), index_O)


def _produced(parameter: Tensor, inverse_P: Tensor, site: Site) -> Tensor:
    """Return a producer's weight [O, I] or [O], or its bias [O], for a tensor that is multiplied by ``inverse_P``."""
    # A norm that adds an offset to its weight multiplies by the sum, so the sum is what has to be scaled.
    value = parameter.to(torch.float64) + site.norm_offset
    first = len(value) - len(inverse_P) if site.rows is ProducerRows.LAST else 0
    value[first:] *= inverse_P.reshape(-1, *[1] * (value.ndim - 1))  # [P, 1] for a weight matrix, [P] for a vector
    return (value - site.norm_offset).to(parameter.dtype)
