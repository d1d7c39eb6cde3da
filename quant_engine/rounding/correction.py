"""A weight refitted to the input that the quantized layers before it really give.

The layer was meant to map X to X Wᵀ; once quantized, its predecessors give X̂ instead. Its weight is moved to the least
squares of the meant output on that input before it is rounded (the asymmetric calibration of GPTAQ, arXiv 2504.02692;
quantization error propagation, QEP, arXiv 2504.09629).

Shapes: T tokens, O output channels, I input channels.
"""

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.rounding.factor import cholesky, damped_hessian


def corrected_weight(w_OI: Tensor, cross_II: Tensor, hessian_II: Tensor, *, strength: float, damping: float) -> Tensor:
    """(1 − strength) W + strength W* with W* = argmin ‖X Wᵀ − X̂ W*ᵀ‖² + λ‖W* − W‖², in the dtype of W.

    W* − W = W (C − H)(H + λI)⁻¹, which is zero where nothing before the layer was quantized. The rows of W are
    independent: weights that share an input may be stacked.

    Args:
        cross_II: C = Xᵀ X̂ [I, I], rows of the original input, columns of the quantized.
        hessian_II: H = X̂ᵀ X̂ [I, I], over the same tokens and to the same factor as C.
        strength: in [0, 1]; 0 gives W back.
        damping: λ over the mean diagonal of H.

    Raises:
        NumericalInstability: a matrix is not finite, or the damped H is not positive definite.
    """
    if strength == 0.0:
        return w_OI
    root_II = cholesky(damped_hessian(hessian_II, damping))
    gap_II = cross_II.to(torch.float64) - hessian_II.to(torch.float64)
    if not bool(torch.isfinite(gap_II).all()):
        raise NumericalInstability(
            detail="The product of a layer's original and quantized inputs is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    shift_IO = torch.cholesky_solve(gap_II.T @ w_OI.T.to(torch.float64), root_II)
    return (w_OI.to(torch.float64) + strength * shift_IO.T).to(w_OI.dtype)
