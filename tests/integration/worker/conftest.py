"""A whole back office: real PostgreSQL and Valkey, real processes, and short leases so that faults heal in seconds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from jobs.artifacts import ArtifactStore, open_store
from jobs.credentials import CredentialService, Vault
from jobs.job.commands import JobCommands
from jobs.job.lease import JobLeases
from jobs.job.nudge import SilentNudger
from jobs.job.queries import JobQueries
from jobs.job.views import EventView, JobView
from jobs.repository.database import Database
from jobs.settings import Settings
from quant_engine.policy import JobRequest
from tests.scripted_runner import BEHAVIORS
from tests.scripted_worker import PASSING, SCRIPTED
from tests.sound_model import write_sound_model
from worker.attempts.attempt import AttemptDependencies, Programs
from worker.attempts.supervisor import Supervisor
from worker.devices import Device
from worker.nudge import CeleryNudger, make_celery

TENANT = "default"
ROOT = Path(__file__).parents[3]
FAST = {"lease_seconds": 3.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "retry_delay_seconds": 0.1}


@dataclass
class Office:
    """The rooms around one worker, and what tests ask of them."""

    database: Database
    settings: Settings
    commands: JobCommands
    queries: JobQueries
    leases: JobLeases
    store: ArtifactStore
    credentials: CredentialService
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def submit(self, model: str | dict[str, str], **fields: Any) -> str:
        """Create a job, on a local model if ``model`` is a name."""
        reference = {"source": "local", "id": model} if isinstance(model, str) else model
        body = {"model": reference, "policy": {"preset": "trainable-smoothrot-w4a4"}, **fields}
        request = JobRequest.model_validate(body)
        view, _ = self.commands.create_job(request, tenant=TENANT)
        return view.id

    def job(self, job_id: str) -> JobView:
        """The job as a client sees it."""
        return self.queries.get_job(job_id, tenant=TENANT)

    def events(self, job_id: str) -> list[EventView]:
        """Its whole event log."""
        return list(self.queries.list_events(job_id, tenant=TENANT, limit=1000).data)

    def work(self, job_id: str) -> Path:
        """Where its attempts work."""
        return self.settings.work_dir / job_id

    def supervisor(self, **programs: Any) -> Supervisor:
        """A supervisor in this process, with the scripted runner unless told otherwise."""
        return Supervisor(
            dependencies=AttemptDependencies(
                leases=self.leases,
                store=self.store,
                credentials=self.credentials,
                settings=self.settings,
                device=Device(name="cpu", gpu=None, threads=1),
                programs=Programs(**{"runner": SCRIPTED, "check": PASSING, **programs}),
            ),
            owner="test:1",
            nudger=SilentNudger(),
        )

    def start_worker(self, module: str = "tests.scripted_worker", **environment: str) -> "subprocess.Popen[bytes]":
        """A Celery worker process; ended with the test."""
        arguments = [sys.executable, "-m", "celery", "-A", module, "worker", "--loglevel=INFO"]
        log = self.settings.data_dir / f"worker-{len(self.workers)}.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                arguments, cwd=ROOT, env={**self.environment(), **environment}, stdout=output, stderr=output
            )
        self.workers.append(worker)
        return worker

    def environment(self) -> dict[str, str]:
        """What an operator would give a worker."""
        assert self.settings.database_url is not None
        assert self.settings.broker_url is not None
        return os.environ | {
            "QUANTRY_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "QUANTRY_BROKER_URL": self.settings.broker_url.get_secret_value(),
            "QUANTRY_DATA_DIR": str(self.settings.data_dir),
            **{f"QUANTRY_{name.upper()}": str(value) for name, value in FAST.items()},
        }

    def stop_workers(self) -> None:
        """End every worker, however deaf it is."""
        for worker in self.workers:
            family = family_of(worker.pid)
            worker.kill()
            worker.wait(10)
            for process in family:
                with suppressed():
                    process.kill()
            psutil.wait_procs(family, timeout=10)

    def wait(self, job_id: str, *statuses: str, seconds: float = 60.0) -> JobView:
        """The job once it has one of ``statuses``."""
        eventually(lambda: self.job(job_id).status in statuses, seconds)
        return self.job(job_id)

    def runner_pid(self, job_id: str) -> int:
        """The scripted runner of the job's current attempt, once it runs."""
        file = self.work(job_id) / "runner.pid"
        eventually(lambda: file.is_file() and bool(file.read_text()))
        return int(file.read_text())


@contextmanager
def suppressed() -> Iterator[None]:
    """A process that is gone already is fine."""
    try:
        yield
    except psutil.NoSuchProcess:
        return


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all its descendants, those still running."""
    with suppressed():
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether there is such a process, zombies aside."""
    with suppressed():
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def command_of(process: psutil.Process) -> str:
    """Its command line; empty when it is gone."""
    with suppressed():
        return " ".join(process.cmdline())
    return ""


@pytest.fixture
def settings(tmp_path: Path, database_url: str, broker_url: str) -> Settings:
    """Short leases, and a local model for every behavior of the scripted runner."""
    for behavior in BEHAVIORS:
        write_sound_model(tmp_path / "var" / "models" / behavior)
    return Settings(
        data_dir=tmp_path / "var",
        database_url=SecretStr(database_url),
        broker_url=SecretStr(broker_url),
        **FAST,
    )


@contextmanager
def working_office(database: Database, settings: Settings) -> Iterator[Office]:
    """Everything wired as the service wires it, the queue empty."""
    celery = make_celery(settings)
    with celery.connection_for_write() as connection:
        connection.default_channel.queue_purge("quantry")
    store = open_store(settings)
    office = Office(
        database=database,
        settings=settings,
        commands=JobCommands(database, settings, store, CeleryNudger(celery)),
        queries=JobQueries(database, settings, store),
        leases=JobLeases(database, settings),
        store=store,
        credentials=CredentialService(database, Vault.open(settings)),
    )
    try:
        yield office
    finally:
        office.stop_workers()
        celery.close()


@pytest.fixture
def office(database: Database, settings: Settings) -> Iterator[Office]:
    """An office of the test's own."""
    with working_office(database, settings) as office:
        yield office
