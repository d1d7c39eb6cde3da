"""Train all transforms of a decoder block together, so that it approximates the full-precision block.

This is the training of FlatQuant (ICML 2025), OmniQuant (arXiv 2308.13137) and AffineQuant (arXiv 2403.12544), which
differ in what is learned. AdamW without weight decay minimizes the error of :mod:`quant_engine.training.block_loss`.
Each rate follows a cosine down to a hundredth of itself. Gradients pass straight through the rounding of weights and
activations. The result is the step with the lowest loss on validation samples, or the start if no step is better.

Shapes: B samples, T tokens, D hidden size, O outputs, I inputs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quant_engine.errors import NumericalInstability
from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.models import Site
from quant_engine.policy import BlockTraining, SiteQuantization
from quant_engine.training.block_loss import BlockBatch, WeightedBatch, median_square, weighted
from quant_engine.training.learnable import LearnablePlan, quantized_site
from quant_engine.training.mixture import Candidates, LearnableMixture
from quant_engine.training.quantized_linears import QuantizedSite, SwappedReaders
from quant_engine.transforms import SitePlan

_JUDGMENTS: Final = 12
"""How often a training is judged. Each judgment costs a forward of every validation sample."""
_LAST_RATE: Final = 0.01
"""The learning rate of the last step, as a share of the first."""


Start = SitePlan | Candidates
Learnable = LearnablePlan | LearnableMixture


@dataclass(frozen=True, kw_only=True)
class BlockPoint:
    """One judgment: the step's loss on its own samples, and the loss on validation samples."""

    step: int
    loss: float
    validation_loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedBlock:
    """The result of training a block.

    Attributes:
        plans: by the site's name; those of the start where no step was better.
        curve: every judgment, in order.
        start_loss, best_loss: on validation samples; the second is never above the first.
        best_step: the step that ``plans`` come from; 0 for the start.
        weights: of the candidates at that step, by the name of each site that has some. The largest is the plan's.
    """

    plans: dict[str, SitePlan]
    curve: tuple[BlockPoint, ...]
    start_loss: float
    best_loss: float
    best_step: int
    weights: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockUnderTraining:
    """The fixed part of a decoder block: its layer, its sites, their weights and their quantization.

    Attributes:
        layer: the decoder layer with its parameters in fp32, none of which require a gradient; called as
            ``layer(hidden_BTD, **arguments)``.
        prefix: the prefix of the layer's parameter names: ``model.layers.3.``.
        weights: [O, I] of every linear that reads a site, by its full name.
        quantization: the number formats of each site, by its name.
    """

    layer: nn.Module
    prefix: str
    sites: Sequence[Site]
    weights: Mapping[str, Tensor]
    quantization: Mapping[str, SiteQuantization]

    @property
    def device(self) -> torch.device:
        """The device that computes the block."""
        return next(iter(self.weights.values())).device

    def linears(self, site: Site) -> tuple[Tensor, ...]:
        """The weight [O, I] of each linear that reads ``site``."""
        return tuple(self.weights[reader] for reader in site.readers)

    def learnable(self, start: Mapping[str, Start], training: BlockTraining) -> dict[str, Learnable]:
        """Each site's plan, or its candidates, with their parameters exposed to an optimizer, by the site's name."""
        return {site.name: self._learnable(site, start[site.name], training) for site in self.sites}

    def _learnable(self, site: Site, start: Start, training: BlockTraining) -> Learnable:
        if isinstance(start, Candidates):
            plans = [self._learnable_plan(site, plan, training) for plan in start.plans]
            return LearnableMixture(plans, start.settings, training.steps)
        return self._learnable_plan(site, start, training)

    def _learnable_plan(self, site: Site, start: SitePlan, training: BlockTraining) -> LearnablePlan:
        return LearnablePlan(start, training, self.linears(site), self.quantization[site.name], tied=site.tied > 1)

    def quantized(self, plans: Mapping[str, SitePlan]) -> dict[str, QuantizedSite]:
        """Every site under its finished plan, by the site's name."""
        return {
            site.name: quantized_site(self.linears(site), plans[site.name], self.quantization[site.name])
            for site in self.sites
        }


def train_block(
    block: BlockUnderTraining,
    start: Mapping[str, Start],
    batches: Sequence[BlockBatch],
    validation: Sequence[BlockBatch],
    training: BlockTraining,
    *,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    execution: Execution = IN_MEMORY,
) -> TrainedBlock:
    """Train the transforms of all sites of a block together. The block's layer is unchanged afterwards.

    Args:
        start: a plan for each site, by its name, or the candidates that one is chosen among.
        batches: samples to take steps on, preferably one to a batch. ``training.batch_samples`` of them are drawn for
            a step, each once before any is drawn again.
        validation: samples that steps are judged on.
        seed: the seed of the draws. Equal arguments and thread counts give equal bits.
        on_step: called with the number of each finished step; may raise to stop.
        execution: with little memory, only one batch's activations are in memory at a time; the bits are the same.
            Batches may lie in the memory of the CPU. No state is stored: after a kill a block is trained again from
            its start.

    Raises:
        ValueError: there are no batches, or no validation.
        NumericalInstability: the samples, or what training made of them, are not finite.
        UnsupportedPolicy: a group size does not divide a width.
    """
    if not batches or not validation:
        raise ValueError(f"{len(batches)} training and {len(validation)} validation batches; one of each is needed")
    with SwappedReaders(block.layer, block.prefix, block.sites) as readers:
        descent = _Descent(block, readers, start, batches, validation, training, execution)
        return descent.run(seed, on_step or (lambda _: None))


