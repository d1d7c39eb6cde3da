"""The life of jobs as sequences of what clients, workers, sweeps and time may do, on a real database.

After every step the rows are compared with what they were: fences only grow, and with claims alone; what is over stays
over unless it is retried; one manifest; an event log without gaps; a claim that was lost changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from jobs.artifacts import ManifestEntry, open_store
from jobs.job.commands import JobCommands
from jobs.job.lease import Claim, JobLeases, Manifest, ProgressReport
from jobs.job.queries import JobQueries
from jobs.kit.errors import InvalidState, JobProblem
from jobs.kit.states import StageStatus
from jobs.repository.database import Database
from jobs.settings import Settings
from tests.faults.scale import scaled
from tests.integration.jobs.conftest import CountingNudger, House, layer, request
from tests.sound_model import write_sound_model

SEQUENCES: Final = scaled(30, 1000)
STEPS: Final = 30

PROBLEM: Final = JobProblem(code="unsafe_checkpoint", category="user", detail="Corrupt.", hint="Fetch it again.")
HELD: Final = {"running", "cancelling"}
OVER: Final = {"succeeded", "failed", "cancelled"}
STEPS_OF_A_LIFE: Final = {
    "queued": {"running", "cancelled", "failed"},
    "running": {"succeeded", "failed", "cancelling", "queued"},
    "cancelling": {"cancelled"},
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
}
"""Written down again: the test does not ask the table that it tests."""

SNAPSHOT: Final = text("""
    SELECT id, tenant, status, version, fence, attempt, max_attempts, retries, low_memory, owner, last_event_id,
        published_fence,
        lease_until IS NOT NULL AS leased, finished_at IS NOT NULL AS finished, error ->> 'code' AS error,
        summary IS NOT NULL AS summarized, cancel_requested_at IS NOT NULL AS cancel_requested,
        coalesce(lease_until < statement_timestamp(), false) AS expired,
        status = 'queued' AND statement_timestamp() - queued_at > max_queue_seconds * interval '1 s' AS waited_too_long,
        status = 'queued' AND available_at <= statement_timestamp() AS available,
        row_number() OVER (ORDER BY created_at, id) AS place,
        (SELECT array_agg(e.id ORDER BY e.id) FROM job_events e WHERE e.job_id = jobs.id) AS events,
        (SELECT array_agg(a.fence) FROM artifacts a WHERE a.job_id = jobs.id) AS artifact_fences
    FROM jobs
