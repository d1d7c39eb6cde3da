"""Correct a weight for the input that it really gets from the quantized layers before it.

The original layer maps X to X Wᵀ. After quantization the layers before it give X̂ instead. Before the weight is rounded,
it is moved to the least-squares solution for the original output on that input (the asymmetric calibration of GPTAQ,
arXiv 2504.02692; quantization error propagation, QEP, arXiv 2504.09629).

Shapes: T tokens, O output channels, I input channels.
"""

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.rounding.factor import cholesky, damped_hessian


def corrected_weight(w_OI: Tensor, cross_II: Tensor, hessian_II: Tensor, *, strength: float, damping: float) -> Tensor:
    """Return (1 − strength) W + strength W* with W* = argmin ‖X Wᵀ − X̂ W*ᵀ‖² + λ‖W* − W‖², in the dtype of W.

    W* − W = W (C − H)(H + λI)⁻¹, which is zero where nothing before the layer was quantized. The rows of W are
    independent, so weights that share an input may be stacked.

    Args:
        cross_II: C = Xᵀ X̂ [I, I]; its rows belong to the original input, its columns to the quantized one.
        hessian_II: H = X̂ᵀ X̂ [I, I], over the same tokens and with the same factor as C.
        strength: in [0, 1]; 0 returns W.
        damping: λ over the mean diagonal of H.

    Raises:
        NumericalInstability: a matrix is not finite, or the damped H is not positive definite.
    """
    if strength == 0.0:
        return w_OI
    # In fp64: C − H is a small difference of large sums.
    root_II = cholesky(damped_hessian(hessian_II, damping))
    gap_II = cross_II.to(torch.float64) - hessian_II.to(torch.float64)
    if not bool(torch.isfinite(gap_II).all()):
        raise NumericalInstability(
            detail="The product of a layer's original and quantized inputs is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    # (W* − W)ᵀ = (H + λI)⁻¹ (C − H)ᵀ Wᵀ, because H is symmetric.
    shift_IO = torch.cholesky_solve(gap_II.T @ w_OI.T.to(torch.float64), root_II)
    return (w_OI.to(torch.float64) + strength * shift_IO.T).to(w_OI.dtype)
