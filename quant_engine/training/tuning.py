"""Tune a rounded model on the predictions of the original one.

    loss = mean over predicted tokens of KL(original ‖ quantized)

AdamW without weight decay; the rate rises in a few steps and then follows a cosine. The result is the point with the
lowest loss on validation windows, or the start if no point is better.

Shapes: B windows of T tokens, V vocabulary, N predicted tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant_engine.errors import NumericalInstability
from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.policy import Tuning
from quant_engine.resume_state import State
from quant_engine.training.blocks import learning_rate_factor
from quant_engine.windows import Windows

_JUDGMENTS: Final = 6
"""How often a tuning is judged. Each judgment costs a forward of every validation window."""
_BETAS: Final = (0.9, 0.95)
"""A short memory of squared gradients, because there are few steps."""

Predictor = Callable[[int, Windows], Tensor]
"""Returns the logits [1, T, V] of one window, given its number and itself."""


@dataclass(frozen=True, kw_only=True)
class TuningPoint:
    """One judgment: the step's loss on its own windows, and the loss on validation windows."""

    step: int
    loss: float
    validation_loss: float


@dataclass(kw_only=True)
class TunedModel:
    """What tuning achieved; the parameters have the values of ``best_step``, which is 0 for the start."""

    start_loss: float
    best_loss: float
    best_step: int = 0
    curve: list[TuningPoint] = field(default_factory=list)


def tune(
    parameters: Sequence[nn.Parameter],
    predict: Predictor,
    original: Predictor,
    windows: Windows,
    fit: int,
    tuning: Tuning,
    *,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    execution: Execution = IN_MEMORY,
) -> TunedModel:
    """Train ``parameters``, and leave their best values in them.

    Args:
        parameters: at least one, all of which ``predict`` depends on.
        predict, original: the quantized and the original model.
        windows: the first ``fit`` of them are for steps, the others judge.
        seed: of the draws. Equal arguments and thread counts give equal bits.
        on_step: called with the number of each finished step; may raise to stop.
        execution: stores the parameters and the optimizer's moments at each judgment.

    Raises:
        NumericalInstability: the loss is not finite.
    """
    return _Tuner(parameters, predict, original, windows, fit, tuning, execution).run(seed, on_step or (lambda _: None))


