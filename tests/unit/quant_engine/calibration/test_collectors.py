"""Streaming statistics equal torch's on the whole, however the stream is cut."""

import pytest
import torch
from torch import Tensor

from quant_engine.calibration.collectors import ChannelMoments, TailQuantiles, TokenReservoir

CPU = torch.device("cpu")


def _tokens(count: int = 1000, channels: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, channels, generator=generator)
    x[::97] *= 300.0
    return x


@pytest.mark.parametrize("batch", [1000, 333, 64])
def test_high_quantiles_are_torchs_to_the_bit(batch: int) -> None:
    x_TP = _tokens()
    wanted = [0.5, 0.95, 0.99, 0.994, 0.997, 0.9995, 0.99999, 1.0]
    tail = TailQuantiles(wanted, tokens=len(x_TP), channels=7, device=CPU)
    for part in x_TP.split(batch):
        tail.add(part.abs())
    found = tail.result()
    for q in wanted:
        assert torch.equal(found[q], torch.quantile(x_TP.abs(), q, dim=0)), q


def test_the_tail_is_no_longer_than_the_lowest_quantile_needs() -> None:
    assert TailQuantiles([0.99, 1.0], tokens=1001, channels=1, device=CPU).length == 11
    assert TailQuantiles([], tokens=1001, channels=1, device=CPU).length == 0
    assert TailQuantiles([], tokens=1001, channels=1, device=CPU).result() == {}


def test_moments_equal_their_definitions() -> None:
    x_TP = _tokens() + 0.5
    moments = ChannelMoments(7, CPU)
    for part in x_TP.split(130):
        moments.add(part, part.abs())
    x = x_TP.double()
    central = x - x.mean()
    assert torch.equal(moments.absmax, x_TP.abs().amax(dim=0))
    torch.testing.assert_close(moments.l2, x.norm(dim=0).float())
    assert moments.kurtosis == pytest.approx(float((central**4).mean() / (central**2).mean() ** 2), rel=1e-4)


def test_a_constant_has_no_kurtosis() -> None:
    moments = ChannelMoments(2, CPU)
    moments.add(torch.zeros(4, 2), torch.zeros(4, 2))
    assert moments.kurtosis == 0.0


def _fill(x_TD: Tensor, capacity: int, batch: int, *, seed: int = 0, keep_massive: bool = True) -> Tensor:
    reservoir = TokenReservoir(
        tokens=len(x_TD), features=x_TD.shape[1], capacity=capacity, seed=seed, keep_massive=keep_massive
    )
    for first in range(0, len(x_TD), batch):
        reservoir.add(x_TD[first : first + batch], first)
    return reservoir.result()


def test_a_reservoir_keeps_everything_that_fits_in_order() -> None:
    x_TD = _tokens(100)
    assert torch.equal(_fill(x_TD, 100, 30), x_TD)


@pytest.mark.parametrize("batch", [1000, 250, 31])
def test_a_reservoir_does_not_depend_on_the_batches(batch: int) -> None:
    x_TD = _tokens()
    assert torch.equal(_fill(x_TD, 200, batch), _fill(x_TD, 200, 500))


def test_every_massive_token_is_kept_and_the_rest_is_a_sample() -> None:
    x_TD = _tokens()
    kept = _fill(x_TD, 200, 128)
    assert len(kept) == 200
    assert len(kept.unique(dim=0)) == 200
    massive = x_TD[::97]
    assert all(bool((kept == token).all(dim=1).any()) for token in massive)
    uniform = _fill(x_TD, 200, 128, keep_massive=False)
    assert not all(bool((uniform == token).all(dim=1).any()) for token in massive)


def test_a_sample_holds_a_first_position_and_is_otherwise_the_same() -> None:
    x_TD = torch.arange(1000.0)[:, None].expand(-1, 3).contiguous()
    plain = _fill(x_TD, 20, 1000, keep_massive=False)[:, 0].long()
    absent = int(torch.tensor([index for index in range(1000) if index not in plain])[0])
    held = int(plain[7])

    def with_firsts(*firsts: int) -> Tensor:
        reservoir = TokenReservoir(
            tokens=1000, features=3, capacity=20, seed=0, keep_massive=False, firsts=torch.tensor(firsts)
        )
        reservoir.add(x_TD, 0)
        return reservoir.result()[:, 0].long()

    assert torch.equal(with_firsts(absent, held), plain)
    changed = with_firsts(absent)
    assert absent in changed
    assert len(set(changed.tolist()) & set(plain.tolist())) == 19


def test_another_seed_is_another_sample() -> None:
    x_TD = _tokens()
    assert not torch.equal(_fill(x_TD, 200, 128, seed=1), _fill(x_TD, 200, 128, seed=2))
