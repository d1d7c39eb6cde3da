"""One test's dealings with a fleet: submit, hurt, wait, and have the journal judged."""

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.settings import Settings
from tests.faults.checker import TERMINAL, JobRow, Snapshot, Verdict, check
from tests.faults.customer import Customer
from tests.faults.fleet import Fleet
from tests.faults.injuries import Injuries
from tests.faults.witness import Journal, Watcher, Window, final_state

MAX_ATTEMPTS: Final = 8
READY_SECONDS: Final = 120.0
_STEP_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Act:
    """What a test does with a fleet that others have used before it and will use after it."""

    fleet: Fleet
    journal: Journal
    customer: Customer
    injuries: Injuries
    watcher: Watcher
    window: Window

    def until(self, condition: Callable[[], Any], seconds: float = 60.0, *, why: str = "it") -> None:
        """Keep the fleet running until ``condition`` holds. Raises: AssertionError."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{why} did not happen within {seconds:g} s"
            self.fleet.tend()
            self.injuries.tend()
            time.sleep(_STEP_SECONDS)

    def submit(self, kind: str, count: int = 1) -> list[str]:
        """So many jobs, all accepted."""
        found = [self.customer.submit(kind) for _ in range(count)]
        jobs = [job for job in found if job is not None]
        assert len(jobs) == count
        return jobs

    def over(self, jobs: Iterable[str]) -> bool:
        """Whether all of them are over, as was seen last."""
        return all(self.watcher.states.get(job) in TERMINAL for job in jobs)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """From the database, past the proxy."""
        return self.window.rows(query, parameters)

    def steps_done(self, job: str) -> int:
        """How many steps of a job lie on the disk."""
        return len(list((self.fleet.data_dir / "work" / job).glob("*/stages/step-*")))

    def ended(self, status: str) -> int:
        """How many jobs of the fleet have ended so, as was seen last."""
        return sum(seen == status for seen in self.watcher.states.values())

    def working(self, job: str, steps: int = 2) -> bool:
        """Whether a job is in the middle of its steps, and a worker holds it."""
        return self.steps_done(job) >= steps and any(job in self.injuries.held_by(kept) for kept in self.fleet.workers)

    def state(self) -> Snapshot:
        """The final state, of this test's jobs alone."""
        mine = {entry["job"] for entry in self.journal.entries if entry["what"] == "accepted"}
        whole = final_state(self.fleet.observer_url, Settings(data_dir=self.fleet.data_dir))
        return Snapshot(
            jobs=tuple(job for job in whole.jobs if job.id in mine),
            events=tuple(event for event in whole.events if event.job in mine),
            artifacts=tuple(artifact for artifact in whole.artifacts if artifact.job in mine),
        )

    def job(self, job_id: str) -> JobRow:
        """One job's row."""
        return next(job for job in self.state().jobs if job.id == job_id)

    def verdict(self) -> Verdict:
        """The checker's."""
        return check(self.journal.entries, self.state())


@contextmanager
def acting(fleet: Fleet, journal: Path, name: str) -> Iterator[Act]:
    """An act on a fleet that is ready; what it broke is mended afterwards."""
    log = Journal(journal)
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        customer = Customer(fleet.url, log, name=name)
        stack.callback(customer.close)
        window = Window(fleet.observer_url)
        stack.callback(window.close)
        watcher = stack.enter_context(Watcher(fleet.observer_url, log))
        injuries = Injuries(fleet, log, random.Random(name), frozen_seconds=2 * fleet.lease_seconds)  # noqa: S311
        stack.callback(injuries.close)
        act = Act(fleet, log, customer, injuries, watcher, window)
        act.until(customer.is_ready, READY_SECONDS, why="readiness")
        act.until(lambda: all(fleet.child_of(worker) for worker in fleet.workers), why="two workers")
        yield act
