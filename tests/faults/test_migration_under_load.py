"""A migration under a running API and worker of the release before: no error answer, no job lost.

Migrations add before anything is taken away, so the release before must run on the new schema; its code comes from the
repository's history. And today's release must say that it has to wait, on any schema before its own.
"""

import io
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from api.main import create_app
from jobs.embedded import Urls
from jobs.repository import migrate
from jobs.repository.database import Database
from tests.api_server import serving
from tests.faults.offices import Apis, open_apis, open_office
from tests.faults.scale import scaled
from tests.integration.worker.conftest import ROOT, TENANT, Office, eventually
from tests.migrations import is_current
from worker.outcomes import Outcome

PREVIOUS_COMMIT: Final = "6b0e0f1868d117230c00b594cd10a9e920af8f9f"
PREVIOUS_REVISION: Final = "0002"
EARLIER: Final = ("base", "0001", "0002", "0003")
CUSTOMERS: Final = 2
SECONDS: Final = scaled(1, 10)
BODY: Final[dict[str, Any]] = {
    "model": {"source": "local", "id": "succeed"},
    "policy": {"preset": "trainable-smoothrot-w4a4"},
}


@pytest.fixture
def urls(embedded_urls: Urls) -> Iterator[Urls]:
    """The session's servers, with a database of the test's own, without tables."""
    with psycopg.connect(embedded_urls.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE older")
        yield Urls(embedded_urls.database_url.replace("/postgres?", "/older?"), embedded_urls.broker_url)
        connection.execute("DROP DATABASE older WITH (FORCE)")


@pytest.fixture
def database(urls: Urls) -> Iterator[Database]:
    """The empty database."""
    database = Database(urls.database_url, pool_size=10)
    yield database
    database.close()


@pytest.fixture
def office(database: Database, urls: Urls, tmp_path: Path) -> Iterator[Office]:
    with open_office(database, urls, tmp_path / "office") as office:
        yield office


def bring_to(database: Database, revision: str) -> None:
    """As ``alembic upgrade`` does."""
    if revision == "base":
        return
    with database.engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


# Today's release on a schema that has yet to be migrated.


def is_answered(response: httpx.Response) -> bool:
    """Whether it is an answer, or says that it will be one."""
    if response.status_code != 503:
        return response.status_code < 500
    return bool(response.json()["code"] == "not_migrated" and int(response.headers["retry-after"]) > 0)


@pytest.mark.parametrize("revision", EARLIER)
def test_todays_api_waits_for_its_schema_and_then_works(revision: str, office: Office, database: Database) -> None:
    bring_to(database, revision)
    with serving(create_app(office.settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/healthz").status_code == 200
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]["status"]) == (503, "not_migrated")
        paths = [path for path in client.get("/openapi.json").json()["paths"] if "{" not in path and path != "/readyz"]
        assert [path for path in paths if not is_answered(client.get(path))] == []
        created = client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "k"})
        assert is_answered(created)
        assert created.status_code == 503
        migrate.upgrade(database)
        assert client.get("/readyz").json()["checks"]["database"]["status"] == "ok"
        job_id = client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "k"}).json()["id"]
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    assert office.supervisor().run_next() is Outcome.SUCCEEDED


def test_todays_worker_waits_for_its_schema_and_then_works(office: Office, database: Database) -> None:
    bring_to(database, PREVIOUS_REVISION)
    worker = office.start_worker()
    log = office.settings.data_dir / "worker-0.log"
    eventually(lambda: "sweep_failed" in log.read_text())
    assert worker.poll() is None
    with serving(create_app(office.settings)) as url:
        assert httpx.post(f"{url}/v1/jobs", json=BODY).status_code == 503
    with database.transaction() as session:
        assert session.scalars(text("SELECT count(*) FROM jobs")).one() == 0, "what was refused was not half done"
    migrate.upgrade(database)
    assert office.wait(office.submit("succeed"), "succeeded", "failed").status == "succeeded"
    assert worker.poll() is None


# The release before, while the schema is migrated under it.


