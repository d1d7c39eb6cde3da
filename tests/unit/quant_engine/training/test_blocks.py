"""Training a block: the loss against a dense definition of the quantized block, and the promises of its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from quant_engine.errors import NumericalInstability, UnsupportedPolicy
from quant_engine.execution import Execution
from quant_engine.hadamard import hadamard_matrix
from quant_engine.models import CheckpointSource, Site, StreamedModel, model_sites
from quant_engine.policy import (
    ActivationQuantization,
    BlockTraining,
    Differentiable,
    NumberFormat,
    SiteQuantization,
    TransformKind,
    WeightQuantization,
)
from quant_engine.training import BlockBatch, BlockUnderTraining, Candidates, Start, TrainedBlock, train_block
from quant_engine.training.block_loss import median_square, weighted
from quant_engine.training.blocks import learning_rate_factor
from quant_engine.transforms import SitePlan
from quant_engine.transforms.primitives import Kronecker
from tests.tiny_models import write_tiny_model
from tests.unit.quant_engine.definitions import matrix_of

PREFIX = "model.layers.0."
INT4 = SiteQuantization(weights=WeightQuantization(), activations=ActivationQuantization(clip_ratio=0.9))
SHORT = BlockTraining(steps=24, batch_samples=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    layer: nn.Module
    sites: list[Site]
    weights: dict[str, Tensor]
    start: Mapping[str, Start]
    batches: list[BlockBatch]
    validation: list[BlockBatch]

    def train(
        self,
        training: BlockTraining = SHORT,
        quantization: SiteQuantization = INT4,
        *,
        seed: int = 0,
        on_step: Callable[[int], None] | None = None,
        low_memory: bool = False,
    ) -> TrainedBlock:
        return train_block(
            BlockUnderTraining(
                layer=self.layer,
                prefix=PREFIX,
                sites=self.sites,
                weights=self.weights,
                quantization={site.name: quantization for site in self.sites},
            ),
            self.start,
            self.batches,
            self.validation,
            training,
            seed=seed,
            on_step=on_step,
            execution=Execution(low_memory=low_memory),
        )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Example]:
    """The first block of a tiny model, whose start is a Hadamard as a Kronecker product behind uneven scales."""

    @cache
    def make(architecture: str) -> Example:
        directory = tmp_path_factory.mktemp(architecture)
        model = StreamedModel(CheckpointSource(write_tiny_model(directory, architecture)))
        sites = [site for site in model_sites(model.config, model.architecture) if site.block == 0]
        state = model.read_block(0)
        layer = model.empty_block(0)
        layer.load_state_dict({key.removeprefix(PREFIX): value for key, value in state.items()}, assign=True)
        layer.requires_grad_(False)
        ids = torch.randint(0, 512, (8, 1, 32), generator=torch.Generator().manual_seed(1))
        batches = []
        for ids_1T in ids:
            entered = model.enter(ids_1T)
            arguments = entered.layer_arguments[0]
            with torch.no_grad():
                output = layer(entered.hidden_BTD, **arguments)
            batches.append(BlockBatch(inputs_BTD=entered.hidden_BTD, targets_BTD=output, arguments=arguments))
        return Example(
            layer=layer,
            sites=sites,
            weights={reader: state[f"{reader}.weight"] for site in sites for reader in site.readers},
            start={site.name: _start(site) for site in sites},
            batches=batches[:6],
            validation=batches[6:],
        )

    return make


def _start(site: Site) -> SitePlan:
    generator = torch.Generator().manual_seed(site.features)
    scales = (torch.rand(int(site.tie_index().max()) + 1, generator=generator) + 0.5)[site.tie_index()]
    kronecker = Kronecker(left_AA=hadamard_matrix(8), right_BB=hadamard_matrix(site.features // 8))
    return SitePlan(kind=TransformKind.KRONECKER, label="l2", scales_D=scales, online=(kronecker,))


def dense_loss(example: Example, plans: dict[str, SitePlan]) -> float:
    """The validation loss in fp64, with a hook on each linear and dense matrices."""
    layer = example.layer.double()
    handles = []
    for site in example.sites:
        plan = plans[site.name]
        assert plan.scales_D is not None
        matrix = torch.diag(1 / plan.scales_D.double()) @ matrix_of(plan.online[0], site.features)
        clip = plan.weight_clip_OG
        for name in site.readers:
            weight = example.weights[name].double() @ torch.linalg.inv(matrix).mT
            rows = torch.ones(len(weight), 1)
            if clip is not None:
                rows, clip = clip[: len(weight)], clip[len(weight) :]
            weight = _int4(weight, rows.double() * weight.abs().amax(dim=1, keepdim=True) / 7)

            def after(
                linear: nn.Module,
                arguments: tuple[Tensor],
                _: Tensor,
                matrix: Tensor = matrix,
                weight: Tensor = weight,
                ratio: float = plan.clip_ratio or 0.9,
            ) -> Tensor:
                moved = arguments[0] @ matrix
                rounded = _int4(moved, ratio * moved.abs().amax(dim=-1, keepdim=True) / 7)
                return rounded @ weight.T + (0 if linear.bias is None else linear.bias)

            module = layer.get_submodule(name.removeprefix(PREFIX))
            handles.append(module.register_forward_hook(after))
    error = norm = 0.0
    median = torch.cat([b.targets_BTD.square().sum(-1).flatten() for b in example.batches]).median().double()
    for batch in example.validation:
        with torch.no_grad():
            output = layer(batch.inputs_BTD.double(), **_double(batch.arguments))
        target = batch.targets_BTD.double()
        weight = (64 * median / target.square().sum(-1)).clamp(max=1)
        error += float((weight * (output - target).square().sum(-1)).sum())
        norm += float((weight * target.square().sum(-1)).sum())
    for handle in handles:
        handle.remove()
    layer.float()
    return error / norm


def _int4(v: Tensor, scale: Tensor) -> Tensor:
    return (v / scale).round().clamp(-8, 7) * scale


def _double(arguments: dict[str, object]) -> dict[str, object]:
    cos, sin = arguments["position_embeddings"]
    return arguments | {"position_embeddings": (cos.double(), sin.double())}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gemma3"])
def test_the_losses_are_those_of_the_plans(example: Callable[[str], Example], architecture: str) -> None:
    block = example(architecture)
    trained = block.train()
    assert trained.start_loss == pytest.approx(dense_loss(block, block.start), rel=5e-3)
    assert trained.best_loss == pytest.approx(dense_loss(block, trained.plans), rel=5e-3)
    assert trained.best_loss < 0.9 * trained.start_loss
    best = min(trained.curve, key=lambda point: point.validation_loss)
    assert (trained.best_step, trained.best_loss) == (best.step, best.validation_loss)


def test_tied_heads_keep_their_scales_and_the_others_learn(example: Callable[[str], Example]) -> None:
    block = example("llama")
    plans = block.train().plans
    for site in block.sites:
        learned = plans[site.name]
        assert torch.equal(learned.scales_D, block.start[site.name].scales_D) == (site.tied > 1)
        assert learned.weight_clip_OG is not None
        assert learned.weight_clip_OG.shape == (sum(len(block.weights[reader]) for reader in site.readers), 1)
        assert learned.clip_ratio is not None


def test_equal_seeds_give_equal_bits(example: Callable[[str], Example]) -> None:
    block = example("llama")
    first, again, other = block.train(), block.train(), block.train(seed=1)
    assert first.curve == again.curve
    assert first.curve != other.curve
    for name, plan in first.plans.items():
        for key, tensor in plan.online[0].tensors().items():
            assert torch.equal(tensor, again.plans[name].online[0].tensors()[key])


def test_the_layer_is_left_as_it_was(example: Callable[[str], Example]) -> None:
    block = example("qwen2")
    modules = dict(block.layer.named_modules())
    state = {key: value.clone() for key, value in block.layer.state_dict().items()}

    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block.train(on_step=stop)
    assert dict(block.layer.named_modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in block.layer.state_dict().items())


def test_a_training_that_does_harm_gives_the_start_back(example: Callable[[str], Example]) -> None:
    block = example("llama")
    trained = block.train(BlockTraining(steps=30, learn=("scales",), learning_rate=10.0, patience=2))
    assert trained.best_step == 0
    assert trained.best_loss == trained.start_loss
    assert trained.plans == block.start
    assert len(trained.curve) == 2


def test_every_sample_comes_once_in_an_epoch(example: Callable[[str], Example]) -> None:
    """Six samples, two a step: three steps see all of them, so their losses at rate 0 average the whole set's."""
    block = example("llama")
    still = BlockTraining(steps=3, batch_samples=2, learn=("transform",), learning_rate=1e-12)
    whole = BlockTraining(steps=1, batch_samples=6, learn=("transform",), learning_rate=1e-12)
    parts = [point.loss for point in block.train(still).curve]
    assert len(set(parts)) == 3
    assert sum(parts) / 3 == pytest.approx(block.train(whole).curve[0].loss, rel=1e-3)


