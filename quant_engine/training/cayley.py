"""Stochastic gradient descent on orthogonal matrices with the Cayley transform.

Li, Fuxin and Todorovic, *Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform* (ICLR
2020, arXiv 2002.01113, algorithm 1); SpinQuant (arXiv 2405.16406, section 3) learns its rotations with it.
Shapes: [..., K, K].
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import torch
from torch import Tensor

_LARGEST_TURN: Final = 1.0
"""Bound on α ‖W‖_F, 2q with the paper's q = ½: a step turns no plane by more than about a radian."""
_EPSILON: Final = 1e-8  # avoids a division by zero where the gradient is zero


def cayley(skew_KK: Tensor) -> Tensor:
    """(I − A/2)⁻¹ (I + A/2) with A the skew part of ``skew_KK``: orthogonal, and I for A = 0.

    In the dtype of ``skew_KK``. Differentiable. (Cayley 1846.)
    """
    half_KK = 0.25 * (skew_KK - skew_KK.mT)  # A/2, with A = (skew − skewᵀ) / 2
    eye_KK = torch.eye(skew_KK.shape[-1], dtype=skew_KK.dtype, device=skew_KK.device)
    orthogonal_KK: Tensor = torch.linalg.solve(eye_KK - half_KK, eye_KK + half_KK)
    return orthogonal_KK


class CayleySGD(torch.optim.Optimizer):
    """X ← cayley(α W) X, where W is the skew matrix of the momentum in X's tangent space; X stays orthogonal.

    The paper approximates the Cayley transform by a fixed-point iteration. Here it is solved. This costs little
    compared with a model's backward pass, and X stays orthogonal up to rounding. Use fp64 parameters for long runs.

    Args:
        params: orthogonal matrices [..., K, K].
        lr: bound of α; the step is shorter where the gradient is large.
        momentum: β of the paper; SpinQuant uses none.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's has overloads
        """Update every parameter that has a gradient, and return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x_KK in group["params"]:
                if x_KK.grad is not None:
                    self._turn(x_KK, group)
        return loss

    def _turn(self, x_KK: Tensor, group: dict[str, Any]) -> None:
        state = self.state[x_KK]
        momentum_KK = -cast("Tensor", x_KK.grad)
        if "momentum" in state:
            momentum_KK += group["momentum"] * state["momentum"]
        # Algorithm 1: Ŵ = M Xᵀ − ½ X (Xᵀ M Xᵀ) and W = Ŵ − Ŵᵀ.
        half_KK = momentum_KK @ x_KK.mT
        half_KK = half_KK - 0.5 * x_KK @ (x_KK.mT @ half_KK)
        skew_KK = half_KK - half_KK.mT
        # Only the projection on the tangent space of X is stored: the rest of the momentum has no effect on a step.
        state["momentum"] = skew_KK @ x_KK
        norm = torch.linalg.matrix_norm(skew_KK, keepdim=True)
        rate = (_LARGEST_TURN / (norm + _EPSILON)).clamp(max=group["lr"])
        x_KK.copy_(cayley(rate * skew_KK) @ x_KK)
