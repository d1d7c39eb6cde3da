"""Learned rotations: rounding in the rotated basis is what the rotated checkpoint does; descent keeps its promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from quant_engine.errors import NumericalInstability
from quant_engine.execution import Execution
from quant_engine.hadamard import hadamard_matrix
from quant_engine.models import (
    CheckpointSource,
    ResidualRotation,
    RotatedSource,
    Site,
    StreamedModel,
    hadamard_rotation,
    model_sites,
)
from quant_engine.policy import ActivationQuantization, RotationTraining, SiteQuantization, WeightQuantization
from quant_engine.resume_state import StateFile
from quant_engine.training import train_rotation
from quant_engine.training.rotated_inputs import LiveRotations, rounded_inputs
from quant_engine.training.rotation import _mean_loss, next_token_loss
from quant_engine.windows import Windows
from tests.tiny_models import write_tiny_model

CLIP = 0.9
SETTINGS = SiteQuantization(weights=WeightQuantization(), activations=ActivationQuantization(clip_ratio=CLIP))


def load(
    tmp_path: Path, architecture: str = "llama", *, outliers: bool = False
) -> tuple[CheckpointSource, PreTrainedModel, list[Site]]:
    source = CheckpointSource(write_tiny_model(tmp_path / architecture, architecture, outliers=outliers))
    streamed = StreamedModel(source)
    return source, streamed.whole(), model_sites(streamed.config, streamed.architecture)


@torch.no_grad()
def written_by(model: PreTrainedModel) -> Tensor:
    """Windows that the model finds likely, so that rounding can only make it worse."""
    generator = torch.Generator().manual_seed(0)
    ids_ST = torch.randint(2, 512, (8, 1), generator=generator)
    for _ in range(31):
        chances_SV = (2.0 * model(ids_ST, use_cache=False).logits[:, -1]).softmax(dim=-1)
        ids_ST = torch.cat([ids_ST, torch.multinomial(chances_SV, 1, generator=generator)], dim=1)
    return ids_ST


def round_like_the_run_time(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True) * CLIP / 7
    return (x / scale).round().clamp(-8, 7) * scale


def loss_of_the_rotated_checkpoint(
    source: CheckpointSource, sites: list[Site], rotation: ResidualRotation, windows: Tensor, *, online: bool
) -> float:
    """The weights really rotated, dense Hadamards in front of the inner linears, every input rounded."""
    model = StreamedModel(RotatedSource(source, rotation)).whole().double()
    for site in sites:
        turned = online and site.role in ("attention_output", "feed_forward_inner")
        matrix = hadamard_matrix(site.features, dtype=torch.float64) if turned else torch.eye(site.features).double()

        def before(_: Any, arguments: tuple[Any, ...], matrix: Tensor = matrix) -> tuple[Any, ...]:
            return (round_like_the_run_time(arguments[0] @ matrix.mT) @ matrix,)

        for name in site.readers:
            model.get_submodule(name).register_forward_pre_hook(before)
    with torch.no_grad():
        logits = model(windows, use_cache=False).logits[:, :-1]
    return float(functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


@pytest.mark.parametrize(
    ("architecture", "heads", "online"),
    [("llama", True, True), ("qwen3", True, False), ("qwen2", False, True), ("phi3", True, True)],
)
def test_rounding_is_that_of_the_rotated_checkpoint(
    tmp_path: Path, architecture: str, heads: bool, online: bool
) -> None:
    source, model, sites = load(tmp_path, architecture, outliers=True)
    windows = written_by(model)
    with torch.no_grad():
        plain = float(next_token_loss(model, Windows.plain(windows)))
        rotation = hadamard_rotation(model.config, seed=3, value_heads=heads)
        activations = {site.name: SETTINGS.activations for site in sites}
        live = LiveRotations(rotation.r1_DD, rotation.r2_LKK)
        with rounded_inputs(model.double(), sites, live, activations, online=online):
            loss = float(next_token_loss(model, Windows.plain(windows)))
    expected = loss_of_the_rotated_checkpoint(source, sites, rotation, windows, online=online)
    assert expected > plain + 0.1
    assert loss == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        assert float(next_token_loss(model.float(), Windows.plain(windows))) == plain


def test_padding_and_special_tokens_are_not_predicted(tmp_path: Path) -> None:
    """Two windows, one padded: the loss is the mean over the tokens that each predicts alone, in one batch or two."""
    _, model, _ = load(tmp_path)
    ids = torch.randint(2, 512, (2, 16), generator=torch.Generator().manual_seed(3))
    valid = torch.arange(16) < torch.tensor([[16], [9]])
    predicted = valid & (torch.arange(16) >= 2)
    windows = Windows(ids_ST=ids, valid_ST=valid, predicted_ST=predicted)
    with torch.no_grad():
        alone = [ids[0], ids[1, :9]]
        parts = [
            functional.cross_entropy(model(ids_T[None]).logits[0, 1:-1], ids_T[2:], reduction="sum") for ids_T in alone
        ]
        expected = float(sum(parts)) / (14 + 7)
        assert float(next_token_loss(model, windows)) == pytest.approx(expected, rel=1e-5)
        assert _mean_loss(model, windows) == pytest.approx(expected, rel=1e-5)


def test_learning_lowers_the_loss_and_keeps_the_rotations(tmp_path: Path) -> None:
    source, model, sites = load(tmp_path)
    rotation, windows = hadamard_rotation(model.config, seed=1), written_by(model)
    settings = {site.name: SETTINGS for site in sites}
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def train() -> ResidualRotation:
        return train_rotation(
            model,
            sites,
            rotation,
            Windows.plain(windows),
            RotationTraining(steps=30, batch_samples=4),
            settings,
            online=True,
            seed=0,
            on_step=steps.append,
        )

    steps: list[int] = []
    found = train()
    r1, r2 = found.r1_DD, found.r2_LKK
    assert steps == list(range(1, 31))
    assert r2 is not None
    assert r1.dtype is r2.dtype is torch.float64
    for matrix in (r1, *r2):
        assert float((matrix @ matrix.mT - torch.eye(matrix.shape[0])).abs().max()) < 1e-10
    start = loss_of_the_rotated_checkpoint(source, sites, rotation, windows, online=True)
    learned = loss_of_the_rotated_checkpoint(source, sites, ResidualRotation(r1, r2), windows, online=True)
    assert learned < 0.85 * start
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again = train()
    assert again.r2_LKK is not None
    assert torch.equal(again.r1_DD, r1)
    assert torch.equal(again.r2_LKK, r2)


def _train(model: PreTrainedModel, sites: list[Site], training: RotationTraining, **options: Any) -> list[Tensor]:
    rotation = hadamard_rotation(model.config, seed=1)
    windows = Windows.plain(torch.randint(2, 512, (6, 16), generator=torch.Generator().manual_seed(3)))
    settings = {site.name: SETTINGS for site in sites}
    learned = train_rotation(model, sites, rotation, windows, training, settings, online=True, seed=0, **options)
    return [each for each in (learned.r1_DD, learned.r2_LKK) if each is not None]


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("last", [1, 3, 4])
def test_learning_goes_on_from_its_state(last: int, tmp_path: Path) -> None:
    _, model, sites = load(tmp_path)
    training = RotationTraining(steps=5, batch_samples=2)
    whole = _train(model, sites, training)

    def stop(step: int) -> None:
        if step == last:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        _train(model, sites, training, execution=Execution(states=StateFile(tmp_path)), on_step=stop)
    steps: list[int] = []
    resumed = _train(model, sites, training, execution=Execution(states=StateFile(tmp_path)), on_step=steps.append)
    assert steps == list(range(last, 6))
    for found, expected in zip(resumed, whole, strict=True):
        assert torch.equal(found, expected)


def test_windows_one_by_one_add_up_to_the_step(tmp_path: Path) -> None:
    """The gradient of a step is the mean of its windows' own; a step of one window is the same to the bit."""
    _, model, sites = load(tmp_path)
    for windows, tolerance in ((1, 0.0), (3, 1e-5)):
        training = RotationTraining(steps=2, batch_samples=windows)
        usual, frugal = (_train(model, sites, training, execution=Execution(low_memory=low)) for low in (False, True))
        for found, expected in zip(frugal, usual, strict=True):
            torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance)


def test_a_broken_model_is_named_and_left_alone(tmp_path: Path) -> None:
    _, model, sites = load(tmp_path)
    weight = model.get_submodule(sites[-1].readers[0]).weight
    model.get_submodule(sites[-1].readers[0]).weight = torch.nn.Parameter(weight * torch.nan, requires_grad=False)
    rotation, windows = hadamard_rotation(model.config, seed=3), torch.arange(32).reshape(2, 16)
    settings = {site.name: SETTINGS for site in sites}
    norm = model.get_submodule(sites[0].producer).weight
    with pytest.raises(NumericalInstability):
        train_rotation(
            model,
            sites,
            ResidualRotation(r1_DD=rotation.r1_DD),
            Windows.plain(windows),
            RotationTraining(),
            settings,
            online=True,
            seed=0,
        )
    assert model.get_submodule(sites[0].producer).weight is norm
    assert not any(module._forward_pre_hooks for module in model.modules())