def test_massive_tokens_do_not_drown_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(2, 50, 8, generator=generator)
    targets[0, 3] *= 1000
    batch = BlockBatch(inputs_BTD=targets, targets_BTD=targets)
    median = median_square([batch])
    square = targets.square().sum(-1)
    assert median == pytest.approx(float(square.flatten().median()))
    (heavy,) = weighted([batch], median)
    contribution = heavy.weight_BT * square / heavy.tokens
    assert float(contribution.sum()) == pytest.approx(1.0)  # of an output of zeros
    assert float(contribution[0, 3] / contribution.flatten().median()) == pytest.approx(64, rel=0.1)
    assert float(heavy.error(torch.zeros_like(targets))) / heavy.tokens == pytest.approx(1.0)


def test_padding_has_no_weight() -> None:
    """The same tokens with and without padding, whose targets are huge: the same median, weights and error."""
    targets = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    targets[1, 30:] *= 1000
    valid = torch.arange(50) < torch.tensor([[50], [30]])
    padded = BlockBatch(inputs_BTD=targets, targets_BTD=targets, valid_BT=valid)
    tokens = targets[valid][None]
    plain = BlockBatch(inputs_BTD=tokens, targets_BTD=tokens)
    median = median_square([padded])
    assert median == median_square([plain])
    (found,), (expected,) = weighted([padded], median), weighted([plain], median)
    assert found.tokens == expected.tokens == 80
    assert found.weight_BT[1, 30:].tolist() == [0.0] * 20
    torch.testing.assert_close(found.weight_BT[valid], expected.weight_BT[0])
    outputs = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.error(outputs), expected.error(outputs[valid][None]))