""")
STORED: Final = (
    "status",
    "fence",
    "attempt",
    "retries",
    "owner",
    "events",
    "published_fence",
    "artifact_fences",
    "error",
)


@dataclass(frozen=True)
class JobKey:
    """A job and whose it is."""

    id: str
    tenant: str


WRITES: Final[Mapping[str, Callable[[JobLeases, Claim], bool]]] = {
    "progress": lambda leases, claim: leases.record_progress(claim, ProgressReport(fraction=0.5, stage="train")),
    "stage": lambda leases, claim: leases.record_stage(claim, "train", StageStatus.RUNNING),
    "layers": lambda leases, claim: leases.record_layers(claim, [layer()]),
    "event": lambda leases, claim: leases.append_event(claim, "log", {"message": "half way"}),
    "revision": lambda leases, claim: leases.record_resolved_revision(claim, "0" * 40),
}


class JobLife(RuleBasedStateMachine):
    """Everybody who may touch a job, one step at a time; ``seen`` is which changes of status that led to."""

    house: ClassVar[House]
    seen: ClassVar[set[tuple[str, str]]]
    jobs: ClassVar[Bundle[JobKey]] = Bundle("jobs")
    claims: ClassVar[Bundle[Claim]] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        with self.house.database.transaction() as session:
            session.execute(text("DELETE FROM jobs"))
        self.rows: dict[str, Any] = {}
        self.claimed: str | None = None
        self.retried: str | None = None

    # What clients do.

    @initialize(target=jobs)
    def submit_the_first(self) -> JobKey:
        return self._submit("anna")

    @rule(target=jobs, tenant=st.sampled_from(["anna", "bert"]))
    def submit(self, tenant: str) -> JobKey:
        return self._submit(tenant)

    def _submit(self, tenant: str) -> JobKey:
        view, created = self.house.commands.create_job(request(), tenant=tenant)
        assert (view.status, created) == ("queued", True)
        return JobKey(view.id, tenant)

    @rule(job=jobs)
    def cancel(self, job: JobKey) -> None:
        before = self.rows[job.id].status
        if before in OVER:
            with pytest.raises(InvalidState):
                self.house.commands.cancel_job(job.id, tenant=job.tenant)
            return
        after = self.house.commands.cancel_job(job.id, tenant=job.tenant).status
        assert after == ("cancelled" if before == "queued" else "cancelling")

    @rule(job=jobs, from_stage=st.sampled_from([None, "train"]))
    def retry(self, job: JobKey, from_stage: Literal["train"] | None) -> None:
        if self.rows[job.id].status in {"failed", "cancelled"}:
            after = self.house.commands.retry_job(job.id, tenant=job.tenant, from_stage=from_stage)
            assert after.status == "queued"
            self.retried = job.id
            return
        with pytest.raises(InvalidState):
            self.house.commands.retry_job(job.id, tenant=job.tenant, from_stage=from_stage)

    @rule(target=jobs, job=consumes(jobs))
    def delete(self, job: JobKey) -> Any:
        if self.rows[job.id].status in OVER:
            self.house.commands.delete_job(job.id, tenant=job.tenant)
            del self.rows[job.id]
            return multiple()
        with pytest.raises(InvalidState):
            self.house.commands.delete_job(job.id, tenant=job.tenant)
        return job

    # What workers do.

    @rule(target=claims, owner=st.sampled_from(["w1", "w2", "w3"]))
    def claim(self, owner: str) -> Any:
        waiting = {key: row for key, row in self._read().items() if row.available and not row.waited_too_long}
        claim = self.house.leases.claim(owner)
        if claim is None:
            assert not waiting
            return multiple()
        assert claim.job_id in waiting
        mine = waiting[claim.job_id]
        assert mine.place == min(row.place for row in waiting.values() if row.tenant == mine.tenant)
        assert claim.fence == mine.fence + 1
        self.claimed = claim.job_id
        return claim

    @rule(claim=claims)
    def heartbeat(self, claim: Claim) -> None:
        status = self._status_for(claim)
        beat = self.house.leases.heartbeat(claim)
        assert (beat.ok, beat.cancel_requested) == (status is not None, status == "cancelling")

    @rule(claim=claims, name=st.sampled_from(sorted(WRITES)))
    def write(self, claim: Claim, name: str) -> None:
        assert WRITES[name](self.house.leases, claim) == (self._status_for(claim) is not None)

    @rule(claim=claims)
    def publish(self, claim: Claim) -> None:
        assert self.house.leases.publish(claim, _manifest(claim)) == (self._status_for(claim) == "running")

    @rule(claim=claims)
    def fail(self, claim: Claim) -> None:
        assert self.house.leases.fail(claim, PROBLEM) == (self._status_for(claim) is not None)

    @rule(claim=claims)
    def crash(self, claim: Claim) -> None:
        assert self.house.leases.release(claim, "crash") == (self._status_for(claim) is not None)

    @rule(claim=claims)
    def drain(self, claim: Claim) -> None:
        assert self.house.leases.release(claim, "drain") == (self._status_for(claim) is not None)

    @rule(claim=claims)
    def run_out_of_memory(self, claim: Claim) -> None:
        status, low_already = self._status_for(claim), claim.job_id in self.rows and self.rows[claim.job_id].low_memory
        taken = status == "cancelling" or (status == "running" and not low_already)
        assert self.house.leases.release(claim, "low_memory") == taken

    @rule(claim=claims)
    def stop_for_a_cancel(self, claim: Claim) -> None:
        assert self.house.leases.cancelled(claim) == (self._status_for(claim) == "cancelling")

    @rule()
    def sweep(self) -> None:
        self.house.leases.sweep()
        assert not [row for row in self._read().values() if row.expired or row.waited_too_long]

    @rule(claim=claims)
    def its_process_is_found_dead(self, claim: Claim) -> None:
        self.house.leases.sweep({(claim.job_id, claim.fence)})
        row = self._read().get(claim.job_id)
        assert row is None or row.fence != claim.fence or row.status not in HELD

    # What time does.

    @rule(job=jobs)
    def the_lease_runs_out(self, job: JobKey) -> None:
        if self.rows[job.id].leased:
            self.house.expire(job.id)

    @rule(job=jobs)
    def the_delay_is_over(self, job: JobKey) -> None:
        self.house.shift(job.id, "available_at", -1)

    @rule(job=jobs)
    def it_waited_too_long(self, job: JobKey) -> None:
        self.house.shift(job.id, "queued_at", -1e7)

    @rule(job=jobs)
    def it_ran_too_long(self, job: JobKey) -> None:
        if self.rows[job.id].leased:
            self.house.shift(job.id, "attempt_started_at", -1e7)

    # What must hold whatever they did.

    @invariant()
    def rows_are_what_they_may_be(self) -> None:
        now = self._read()
        assert self.rows.keys() <= now.keys(), "a job is lost"
        for key, row in now.items():
            _is_consistent(row)
            if key in self.rows:
                self._changed_as_allowed(self.rows[key], row)
        self.rows, self.claimed, self.retried = now, None, None

    def _changed_as_allowed(self, before: Any, after: Any) -> None:
        claimed, retried = self.claimed == after.id, self.retried == after.id
        assert (after.fence, after.retries) == (before.fence + claimed, before.retries + retried)
        assert after.events[: len(before.events)] == before.events
        assert (before.version < after.version) or all(getattr(before, n) == getattr(after, n) for n in STORED)
        if after.status != before.status:
            self.seen.add((before.status, after.status))
            assert after.status in ({"queued"} if retried else STEPS_OF_A_LIFE[before.status]), before.status
        if before.status in OVER and not retried:
            assert _settled(before) == _settled(after), "what is over does not change"

    def _status_for(self, claim: Claim) -> str | None:
        """The job's status if the claim still holds it; None for a claim that was lost."""
        row = self.rows.get(claim.job_id)
        return row.status if row is not None and row.fence == claim.fence and row.status in HELD else None

    def _read(self) -> dict[str, Any]:
        with self.house.database.transaction() as session:
            return {row.id: row for row in session.execute(SNAPSHOT)}


