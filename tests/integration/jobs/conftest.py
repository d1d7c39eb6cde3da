"""The jobs room as its callers see it, on a real database and an operator's directories."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from jobs.artifacts import ArtifactStore, open_store
from jobs.job.commands import JobCommands
from jobs.job.lease import Claim, JobLeases
from jobs.job.queries import JobQueries
from jobs.kit.leases import HeartbeatResult
from jobs.repository.database import Database
from jobs.repository.models import Job
from jobs.settings import Settings
from quant_engine.policy import JobRequest
from tests.sound_model import write_sound_model

TENANT = "default"


@dataclass
class CountingNudger:
    """A nudger that only counts."""

    nudges: int = 0

    def nudge(self) -> None:
        """Count."""
        self.nudges += 1


@dataclass
class House:
    """The room's objects over one database, and what tests do to it again and again."""

    database: Database
    settings: Settings
    store: ArtifactStore
    nudger: CountingNudger
    commands: JobCommands
    queries: JobQueries
    leases: JobLeases
    created: list[str] = field(default_factory=list)

    def submit(self, **fields: Any) -> str:
        """Create a job and return its id."""
        view, _ = self.commands.create_job(request(**fields), tenant=TENANT)
        self.created.append(view.id)
        return view.id

    def claim(self, owner: str = "w1") -> Claim:
        """Claim a job that must be there."""
        claim = self.leases.claim(owner)
        assert claim is not None
        return claim

    def row(self, job_id: str) -> Job:
        """The row as it is now."""
        with self.database.transaction() as session:
            return session.scalars(select(Job).where(Job.id == job_id)).one()

    def status(self, job_id: str) -> str:
        """The status as it is now."""
        return self.row(job_id).status

    def shift(self, job_id: str, column: str, seconds: float) -> None:
        """Set one of the row's moments to ``seconds`` from the database's now."""
        moment = func.clock_timestamp() + timedelta(seconds=seconds)
        with self.database.transaction() as session:
            session.execute(update(Job).where(Job.id == job_id).values({column: moment}))

    def expire(self, job_id: str) -> None:
        """Let the lease run out."""
        self.shift(job_id, "lease_until", -1)


def is_out_of_time(beat: HeartbeatResult) -> bool:
    """Whether the job's time was used up at this heartbeat."""
    return beat.run_seconds_left is not None and beat.run_seconds_left <= 0


def request(**fields: Any) -> JobRequest:
    """A small valid request."""
    body = {"model": {"source": "local", "id": "tiny"}, "policy": {"preset": "trainable-smoothrot-w4a4"}}
    return JobRequest.model_validate({**body, **fields})


def layer(name: str = "model.layers.0.mlp.down_proj", **fields: Any) -> dict[str, Any]:
    """A layer row as the engine reports it."""
    row: dict[str, Any] = dict.fromkeys(
        (
            "error",
            "error_normalized",
            "sqnr_db",
            "cosine",
            "baseline_error",
            "gain_percent",
            "rtn_error",
            "input_absmax",
            "input_kurtosis",
        ),
        1.0,
    )
    described = {"block": 0, "role": "down_proj", "scheme": "w4a4", "transform": "smooth_rotation"}
    return {**row, **described, "name": name, "parameters": 10, "bytes": 5, **fields}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An operator with one local model and one dataset; a crash is retried at once."""
    write_sound_model(tmp_path / "var" / "models" / "tiny")
    dataset = tmp_path / "datasets" / "books"
    dataset.mkdir(parents=True)
    # More than is counted at submit.
    (dataset / "train-1.txt").write_text("words " * 90_000)
    return Settings(data_dir=tmp_path / "var", datasets_dir=tmp_path / "datasets", retry_delay_seconds=0)


@pytest.fixture
def house(database: Database, settings: Settings) -> House:
    """Everything wired as the service wires it."""
    store, nudger = open_store(settings), CountingNudger()
    return House(
        database=database,
        settings=settings,
        store=store,
        nudger=nudger,
        commands=JobCommands(database, settings, store, nudger),
        queries=JobQueries(database, settings, store),
        leases=JobLeases(database, settings),
    )
