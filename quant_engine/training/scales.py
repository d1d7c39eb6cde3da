"""Learn channel scales (arXiv 2606.09927, *trainable smooth rotation*).

    min over θ of Ẽ = ‖Y − Q(X Λ⁻¹ Hᵀ) Q(W Λ Hᵀ)ᵀ‖_F / (‖Y‖_F + ε),   Λ = g · diag(softplus(θ) + 1e-5)

by AdamW without weight decay, with a linear warm-up and a cosine decay. Gradients ignore only ``round``. g is the
geometric mean of the start. Ẽ does not depend on it, and with it one learning rate means the same on every layer.

A step uses a minibatch of tokens and of output channels, drawn so that the sum of squares under the root is unbiased
(:mod:`quant_engine.training.sampling`); ``batch_tokens`` null is the paper's full batch. The result is the step with
the lowest error on validation tokens, or the start if no step is better.

Shapes: T tokens, I = D input channels, O output channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from quant_engine.evaluation.layer_errors import layer_errors
from quant_engine.policy import SiteQuantization, Training, WeightQuantization
from quant_engine.training.objective import Batch, Batches, prepare_batches
from quant_engine.training.scale_parameter import scales_from, theta_from
from quant_engine.transforms import SitePlan

# Chosen on SmolLM2-135M's down_proj: all 576 outputs in a step gave the same error at more than twice the time, and a
# rarer judgment missed the good steps that the rounding of a few massive tokens makes.
_BATCH_OUTPUTS: Final = 192
_JUDGE_TOKENS: Final = 1024
_JUDGE_OUTPUTS: Final = 512
_JUDGE_EVERY: Final = 10
_FINALISTS: Final = 3


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One judgment: ``loss`` is the step's Ẽ on its batch, ``validation_error`` estimates E on validation tokens."""

    learning_rate: float
    step: int
    loss: float
    validation_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedScales:
    """The result of training the scales of one site.

    Attributes:
        plan: the plan with the learned scales, or the start unchanged if no step was better.
        best_step: the step that ``plan`` comes from; 0 for the start.
        learning_rate: the rate of the descent that reached ``best_step``; None for the start.
        validation_error: E of ``plan`` on all validation tokens.
        start_error: E of the start on them; never below ``validation_error``.
        curve: every judgment, in order, one learning rate after the other.
    """

    plan: SitePlan
    best_step: int
    learning_rate: float | None
    validation_error: float
    start_error: float
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    """A plan, the step it comes from, and its E (estimated or exact) on validation tokens."""

    plan: SitePlan
    error: float
    step: int = 0
    learning_rate: float | None = None


