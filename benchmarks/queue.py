"""Measure the overhead of the queue and its fairness, with many small jobs of several tenants and real workers.

python -m benchmarks.queue --jobs 500 --workers 2 --tenants 5 --json out.json

It uses a private PostgreSQL and Valkey. All jobs are queued before the workers start. Half of them belong to the first
tenant, which submits first. The runner computes nothing. At the same time and on the same machine, the runner is also
started repeatedly without a worker (a bare start). A job's overhead is the time from its claim (by the database's
clock) to the runner's first line, minus the median of the bare starts. At the end single jobs are submitted to idle
workers, which gives ``submit to claim``. Times are seconds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import redis
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from benchmarks.queue_figures import ServedJob, figures
from benchmarks.queue_runner import COMMAND
from jobs.artifacts import open_store
from jobs.embedded import Urls, embedded_services
from jobs.job.commands import JobCommands
from jobs.job.nudge import QUEUE_NAME, redis_url
from jobs.kit.states import TERMINAL, JobStatus
from jobs.repository.database import Database
from jobs.repository.models import Job
from jobs.settings import Settings
from quant_engine.policy import JobRequest
from tests.sound_model import write_sound_model
from worker.nudge import CeleryNudger, make_celery
from worker.subprocesses.environment import runner_environment

_ROOT: Final = Path(__file__).resolve().parent.parent
_MODEL: Final = "tiny"
_PAUSE_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 30.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quantry-queue-")))
        urls = stack.enter_context(embedded_services(Settings(data_dir=directory, database_url=None, broker_url=None)))
        found = measure(urls, directory, jobs=options.jobs, workers=options.workers, tenants=options.tenants)
    Console().print(queue_table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(
    urls: Urls, directory: Path, *, jobs: int, workers: int, tenants: int, singles: int = 5, seconds: float = 3600.0
) -> dict[str, Any]:
    """Queue the jobs, wait until the workers have served them, and return the figures of :func:`figures`.

    Raises:
        TimeoutError: the jobs were not done within ``seconds``.
    """
    settings = _settings(urls, directory)
    database = Database(urls.database_url)
    with ExitStack() as stack:
        stack.callback(database.close)
        celery = make_celery(settings)
        stack.callback(celery.close)
        commands = JobCommands(database, settings, open_store(settings), CeleryNudger(celery))
        # Before the workers start, so that every claim chooses among jobs of all tenants.
        ids = [_submit(commands, tenant) for tenant in _arrivals(jobs, tenants)]
        for number in range(workers):
            stack.enter_context(_worker(settings, number))
        deadline = time.monotonic() + seconds
        bare = _bare_starts_until_done(database, ids, settings, deadline)
        # A worker that still has nudges to take is not idle.
        _await_silence(urls)
        single = [_serve_alone(commands, database, deadline) for _ in range(singles)]
        served = _served(database, ids)
    return {"workers": workers, "cores": os.cpu_count(), **figures(served, bare, single)}


def queue_table(found: dict[str, Any]) -> Table:
    """The table with one line for each figure."""
    title = f"{found['jobs']} jobs of {found['tenants']} tenants, {found['workers']} workers, {found['cores']} cores"
    table = Table("", "median", "p95", "most", title=title)
    for name in ("claim_to_start", "bare_start", "overhead", "between_jobs", "submit_to_claim"):
        row = found[name]
        table.add_row(f"{name.replace('_', ' ')}, ms", *(f"{1e3 * row[key]:.0f}" for key in ("median", "p95", "max")))
    for name in ("inversions", "share_deviation", "wait_ratio", "total_seconds"):
        value = found[name]
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value), "", "")
    return table


def _settings(urls: Urls, directory: Path) -> Settings:
    data_dir = directory / "var"
    # The runner reads no model, but submit checks the one that a request names.
    write_sound_model(data_dir / "models" / _MODEL)
    return Settings(data_dir=data_dir, database_url=SecretStr(urls.database_url), broker_url=SecretStr(urls.broker_url))


def _arrivals(jobs: int, tenants: int) -> Iterator[str]:
    """Yield the tenant of each job in the order of submission: one tenant submits half, then the others in turn."""
    flood = jobs // 2 if tenants > 1 else jobs
    for _ in range(flood):
        yield "tenant-0"
    for number in range(jobs - flood):
        yield f"tenant-{1 + number % (tenants - 1)}"


def _submit(commands: JobCommands, tenant: str) -> str:
    body = {"model": {"source": "local", "id": _MODEL}, "policy": {"preset": "trainable-smoothrot-w4a4"}}
    request = JobRequest.model_validate(body)
    return commands.create_job(request, tenant=tenant).job.id


@contextmanager
def _worker(settings: Settings, number: int) -> Iterator[None]:
    assert settings.database_url is not None, "set above"  # noqa: S101 - narrows the type
    assert settings.broker_url is not None, "set above"  # noqa: S101 - narrows the type
    environment = {
        **os.environ,
        "QUANTRY_DATA_DIR": str(settings.data_dir),
        "QUANTRY_DATABASE_URL": settings.database_url.get_secret_value(),
        "QUANTRY_BROKER_URL": settings.broker_url.get_secret_value(),
    }
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.queue_worker", "worker", "--loglevel=WARNING"]
    with (settings.data_dir / f"worker-{number}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - constants and this interpreter
            command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        # SIGTERM lets the worker stop in order; it is killed only if that takes too long.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_silence(urls: Urls) -> None:
    """Wait until the workers have taken every nudge from the broker."""
    with redis.Redis.from_url(redis_url(urls.broker_url)) as broker:
        while broker.llen(QUEUE_NAME):
            time.sleep(_PAUSE_SECONDS)


def _serve_alone(commands: JobCommands, database: Database, deadline: float) -> float:
    """Submit one job to idle workers, and return the seconds from its submission to its claim."""
    time.sleep(_PAUSE_SECONDS)
    job_id = _submit(commands, "tenant-0")
    while _unfinished(database, [job_id]):
        _require_time(deadline)
        time.sleep(_PAUSE_SECONDS)
    # Both times are of the database's clock, so the difference has no error between two clocks.
    with database.transaction() as session:
        waited = select(func.extract("epoch", Job.started_at - Job.created_at)).where(Job.id == job_id)
        return float(session.scalars(waited).one())


def _require_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("The jobs are not done in time; the workers' logs may say why.")


def _bare_starts_until_done(database: Database, ids: Sequence[str], settings: Settings, deadline: float) -> list[float]:
    """Start the runner without a worker, with pauses of half a second, until all jobs are done; return the times."""
    taken: list[float] = []
    while not taken or _unfinished(database, ids):
        _require_time(deadline)
        taken.append(_bare_start(settings.data_dir / "bare" / str(len(taken))))
        time.sleep(_PAUSE_SECONDS)
    return taken


def _bare_start(directory: Path) -> float:
    """Start the runner once, and return the seconds from just before its process starts to its first line."""
    scratch, output = directory / "scratch", directory / "output"
    scratch.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps({"output_dir": str(output)}))
    # The same environment and arguments as from a worker, so that both starts do the same work.
    environment = runner_environment(scratch, threads=1, gpu=None)
    with (directory / "events").open("wb") as events, (directory / "runner.log").open("ab") as log:
        began = time.time()
        subprocess.run(  # noqa: S603 - constants and this interpreter
            [*COMMAND, str(directory / "run.json"), "--events-fd", str(events.fileno())],
            env=environment,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(events.fileno(),),
            start_new_session=True,
            check=True,
        )
    started: float = json.loads((output / "summary.json").read_bytes())["started_at"]
    return started - began


def _unfinished(database: Database, ids: Sequence[str]) -> int:
    with database.transaction() as session:
        where = (Job.id.in_(ids), Job.status.not_in(TERMINAL))
        return session.scalars(select(func.count()).select_from(Job).where(*where)).one()


def _served(database: Database, ids: Sequence[str]) -> list[ServedJob]:
    """In the order of their submission."""
    with database.transaction() as session:
        rows = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids)))}
    return [_as_served(rows[each]) for each in ids]


def _as_served(job: Job) -> ServedJob:
    if job.status != JobStatus.SUCCEEDED or job.summary is None or not (job.attempt_started_at and job.finished_at):
        raise RuntimeError(f"Job {job.id} is {job.status}, error {job.error}; nothing was measured.")
    return ServedJob(
        tenant=job.tenant,
        claimer=job.summary["claimer"],
        claimed_at=job.attempt_started_at.timestamp(),
        started_at=job.summary["started_at"],
        finished_at=job.finished_at.timestamp(),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tenants", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
