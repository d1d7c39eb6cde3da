"""Three minutes of seeded chaos: nothing lost, doubled or stuck. ``make chaos MINUTES=30`` is the long run."""

from pathlib import Path
from typing import Final

import pytest

from tests.faults.chaos import Plan, figures, late, run_chaos

SEED: Final = 20
SECONDS: Final = 150.0  # of faults; starting, and coming to rest, make it three minutes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_minutes_of_chaos_break_no_promise(tmp_path: Path) -> None:
    plan = Plan(flavor="embedded", seed=SEED, seconds=SECONDS, journal=tmp_path / "journal.jsonl", real=1)
    verdict = run_chaos(plan)
    assert verdict.kept, figures(verdict)
    assert not late(verdict)
    assert verdict.accepted > 20
    assert sum(verdict.faults.values()) > 15
