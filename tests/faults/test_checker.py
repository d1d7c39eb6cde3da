"""The checker finds what is planted, and nothing where nothing is."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.catalog import KINDS
from tests.faults.chaos import figures, table
from tests.faults.checker import ArtifactRow, Entry, EventRow, JobRow, Snapshot, Verdict, check, quantile
from tests.faults.runner import RESULT

JOB = "job_1"
OTHER = "job_2"


def job(job_id: str = JOB, **changes: Any) -> JobRow:
    row = JobRow(
        id=job_id,
        status="succeeded",
        attempt=1,
        fence=1,
        published_fence=1,
        kind="quick",
        key=f"key of {job_id}",
        code=None,
        summary={},
    )
    return replace(row, **changes)


def events(job_id: str = JOB, *statuses: tuple[float, str | None]) -> tuple[EventRow, ...]:
    given = statuses or ((1.0, "queued"), (2.0, "running"), (4.0, "succeeded"))
    return tuple(EventRow(job_id, number, status, at) for number, (at, status) in enumerate(given, 1))


def artifact(job_id: str = JOB, **changes: Any) -> ArtifactRow:
    sha256 = KINDS["quick"].sha256(job_id)
    assert sha256 is not None
    return replace(ArtifactRow(job=job_id, fence=1, path=RESULT, sha256=sha256, stored=True), **changes)


def accepted(job_id: str = JOB, at: float = 1.0) -> Entry:
    return {"what": "accepted", "job": job_id, "kind": "quick", "key": f"key of {job_id}", "at": at}


def fault(name: str, at: float, *jobs: str, number: int = 1) -> Entry:
    return {"what": "fault", "id": number, "name": name, "jobs": list(jobs), "at": at}


def verdict(*entries: Entry, **final: tuple[Any, ...]) -> Verdict:
    rows: dict[str, Any] = {"jobs": (job(),), "events": events(), "artifacts": (artifact(),), **final}
    return check([accepted(), *entries], Snapshot(**rows))


def test_a_good_run_breaks_no_promise() -> None:
    found = verdict(fault("kill_runner", 2.5, JOB))
    assert found.kept
    assert (found.accepted, found.ended, found.faults) == (1, {"succeeded": 1}, {"kill_runner": 1})


def test_a_job_that_vanished_or_never_ended_is_lost() -> None:
    assert verdict(accepted(OTHER)).lost == (f"{OTHER} was accepted and is not in the database",)
    open_job = verdict(jobs=(job(status="running", published_fence=None),), artifacts=())
    assert open_job.lost == (f"{JOB} was accepted and is still running",)


@pytest.mark.parametrize(
    "final",
    [
        {"artifacts": (artifact(), artifact(path="report.json", fence=2))},
        {"events": events(JOB, (1, "queued"), (2, "running"), (3, "succeeded"), (4, "succeeded"))},
        {"events": events(JOB, (1, "queued"), (2, "failed"), (3, "queued"), (4, "succeeded"))},
        {"jobs": (job(), job(OTHER, key=f"key of {JOB}")), "artifacts": (artifact(), artifact(OTHER))},
    ],
    ids=["files of two fences", "two successes", "an end that was none", "two jobs of one request"],
)
def test_what_happens_twice_is_doubled(final: dict[str, tuple[Any, ...]]) -> None:
    found = verdict(**final)
    assert len(found.doubled) == 1
    assert not found.kept


@pytest.mark.parametrize(
    ("final", "reason"),
    [
        ({"jobs": (job(status="failed", code="internal_error"),), "artifacts": ()}, "not succeeded"),
        ({"artifacts": ()}, "has no files"),
        ({"artifacts": (artifact(fence=2),)}, "with fence 1"),
        ({"artifacts": (artifact(stored=False),)}, "not in the store"),
        ({"artifacts": (artifact(sha256="0" * 64),)}, "another result"),
        ({"jobs": (job(kind="poison", status="failed", code="crash_loop"),)}, "has published files"),
    ],
)
def test_a_wrong_end_is_told(final: dict[str, tuple[Any, ...]], reason: str) -> None:
    [problem] = verdict(**final).wrong
    assert reason in problem


def test_wrong_answers_are_told_and_excused_ones_are_not() -> None:
    seen = {"what": "seen", "by": "api", "job": JOB, "status": "failed", "at": 3.0}
    refused = {"what": "refused", "about": "key", "at": 3.0}
    found = verdict(seen, {**refused, "status": 500}, {**refused, "status": 503})
    assert len(found.wrong) == 2


def test_a_held_job_that_says_nothing_is_stuck() -> None:
    silent = events(JOB, (1, "queued"), (2, "running"), (70, None), (71, "succeeded"))
    assert verdict(events=silent).stuck[0] == f"{JOB} was running for 68 s without an event"
    heard = events(JOB, (1, "queued"), (2, "running"), (40, None), (80, None), (100, "succeeded"))
    assert not [problem for problem in verdict(events=heard).stuck if "without an event" in problem]


def test_a_job_that_others_overtake_is_stuck() -> None:
    jobs = (job(), job(OTHER))
    artifacts = (artifact(), artifact(OTHER))
    waits = events(JOB, (1, "queued"), (90, "running"), (91, "succeeded"))
    passes = events(OTHER, (2, "queued"), (3, "running"), (50, None), (51, "succeeded"))
    found = verdict(accepted(OTHER, 2.0), jobs=jobs, artifacts=artifacts, events=waits + passes)
    assert found.stuck == (f"{JOB} waited 89 s while jobs created after it were begun",)


def test_a_job_that_is_queued_again_goes_before_younger_ones() -> None:
    jobs = (job(), job(OTHER))
    waits = events(JOB, (3, "queued"), (90, "running"), (91, "succeeded"))
    resumed = events(OTHER, (1, "queued"), (2, "running"), (4, "queued"), (5, "running"), (60, None), (61, "succeeded"))
    found = verdict(jobs=jobs, artifacts=(artifact(), artifact(OTHER)), events=waits + resumed)
    assert not [problem for problem in found.stuck if "created after" in problem]


def test_a_service_that_stands_still_with_open_jobs_is_stuck() -> None:
    waits = events(JOB, (1, "queued"), (90, "running"), (91, "succeeded"))
    assert verdict(events=waits).stuck == ("nothing moved for 89 s with 1 jobs open",)


def test_recovery_ends_when_the_job_runs_again_and_the_service_takes_others() -> None:
    resumed = events(JOB, (1, "queued"), (2, "running"), (12, "queued"), (15, "running"), (20, "succeeded"))
    later = accepted(OTHER, 5.0)
    two = {"jobs": (job(), job(OTHER)), "artifacts": (artifact(), artifact(OTHER))}
    all_events = resumed + events(OTHER, (5, "queued"), (6, "running"), (7, "succeeded"))
    [recovery] = verdict(later, fault("kill_tree", 3.0, JOB), events=all_events, **two).recoveries
    assert (recovery.fault, recovery.seconds) == ("kill_tree", 12.0)
    healed = {"what": "healed", "fault": 1, "at": 4.0}
    [recovery] = verdict(later, fault("broker_reset", 2.5), healed, events=all_events, **two).recoveries
    assert recovery.seconds == pytest.approx(2.0), "from when the wire was mended"


def test_quantiles_are_values_that_were_seen() -> None:
    assert [quantile(range(1, 21), part) for part in (0.5, 0.95, 1.0)] == [11, 20, 20]
    assert quantile((), 0.5) is None


def test_only_a_fault_that_meets_no_other_is_alone() -> None:
    hit = events(JOB, (1, "queued"), (2, "running"), (12, "queued"), (15, "running"), (20, "succeeded"))
    during = fault("kill_api", 5.0, number=2)
    after = fault("kill_api", 16.0, number=3)
    found = verdict(fault("kill_tree", 3.0, JOB), during, after, events=hit).recoveries
    assert [recovery.alone for recovery in found] == [False, False, True]


def test_the_figures_name_what_was_broken() -> None:
    shown = figures(verdict(accepted(OTHER), fault("kill_api", 1.5)))
    assert (shown["kept"], shown["accepted"], shown["recoveries"]["kill_api"]["count"]) == (False, 2, 1)
    assert f"{OTHER} was accepted and is not in the database" in table(verdict(accepted(OTHER)))