class _Tuner:
    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        predict: Predictor,
        original: Predictor,
        windows: Windows,
        fit: int,
        tuning: Tuning,
        execution: Execution,
    ) -> None:
        self._parameters, self._predict, self._original = list(parameters), predict, original
        self._windows, self._fit, self._tuning, self._execution = windows, fit, tuning, execution
        self._optimizer = torch.optim.AdamW(self._parameters, lr=tuning.learning_rate, betas=_BETAS, weight_decay=0.0)
        self._best: list[Tensor] = []

    def run(self, seed: int, on_step: Callable[[int], None]) -> TunedModel:
        state = self._execution.latest()
        found = self._begin() if state is None else self._restore(state)
        done = 0 if state is None else state.done
        if done:
            on_step(done)
        draws = self._draws(torch.Generator().manual_seed(seed))
        cadence = max(1, self._tuning.steps // _JUDGMENTS)
        for step in range(1, self._tuning.steps + 1):
            drawn = next(draws)  # a finished step's draw is repeated, so that a resumed attempt draws the same
            if step <= done:
                continue
            loss = self._step(drawn, step)
            if step % cadence == 0 or step == self._tuning.steps:
                self._judge(found, step, loss)
                self._execution.keep(step, self._kept(found))
            on_step(step)
        self._load(self._best)
        return found

    def _begin(self) -> TunedModel:
        loss = self._validation_loss()
        self._best = [each.detach().clone() for each in self._parameters]
        return TunedModel(start_loss=loss, best_loss=loss)

    def _step(self, drawn: Sequence[int], step: int) -> float:
        """Make one update and return the loss before it."""
        rising = min(1.0, step / max(self._tuning.warmup, 1))
        for group in self._optimizer.param_groups:
            group["lr"] = self._tuning.learning_rate * rising * learning_rate_factor(step - 1, self._tuning.steps)
        self._optimizer.zero_grad()
        total, predicted = 0.0, sum(self._windows[slice(i, i + 1)].predicted for i in drawn)
        for index in drawn:
            with torch.enable_grad():
                loss = self._divergence(index) / predicted
                loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
            total += float(loss.detach())
        self._optimizer.step()
        return _finite(total)

    def _judge(self, found: TunedModel, step: int, loss: float) -> None:
        error = self._validation_loss()
        found.curve.append(TuningPoint(step=step, loss=loss, validation_loss=error))
        if error < found.best_loss:
            found.best_loss, found.best_step = error, step
            self._best = [each.detach().clone() for each in self._parameters]

    @torch.no_grad()
    def _validation_loss(self) -> float:
        judged = range(self._fit, len(self._windows))
        return _finite(sum(float(self._divergence(i)) for i in judged) / self._windows[self._fit :].predicted)

    def _divergence(self, index: int) -> Tensor:
        """Σ over a window's predicted tokens of KL(original ‖ quantized)."""
        window = self._windows[slice(index, index + 1)]
        counted_N = window.predicted_ST[0, 1:]
        with torch.no_grad():
            wanted_NV = functional.log_softmax(self._original(index, window)[0, :-1][counted_N].float(), dim=-1)
        given_NV = functional.log_softmax(self._predict(index, window)[0, :-1][counted_N].float(), dim=-1)
        return functional.kl_div(given_NV, wanted_NV, reduction="sum", log_target=True)

    def _draws(self, generator: torch.Generator) -> Iterator[list[int]]:
        """Yield the windows of each step, without replacement within an epoch."""
        count = min(self._fit, self._tuning.batch_samples)
        while True:
            order = torch.randperm(self._fit, generator=generator).tolist()
            for first in range(0, self._fit - count + 1, count):
                yield order[first : first + count]

    def _kept(self, found: TunedModel) -> dict[str, Tensor]:
        curve = [[point.step, point.loss, point.validation_loss] for point in found.curve]
        tensors = {
            "losses": torch.tensor([found.start_loss, found.best_loss, found.best_step], dtype=torch.float64),
            "curve": torch.tensor(curve, dtype=torch.float64),
        }
        for index, (parameter, best) in enumerate(zip(self._parameters, self._best, strict=True)):
            moments = self._optimizer.state[parameter]
            tensors |= {f"value.{index}": parameter.detach(), f"best.{index}": best}
            tensors |= {f"{key}.{index}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        return tensors

    def _restore(self, state: State) -> TunedModel:
        def part(name: str) -> list[Tensor]:
            return [state.tensors[f"{name}.{i}"].clone() for i in range(len(self._parameters))]

        self._load(part("value"))
        self._best = [each.to(p.device) for each, p in zip(part("best"), self._parameters, strict=True)]
        for parameter, step, first, second in zip(
            self._parameters, part("step"), part("exp_avg"), part("exp_avg_sq"), strict=True
        ):
            moments = {"exp_avg": first.to(parameter.device), "exp_avg_sq": second.to(parameter.device)}
            self._optimizer.state[parameter] = {"step": step, **moments}
        start, best, best_step = state.tensors["losses"].tolist()
        curve = [
            TuningPoint(step=int(step), loss=loss, validation_loss=error)
            for step, loss, error in state.tensors["curve"].tolist()
        ]
        return TunedModel(start_loss=start, best_loss=best, best_step=int(best_step), curve=curve)

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise NumericalInstability(
            detail="The divergence from the original model's predictions is not finite.",
            hint="Lower tuning.learning_rate, or check the model's weights for NaN or infinity.",
        )
    return loss