def _settled(row: Any) -> dict[str, Any]:
    """All of a row but its place among the others."""
    return {**row._mapping, "place": None}


def _manifest(claim: Claim) -> Manifest:
    files = [
        ManifestEntry(path=path, bytes=2, sha256=f"{claim.fence:064x}", media_type="application/json")
        for path in ("checkpoint/config.json", "report.json")
    ]
    return Manifest(summary={"fence": claim.fence}, report={}, layers=[layer()], artifacts=files)


def _is_consistent(row: Any) -> None:
    held, over, succeeded = row.status in HELD, row.status in OVER, row.status == "succeeded"
    assert (row.owner is not None, row.leased, row.finished) == (held, held, over)
    assert row.events == list(range(1, row.last_event_id + 1))
    assert 0 <= row.attempt <= min(row.max_attempts, row.fence)
    assert (row.published_fence is not None, row.summarized) == (succeeded, succeeded)
    assert (row.artifact_fences or []) == ([row.published_fence] * 2 if succeeded else [])
    assert (row.error is not None) == (row.status == "failed")
    assert row.cancel_requested or row.status not in {"cancelling", "cancelled"}


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    """Leases and delays are long: time passes when a rule says so, and not because the machine is slow."""
    write_sound_model(tmp_path / "models" / "tiny")
    settings = Settings(data_dir=tmp_path, lease_seconds=3600, retry_delay_seconds=600, max_attempts=2)
    store, nudger = open_store(settings), CountingNudger()
    commands, queries = JobCommands(database, settings, store, nudger), JobQueries(database, settings, store)
    leases = JobLeases(database, settings)
    return House(
        database=database,
        settings=settings,
        store=store,
        nudger=nudger,
        commands=commands,
        queries=queries,
        leases=leases,
    )


@pytest.mark.timeout(scaled(600, 7200))
def test_no_sequence_breaks_a_jobs_life(house: House) -> None:
    class Life(JobLife):
        seen: ClassVar[set[tuple[str, str]]] = set()

    Life.house = house
    run_state_machine_as_test(
        Life,
        settings=hypothesis_settings(
            max_examples=SEQUENCES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # a sequence is told as it was found: to shorten one takes minutes
        ),
    )
    retried = {("failed", "queued"), ("cancelled", "queued")}
    assert Life.seen == retried | {(before, after) for before, targets in STEPS_OF_A_LIFE.items() for after in targets}
