"""The schedule of attempts."""

from typing import Any

import pytest

from jobs.webhooks.retries import delay_seconds

HOURS = 3600.0


@pytest.mark.parametrize(
    ("attempts", "least"),
    [
        (1, 5.0),
        (2, 300.0),
        (3, 1800.0),
        (4, 2 * HOURS),
        (5, 5 * HOURS),
        (9, 24 * HOURS),
        (10, 24 * HOURS),
        (99, 24 * HOURS),
    ],
)
def test_it_is_the_specifications_with_jitter_on_top(attempts: int, least: float) -> None:
    drawn = [delay_seconds(attempts, first_seconds=5.0, retry_after=0.0) for _ in range(200)]
    assert all(least <= delay <= 1.2 * least for delay in drawn)
    assert max(drawn) > 1.05 * least > 1.01 * min(drawn)


@pytest.mark.parametrize(
    ("told", "least"), [({"retry_after": 60.0}, 60.0), ({"retry_after": 1.0}, 5.0), ({"retry_after": 1e9}, 86_400.0)]
)
def test_a_receiver_can_ask_for_more_time_up_to_a_day(told: dict[str, Any], least: float) -> None:
    assert least <= delay_seconds(1, first_seconds=5.0, **told) <= 1.2 * least


def test_the_first_wait_scales_the_others() -> None:
    assert 6.0 <= delay_seconds(2, first_seconds=0.1, retry_after=0.0) <= 7.2