@pytest.fixture(scope="module")
def previous_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tree."""
    archive = subprocess.run(["git", "archive", PREVIOUS_COMMIT], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the history does not reach back to {PREVIOUS_COMMIT[:7]}: {archive.stderr.decode().strip()}")
    tree = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tree, filter="data")
    return tree


@dataclass
class Customers:
    """They submit, look, list, follow and cancel without a pause; every answer and every job is kept."""

    url: str
    stopping: threading.Event = field(default_factory=threading.Event)
    answers: "Counter[tuple[str, int]]" = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def visit(self) -> None:
        """One customer, until all are told to stop."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.stopping.is_set():
                job = self._ask(client, "POST", "/v1/jobs", json=BODY).json()
                with self.lock:
                    self.jobs.append(job["id"])
                    doomed = len(self.jobs) % 5 != 0  # the worker must come to an end
                for tail in ("", "/events", "/artifacts", "/layers"):
                    self._ask(client, "GET", f"/v1/jobs/{job['id']}{tail}")
                self._ask(client, "GET", "/v1/jobs?limit=5")
                if doomed:
                    self._ask(client, "POST", f"/v1/jobs/{job['id']}/cancel")

    def _ask(self, client: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
        response = client.request(method, path, **options)
        with self.lock:
            self.answers[method, response.status_code] += 1
            if response.status_code >= 500:
                self.errors.append(f"{method} {path}: {response.text}")
        return response

    def wait_for(self, count: int) -> None:
        """Until so many more jobs were accepted."""
        goal = len(self.jobs) + count
        eventually(lambda: len(self.jobs) >= goal or bool(self.errors), seconds=120)


@contextmanager
def visited(url: str) -> Iterator[Customers]:
    """Under load, from the first accepted job on; any exception of a customer is raised at the end."""
    customers = Customers(url)
    with ThreadPoolExecutor(CUSTOMERS) as pool:
        visits: list[Future[None]] = [pool.submit(customers.visit) for _ in range(CUSTOMERS)]
        try:
            customers.wait_for(CUSTOMERS)
            yield customers
        finally:
            customers.stopping.set()
    for visit in visits:
        visit.result()


@pytest.mark.slow
def test_a_migration_under_the_running_release_before_is_noticed_by_nobody(
    office: Office, database: Database, previous_release: Path
) -> None:
    bring_to(database, PREVIOUS_REVISION)
    with open_apis(office) as apis:
        start_previous(previous_release, office, apis)
        with visited(apis.url) as customers:
            with database.engine.begin() as reader:  # somebody reads for long: the migration gives up, nobody else does
                reader.execute(text("LOCK TABLE jobs IN ACCESS SHARE MODE"))
                with pytest.raises(OperationalError, match="lock timeout"):
                    migrate.upgrade(database)
            customers.wait_for(2 * SECONDS)
            migrate.upgrade(database)
            done = succeeded(office)
            customers.wait_for(5 * SECONDS)
            eventually(lambda: succeeded(office) > done, seconds=60)  # its worker goes on, too
        assert (customers.errors, is_current(database)) == ([], True)
        assert {status for _, status in customers.answers} <= {200, 202, 409}, customers.answers
    assert len(set(customers.jobs)) == len(customers.jobs)
    office.stop_workers()  # with jobs that wait: today's release takes them over
    office.start_worker()
    over = {"succeeded", "cancelled"}
    eventually(lambda: {office.job(job_id).status for job_id in customers.jobs} <= over, seconds=120)
    listed = office.queries.list_jobs(tenant=TENANT, limit=100).data
    assert {job.id for job in listed} <= set(customers.jobs)


def succeeded(office: Office) -> int:
    """How many jobs have been done."""
    with office.database.transaction() as session:
        return session.scalars(text("SELECT count(*) FROM jobs WHERE status = 'succeeded'")).one()


def start_previous(tree: Path, office: Office, apis: Apis) -> None:
    """The previous release's API and worker, on the office's database and broker."""
    environment = {**office.environment(), "PYTHONPATH": str(tree)}
    programs = {
        "api": ["-m", "uvicorn", "api.main:app", "--log-level=warning", f"--fd={apis.listener.fileno()}"],
        "worker": ["-m", "celery", "-A", "tests.scripted_worker", "worker", "--loglevel=INFO"],
    }
    for name, program in programs.items():
        with (office.settings.data_dir / f"previous-{name}.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *program],
                cwd=tree,
                env=environment,
                pass_fds=[apis.listener.fileno()],
                stdout=output,
                stderr=output,
            )
        (apis.processes if name == "api" else office.workers).append(process)