def test_targets_that_are_not_finite_are_named(example: Callable[[str], Example]) -> None:
    block = example("llama")
    broken = replace(block.batches[0], targets_BTD=block.batches[0].targets_BTD * torch.nan)
    with pytest.raises(NumericalInstability):
        replace(block, batches=[broken]).train()
    with pytest.raises(ValueError, match="0 training"):
        replace(block, batches=[]).train()


def test_a_group_that_does_not_fit_is_named(example: Callable[[str], Example]) -> None:
    weights = WeightQuantization(granularity="group", group_size=40)
    with pytest.raises(UnsupportedPolicy, match="40"):
        example("llama").train(quantization=replace(INT4, weights=weights))


def test_nothing_to_learn_gives_the_start_back(example: Callable[[str], Example]) -> None:
    block = example("llama")
    unrounded = replace(INT4, activations=ActivationQuantization(format=NumberFormat.NONE))
    trained = block.train(BlockTraining(learn=("activation_clip",)), unrounded)
    assert (trained.best_step, trained.curve, trained.plans) == (0, (), block.start)


def test_the_rate_falls_to_a_hundredth() -> None:
    factors = [learning_rate_factor(step, 50) for step in range(50)]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(0.01)
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_activations_that_are_computed_twice_give_the_same_bits(
    architecture: str, example: Callable[[str], Example]
) -> None:
    each = example(architecture)
    usual, frugal = each.train(), each.train(low_memory=True)
    assert frugal.curve == usual.curve
    assert frugal.best_loss == usual.best_loss < usual.start_loss
    for name, plan in usual.plans.items():
        found = frugal.plans[name]
        assert (found.scales_D is None) == (plan.scales_D is None)
        if plan.scales_D is not None and found.scales_D is not None:
            assert torch.equal(found.scales_D, plan.scales_D)


def test_a_block_learns_which_transform_fits(example: Callable[[str], Example]) -> None:
    """Scales over six orders of magnitude lose to the Hadamard at every site, whichever of them comes first."""
    block = example("llama")
    for first in (True, False):
        settings = Differentiable(steps=10, learning_rate=0.3)
        start = {}
        for site in block.sites:
            good = block.start[site.name]
            uneven = SitePlan(kind=TransformKind.SMOOTH, scales_D=torch.logspace(-3, 3, site.features))
            start[site.name] = Candidates(plans=[good, uneven] if first else [uneven, good], settings=settings)
        trained = replace(block, start=start).train(BlockTraining(steps=12, batch_samples=2, learn=("weight_clip",)))
        assert {plan.kind for plan in trained.plans.values()} == {TransformKind.KRONECKER}
        assert all((weights[0] > weights[1]) is first for weights in trained.weights.values())
        assert trained.best_loss < trained.start_loss