def train_scales(
    x_fit_TI: Tensor,
    x_val_TI: Tensor,
    w_OI: Tensor,
    start_plan: SitePlan,
    training: Training,
    quantization: SiteQuantization,
    *,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> TrainedScales:
    """Train one site's scales with each of ``training.learning_rates``, and return the best of all.

    Args:
        x_fit_TI: the tokens for the gradients.
        x_val_TI: the tokens that steps are judged on.
        w_OI: the rows of every linear that reads the site.
        start_plan: the transform to start from, and the result if nothing is better. It already follows
            ``training.start``.
        training: steps, schedule, batches and rates.
        seed: the seed of the batches. Equal arguments and thread counts give equal bits.
        on_step: called with the number of each finished step, from 1 again for each rate; may raise to stop.

    Raises:
        ValueError: ``start_plan`` has no scales.
        NumericalInstability: the inputs, or what training made of them, are not finite.
        UnsupportedPolicy: ``weights.group_size`` does not divide I.
    """
    start = _Candidate(plan=start_plan, error=_error(x_val_TI, w_OI, start_plan, quantization))
    generator = torch.Generator().manual_seed(seed)
    # One sample of the validation tokens for all judgments, so that their estimates can be compared.
    judge = prepare_batches(
        x_val_TI,
        w_OI,
        start_plan,
        quantization,
        tokens=_JUDGE_TOKENS,
        outputs=_outputs(_JUDGE_OUTPUTS, w_OI, quantization.weights),
    ).draw(generator)
    batches = _training_batches(x_fit_TI, w_OI, start_plan, quantization, training)

    finalists: list[_Candidate] = []
    curve: list[CurvePoint] = []
    for rate in training.learning_rates:
        descent = _Descent(
            start=start_plan, training=training, quantization=quantization, judge=judge, learning_rate=rate
        )
        finalists += descent.run(batches, generator, on_step or (lambda _: None))
        curve += descent.curve
    # The estimate that ranked the finalists comes from a sample; the final choice uses all validation tokens.
    judged = [replace(each, error=_error(x_val_TI, w_OI, each.plan, quantization)) for each in finalists]
    best = min([start, *judged], key=lambda each: each.error)
    return TrainedScales(
        plan=best.plan,
        best_step=best.step,
        learning_rate=best.learning_rate,
        validation_error=best.error,
        start_error=start.error,
        curve=tuple(curve),
    )


class _Descent:
    """One run of the optimizer from ``start``, with its best judged steps."""

    def __init__(
        self, *, start: SitePlan, training: Training, quantization: SiteQuantization, judge: Batch, learning_rate: float
    ) -> None:
        self._start, self._training, self._quantization = start, training, quantization
        self._judge, self._rate = judge, learning_rate
        start_D = _scales_of(start)
        self._mean = float(start_D.double().log().mean().exp())
        self._theta_D = theta_from(start_D / self._mean).requires_grad_()
        self._bounds = _theta_bounds(start_D / self._mean, training.max_log_ratio)
        self.curve: list[CurvePoint] = []

    def run(self, batches: Batches, generator: torch.Generator, on_step: Callable[[int], None]) -> list[_Candidate]:
        """Take steps until their number or the patience is used up; return the best judged steps, the best first."""
        training, finalists = self._training, list[_Candidate]()
        optimizer = torch.optim.AdamW([self._theta_D], lr=self._rate, weight_decay=0.0)
        lowest, lowest_step = self._validation_error(self._start), 0
        cadence = min(_JUDGE_EVERY, training.patience)  # otherwise a short patience would end too late
        for step in range(1, training.steps + 1):
            loss = self._step(optimizer, batches.draw(generator), step, batches.norm)
            on_step(step)
            if step % cadence and step != training.steps:
                continue
            plan = self._start.with_scales(self._scales().detach(), "learned")
            error = self._validation_error(plan)
            self.curve.append(CurvePoint(learning_rate=self._rate, step=step, loss=loss, validation_error=error))
            finalists.append(_Candidate(plan=plan, error=error, step=step, learning_rate=self._rate))
            finalists = sorted(finalists, key=lambda each: each.error)[:_FINALISTS]
            if error < lowest:
                lowest, lowest_step = error, step
            if step - lowest_step >= training.patience:
                break
        return finalists

    def _step(self, optimizer: torch.optim.Optimizer, batch: Batch, step: int, norm: float) -> float:
        """Make one update and return the loss before it."""
        for group in optimizer.param_groups:
            group["lr"] = self._rate * learning_rate_factor(step - 1, self._training)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = batch.error(self._start.with_scales(self._scales(), "learned"), self._quantization) / norm
            loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
        optimizer.step()
        if self._bounds is not None:
            # ``max_log_ratio`` limits how far a scale may move from its start.
            with torch.no_grad():
                self._theta_D.clamp_(*self._bounds)
        return float(loss.detach())

    def _scales(self) -> Tensor:
        return scales_from(self._theta_D) * self._mean

    def _validation_error(self, plan: SitePlan) -> float:
        with torch.no_grad():
            return float(self._judge.error(plan, self._quantization))


def learning_rate_factor(step: int, training: Training) -> float:
    """The factor of the learning rate at ``step`` (from 0): linear warm-up to 1, then half a cosine towards 0."""
    if step < training.warmup:
        return (step + 1) / (training.warmup + 1)
    done = (step - training.warmup) / max(training.steps - training.warmup, 1)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _error(x_TI: Tensor, w_OI: Tensor, plan: SitePlan, quantization: SiteQuantization) -> float:
    return layer_errors(x_TI, w_OI, plan, quantization.weights, quantization.activations).error


def _training_batches(
    x_TI: Tensor, w_OI: Tensor, plan: SitePlan, quantization: SiteQuantization, training: Training
) -> Batches:
    tokens, outputs = x_TI.shape[0], w_OI.shape[0]
    if training.batch_tokens is not None:
        tokens, outputs = training.batch_tokens, _outputs(_BATCH_OUTPUTS, w_OI, quantization.weights)
    return prepare_batches(x_TI, w_OI, plan, quantization, tokens=tokens, outputs=outputs)


def _outputs(wanted: int, w_OI: Tensor, weights: WeightQuantization) -> int:
    """The number of outputs in a batch: all of them where one scale is shared by all, ``wanted`` otherwise."""
    return w_OI.shape[0] if weights.granularity == "tensor" else wanted


def _theta_bounds(start_D: Tensor, max_log_ratio: float | None) -> tuple[Tensor, Tensor] | None:
    """The smallest and the largest θ, where log s = log s₀ ∓ δ; None without a limit."""
    if max_log_ratio is None:
        return None
    return theta_from(start_D * math.exp(-max_log_ratio)), theta_from(start_D * math.exp(max_log_ratio))


def _scales_of(plan: SitePlan) -> Tensor:
    if plan.scales_D is None:
        raise ValueError(f"a plan of kind {plan.kind.value!r} has no scales to train")
    return plan.scales_D