class _Descent:
    """One run of the optimizer, with its best judged step."""

    def __init__(
        self,
        block: BlockUnderTraining,
        readers: SwappedReaders,
        start: Mapping[str, Start],
        batches: Sequence[BlockBatch],
        validation: Sequence[BlockBatch],
        training: BlockTraining,
        execution: Execution,
    ) -> None:
        self._block, self._readers, self._training, self._execution = block, readers, training, execution
        starts = {site.name: start[site.name] for site in block.sites}
        self._start = {name: each.plans[0] if isinstance(each, Candidates) else each for name, each in starts.items()}
        self._choice_rates = [each.settings.learning_rate for each in starts.values() if isinstance(each, Candidates)]
        # Validation samples get the median of the training samples, so that both losses weigh tokens by one rule.
        median = median_square(batches)
        self._batches, self._validation = weighted(batches, median), weighted(validation, median)
        self._learnable = block.learnable(starts, training)

    def run(self, seed: int, on_step: Callable[[int], None]) -> TrainedBlock:
        """Take steps until their number or the patience is used up."""
        training = self._training
        start_loss = best_loss = self._judge(self._start)
        best, best_step, waited = self._start, 0, 0
        weights = self._weights()
        curve: list[BlockPoint] = []
        groups = self._parameter_groups()
        # Possible, for example, where only scales are learned and no site has any.
        if not groups:
            return TrainedBlock(
                plans=dict(best), curve=(), start_loss=start_loss, best_loss=best_loss, best_step=0, weights=weights
            )
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        cadence = max(1, training.steps // _JUDGMENTS)
        draws = self._draws(torch.Generator().manual_seed(seed))
        for step in range(1, training.steps + 1):
            loss = self._step(optimizer, next(draws), step)
            on_step(step)
            # The last step is always judged, even if the number of steps is no multiple of the cadence.
            if step % cadence and step != training.steps:
                continue
            plans = {name: each.plan() for name, each in self._learnable.items()}
            error = self._judge(plans)
            curve.append(BlockPoint(step=step, loss=loss, validation_loss=error))
            waited += 1
            if error < best_loss:
                best, best_loss, best_step, waited = plans, error, step, 0
                weights = self._weights()
            if training.patience is not None and waited >= training.patience:
                break
        return TrainedBlock(
            plans=dict(best),
            curve=tuple(curve),
            start_loss=start_loss,
            best_loss=best_loss,
            best_step=best_step,
            weights=weights,
        )

    def _step(self, optimizer: torch.optim.Optimizer, drawn: Sequence[WeightedBatch], step: int) -> float:
        """Make one update and return the loss before it."""
        factor, share = learning_rate_factor(step - 1, self._training.steps), step / self._training.steps
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for each in self._learnable.values():
            each.advance(share)
        optimizer.zero_grad()
        with torch.enable_grad():
            # The weights are rounded once here for all batches of the step.
            self._readers.use({name: each.quantized() for name, each in self._learnable.items()})
            loss = self._loss(drawn)
            loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
        optimizer.step()
        return _finite(float(loss.detach()))

    def _judge(self, plans: Mapping[str, SitePlan]) -> float:
        with torch.no_grad():
            self._readers.use(self._block.quantized(plans))
            return _finite(float(self._loss(self._validation)))

    def _loss(self, batches: Sequence[WeightedBatch]) -> Tensor:
        """The error per token of ``batches`` under the plans that the layer uses now."""
        errors = [each.error(self._outputs(each.batch)) for each in batches]
        return torch.stack(errors).sum() / sum(each.tokens for each in batches)

    def _outputs(self, batch: BlockBatch) -> Tensor:
        inputs_BTD = batch.inputs_BTD.to(self._block.device)
        if not self._execution.recomputes_activations:
            return self._readers.forward(inputs_BTD, batch.arguments)
        # The layer is in eval mode and draws no random numbers, so their state need not be restored for the second
        # forward.
        outputs_BTD: Tensor = checkpoint(
            self._readers.forward, inputs_BTD, batch.arguments, use_reentrant=False, preserve_rng_state=False
        )
        return outputs_BTD

    def _mixtures(self) -> dict[str, LearnableMixture]:
        return {name: each for name, each in self._learnable.items() if isinstance(each, LearnableMixture)}

    def _weights(self) -> dict[str, tuple[float, ...]]:
        return {name: each.weights for name, each in self._mixtures().items()}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        learnable, training = self._learnable.values(), self._training
        choices = zip(self._mixtures().values(), self._choice_rates, strict=True)
        groups = [
            ([p for each in learnable for p in each.transform_parameters()], training.learning_rate),
            ([p for each in learnable for p in each.clip_parameters()], training.clip_learning_rate),
            *([[each.logit_N], rate] for each, rate in choices),
        ]
        return [{"params": params, "lr": rate, "initial_lr": rate} for params, rate in groups if params]

    def _draws(self, generator: torch.Generator) -> Iterator[list[WeightedBatch]]:
        """Yield the batches of each step, about ``batch_samples`` samples, without replacement within an epoch."""
        samples = sum(each.batch.inputs_BTD.shape[0] for each in self._batches) / len(self._batches)
        count = min(len(self._batches), max(1, round(self._training.batch_samples / samples)))
        while True:
            order = torch.randperm(len(self._batches), generator=generator).tolist()
            # The rest of an epoch that does not fill a step is left out; the next epoch has a new order.
            for first in range(0, len(order) - count + 1, count):
                yield [self._batches[index] for index in order[first : first + count]]


def learning_rate_factor(step: int, steps: int) -> float:
    """The factor of the learning rate at ``step`` (from 0): half a cosine from 1 to a hundredth at the last step."""
    done = step / max(steps - 1, 1)
    return _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise NumericalInstability(
            detail="The error of a block in training is not finite.",
            hint="Lower training.learning_rate, or check the model's weights for NaN or infinity.",
        )
    return loss
