"""Unequal-probability batches: every sum over a batch estimates the sum over all rows without bias."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_engine.training.sampling import inclusion_probabilities, systematic_draw


@settings(deadline=None, max_examples=60)
@given(
    errors=st.lists(st.floats(0.0, 1e12), min_size=1, max_size=60),
    count=st.integers(1, 80),
    seed=st.integers(0, 2**31),
)
def test_chances_and_draws_are_lawful(errors: list[float], count: int, seed: int) -> None:
    chance_N = inclusion_probabilities(torch.tensor(errors), count)
    assert float(chance_N.sum()) == pytest.approx(min(count, len(errors)))
    assert (chance_N > 0).all()
    assert (chance_N <= 1).all()
    draw = systematic_draw(chance_N, torch.Generator().manual_seed(seed))
    assert draw.index.unique().numel() == draw.index.numel() == min(count, len(errors))
    torch.testing.assert_close(draw.weight, (1.0 / chance_N[draw.index]).float())


def test_a_row_that_carries_more_error_is_drawn_more_often() -> None:
    chance_N = inclusion_probabilities(torch.tensor([0.0, 1.0, 2.0, 3.0] * 25), 10)
    steps = chance_N[:4].diff()
    torch.testing.assert_close(steps, steps[:1].expand(3))
    assert float(chance_N[0]) == pytest.approx(0.05)  # half of the draw ignores the error


def test_massive_rows_are_always_there_with_weight_one() -> None:
    errors = torch.ones(1000)
    errors[[3, 500]] = 1e6
    chance_N = inclusion_probabilities(errors, 50)
    for seed in range(20):
        draw = systematic_draw(chance_N, torch.Generator().manual_seed(seed))
        massive = torch.isin(draw.index, torch.tensor([3, 500]))
        assert int(massive.sum()) == 2
        assert draw.weight[massive].tolist() == [1.0, 1.0]


def test_the_weighted_sum_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(300, generator=generator, dtype=torch.float64) ** 8
    chance_N = inclusion_probabilities(torch.rand(300, generator=generator), 40)
    sums = []
    for _ in range(4000):
        draw = systematic_draw(chance_N, generator)
        sums.append(float((draw.weight * values[draw.index]).sum()))
    estimates = torch.tensor(sums, dtype=torch.float64)
    standard_error = float(estimates.std()) / len(sums) ** 0.5
    assert abs(float(estimates.mean() - values.sum())) < 4 * standard_error


def test_every_row_is_drawn_as_often_as_promised() -> None:
    generator = torch.Generator().manual_seed(1)
    chance_N = inclusion_probabilities(torch.arange(20.0), 7)
    counts = torch.zeros(20, dtype=torch.float64)
    for _ in range(4000):
        counts[systematic_draw(chance_N, generator).index] += 1
    assert float((counts / 4000 - chance_N).abs().max()) < 0.04


def test_a_whole_batch() -> None:
    draw = systematic_draw(inclusion_probabilities(torch.rand(9), 9), torch.Generator())
    assert draw.index.tolist() == list(range(9))
    assert draw.weight.tolist() == [1.0] * 9


def test_rows_without_any_error_are_drawn_evenly() -> None:
    chance_N = inclusion_probabilities(torch.zeros(10), 4)
    torch.testing.assert_close(chance_N, torch.full((10,), 0.4, dtype=torch.float64))
