"""Learn the rotations R1 of the residual stream and R2 of the value heads (SpinQuant, arXiv 2405.16406, section 3).

The loss is the next-token cross-entropy of the model with rounded activations and unrounded weights. Weights are
rounded later, for example by GPTQ, and rotations that suit rounding to nearest may not suit GPTQ. The optimizer is
Cayley SGD with a linear decay of the rate.

Shapes: S windows of T tokens, D hidden size, L blocks, K head size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from quant_engine.errors import NumericalInstability
from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.models import ResidualRotation, Site
from quant_engine.policy import RotationTraining, SiteQuantization
from quant_engine.resume_state import State
from quant_engine.training.cayley import CayleySGD
from quant_engine.training.rotated_inputs import LiveRotations, rounded_inputs
from quant_engine.windows import IGNORED, Windows


def train_rotation(
    model: PreTrainedModel,
    sites: Sequence[Site],
    start: ResidualRotation,
    windows: Windows,
    training: RotationTraining,
    quantization: Mapping[str, SiteQuantization],
    *,
    online: bool,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    execution: Execution = IN_MEMORY,
) -> ResidualRotation:
    """Learn R1 and R2, starting from ``start``.

    Args:
        model: the whole model in fp32, none of whose parameters requires a gradient; unchanged afterwards.
        sites: the sites whose readers are quantized.
        start: orthogonal rotations; without an R2 none is learned.
        windows: what to learn on. ``training.batch_samples`` windows are drawn for a step, each once before
            any is drawn again.
        quantization: the number formats of each site, by its name; only those of activations are used.
        online: whether the attention's output and the feed-forward's inner tensor get an online Hadamard.
        seed: the seed of the draws. Equal arguments and thread counts give equal bits.
        on_step: called with the number of each finished step; may raise to stop. A resumed attempt first calls it
            with the number of the last step of the attempt before.
        execution: stores the rotations and their momentum after every step, and continues from a stored state. With
            little memory, windows go through the model one at a time and their gradients are added. The result is
            then the same up to rounding, and has the same bits where a step draws one window.

    Returns:
        R1 and R2 in fp64, orthogonal up to rounding, on the device of ``model``. They are those of ``start`` if the
        learning did not lower the loss on the windows.

    Raises:
        NumericalInstability: the loss is not finite.
    """
    windows = windows.to(model.device)
    # fp64, so that many steps leave the matrices orthogonal; the model uses copies in its own type.
    given = [each.to(model.device, torch.float64) for each in (start.r1_DD, start.r2_LKK) if each is not None]
    learned = [each.clone().requires_grad_() for each in given]
    optimizer = CayleySGD(learned, lr=training.learning_rate)
    draws = _draws(windows, training.batch_samples, torch.Generator().manual_seed(seed))
    rotations = _live(given, model.dtype)
    activations = {name: each.activations for name, each in quantization.items()}
    state = execution.latest()
    done = 0 if state is None else state.done
    with rounded_inputs(model, sites, rotations, activations, online=online):
        start_loss = _mean_loss(model, windows) if state is None else _restore(state, optimizer, learned)
        if done and on_step is not None:
            on_step(done)
        # The draws of finished steps are repeated and skipped, so a resumed attempt draws the same windows.
        for step, drawn in enumerate(islice(draws, done, training.steps), start=done + 1):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * (1.0 - (step - 1) / training.steps)
            optimizer.zero_grad()
            for part in drawn.split(execution.together(len(drawn))):
                _descend(model, rotations, learned, part, share=part.predicted / drawn.predicted)
            optimizer.step()
            execution.keep(step, _kept(optimizer, learned, start_loss))
            if on_step is not None:
                on_step(step)
        found = [each.detach() for each in learned]
        # On all windows, as the start was, and not on those of the last step.
        _follow(rotations, found)
        best = found if _mean_loss(model, windows) < start_loss else given
    return ResidualRotation(r1_DD=best[0], r2_LKK=best[1] if len(best) > 1 else None)


def next_token_loss(model: PreTrainedModel, windows: Windows) -> Tensor:
    """The mean cross-entropy of every predicted token, given the tokens before it in its window."""
    logits_STV = model(windows.ids_ST, use_cache=False).logits[:, :-1]
    targets_N = windows.targets()[:, 1:].flatten()
    return functional.cross_entropy(logits_STV.flatten(0, 1).float(), targets_N, ignore_index=IGNORED)


def _descend(
    model: PreTrainedModel, rotations: LiveRotations, learned: list[Tensor], windows: Windows, *, share: float
) -> None:
    """Add the gradient of the loss on these windows, times ``share``, to the gradients of ``learned``."""
    with torch.enable_grad():
        _follow(rotations, learned)
        loss = next_token_loss(model, windows)
        (loss * share).backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
    _finite(float(loss.detach()))


def _kept(optimizer: CayleySGD, learned: Sequence[Tensor], start_loss: float) -> dict[str, Tensor]:
    """The tensors of a state: everything that the steps so far changed. The draws follow from the step number."""
    tensors = {"start_loss": torch.tensor(start_loss, dtype=torch.float64)}
    for index, each in enumerate(learned):
        tensors[f"learned.{index}"] = each
        tensors[f"momentum.{index}"] = optimizer.state[each]["momentum"]
    return tensors


def _restore(state: State, optimizer: CayleySGD, learned: Sequence[Tensor]) -> float:
    """Load what :func:`_kept` returned, and return the loss at the start."""
    with torch.no_grad():
        for index, each in enumerate(learned):
            each.copy_(state.tensors[f"learned.{index}"])
            optimizer.state[each]["momentum"] = state.tensors[f"momentum.{index}"].to(each.device, copy=True)
    return float(state.tensors["start_loss"])


def _live(matrices: Sequence[Tensor], dtype: torch.dtype) -> LiveRotations:
    cast = [each.to(dtype) for each in matrices]
    return LiveRotations(cast[0], cast[1] if len(cast) > 1 else None)


def _follow(rotations: LiveRotations, matrices: Sequence[Tensor]) -> None:
    """Make the model use these rotations, in its own precision."""
    current = _live(matrices, rotations.r1_DD.dtype)
    rotations.r1_DD, rotations.r2_LKK = current.r1_DD, current.r2_LKK


def _mean_loss(model: PreTrainedModel, windows: Windows) -> float:
    # One window at a time, which limits the memory for logits. Each counts by the tokens that it predicts.
    shares = [each.predicted / (windows.length - 1) for each in windows.split(1)]
    with torch.no_grad():
        losses = [float(next_token_loss(model, each)) for each in windows.split(1)]
    return _finite(sum(loss * share for loss, share in zip(losses, shares, strict=True)) / sum(shares))


def _draws(windows: Windows, count: int, generator: torch.Generator) -> Iterator[Windows]:
    """Yield the windows of each step, without replacement within an epoch."""
    samples = len(windows)
    count = min(count, samples)
    while True:
        order = torch.randperm(samples, generator=generator)
        for first in range(0, samples - count + 1, count):
            yield windows[order[first : first + count].to(windows.ids_ST.device)]


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise NumericalInstability(
            detail="The language-model loss in the training of rotations is not finite.",
            hint="Lower training.learning_rate, or check the model's weights for NaN or infinity.",
        )
    return loss
