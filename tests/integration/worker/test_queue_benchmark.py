"""The queue's benchmark on a small scale: real workers serve every job, in order and in turn. Times are not judged."""

from pathlib import Path

import pytest

from benchmarks.queue import measure, queue_table
from jobs.embedded import Urls


@pytest.mark.usefixtures("office")  # for its empty queue and empty tables
def test_two_workers_serve_three_tenants_in_order(embedded_urls: Urls, tmp_path: Path) -> None:
    found = measure(embedded_urls, tmp_path / "benchmark", jobs=12, workers=2, tenants=3, singles=1, seconds=240)
    assert (found["jobs"], found["tenants"], found["inversions"]) == (12, 3, 0)
    # Six of one tenant, which came first, and three of each other: two workers may be a place apart.
    assert found["share_deviation"] <= 0.5
    assert found["wait_ratio"] <= 1.5
    assert found["claim_to_start"]["median"] > 0
    assert queue_table(found).row_count == 9
