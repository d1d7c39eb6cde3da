"""A site's diagonal, fused: into the module that produces the tensor, and out of every linear that reads it.

Y = X Wᵀ = (X Λ⁻¹)(W Λ)ᵀ with Λ = diag(s) (SmoothQuant, arXiv 2211.10438, equation 3). The producer's rows, or the
norm's weight, take Λ⁻¹; it is exact because what lies between (RMSNorm's weight, attention's averaging, act(gate)·up)
is linear in them.

Shapes: D in features, O out features.
"""

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.models.sites import Site


def fuse_scales(state: dict[str, Tensor], site: Site, scales_D: Tensor) -> None:
    """Divide the producer by ``scales_D`` and multiply the readers' columns by it, in place of ``state``'s entries.

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
    s_P = s_D.new_empty(int(index_D.max()) + 1).scatter_(0, index_D, s_D)
    if not torch.equal(s_P[index_D], s_D):
        raise NumericalInstability(
            detail=f"The scales of {site.name} differ between heads that share a value head.",
            hint="This is a defect of the engine: report it with the job's policy.",
        )
    weight = f"{site.producer}.weight"
    inverse_P = s_P.reciprocal()
    rows = inverse_P[:, None] if state[weight].ndim == 2 else inverse_P
    state[weight] = _scaled(state[weight], rows)
    bias = f"{site.producer}.bias"
    if bias in state:
        state[bias] = _scaled(state[bias], inverse_P)
    for reader in site.all_readers:
        state[f"{reader}.weight"] = _scaled(state[f"{reader}.weight"], s_D[None, :])


def _scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    return (tensor.to(torch.float64) * factor).to(tensor.dtype)
