"""An attempt's output on its way into the artifact store, whatever happens to either."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import LocalStore, ManifestEntry, OnBytes, S3Store, open_store
from jobs.kit.errors import StoreRefused, StoreUnavailable
from tests.integration.worker.conftest import TENANT, Office, eventually
from tests.s3_server import Wire
from worker.outcomes import Outcome


@pytest.fixture
def in_background() -> Iterator[Callable[[Office], "Future[Outcome | None]"]]:
    """Run one attempt in a thread of its own, which the runner's life is tied to."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda office: pool.submit(office.supervisor().run_next)


class Trying(LocalStore):
    """A real store that first does what a test says, once it has been asked."""

    def __init__(self, root: Path, behave: Callable[[OnBytes], None]) -> None:
        super().__init__(root)
        self.asked = threading.Event()
        self._behave = behave

    def put(self, directory: Path, *, on_bytes: OnBytes | None = None) -> tuple[ManifestEntry, ...]:
        assert on_bytes is not None
        self.asked.set()
        self._behave(on_bytes)
        return super().put(directory, on_bytes=on_bytes)


def stage(office: Office, job_id: str) -> str | None:
    return {stage.name: stage.status.value for stage in office.job(job_id).stages}.get("publish")


def test_a_job_publishes_into_s3(office: Office, s3_settings: dict[str, str]) -> None:
    office.settings = office.settings.model_copy(update=s3_settings)
    office.store = open_store(office.settings)
    assert isinstance(office.store, S3Store)
    job_id = office.submit("succeed")
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    artifacts = office.queries.list_artifacts(job_id, tenant=TENANT).data
    assert [office.store.size(artifact.sha256) for artifact in artifacts] == [each.bytes for each in artifacts]
    assert not office.settings.artifacts_dir.exists()
    assert not office.work(job_id).exists()


def test_a_store_that_is_away_is_waited_for(
    office: Office, s3_settings: dict[str, str], wire: Wire, in_background: Any
) -> None:
    office.store = S3Store.connect(
        s3_settings["artifacts_url"].split("/")[2], endpoint_url=s3_settings["s3_endpoint_url"], attempts=1
    )
    wire.reset(may_send=0)
    job_id = office.submit("succeed")
    running = in_background(office)
    eventually(lambda: stage(office, job_id) == "running")
    beat = office.job(job_id).progress.heartbeat_at
    eventually(lambda: office.job(job_id).progress.heartbeat_at != beat)
    assert office.job(job_id).status == "running"
    wire.reset()
    assert running.result(60) is Outcome.SUCCEEDED
    assert stage(office, job_id) == "succeeded"


def test_a_cancel_ends_the_waiting(office: Office, in_background: Any) -> None:
    def be_away(_: OnBytes) -> None:
        raise StoreUnavailable

    office.store = Trying(office.settings.artifacts_dir, be_away)
    job_id = office.submit("succeed")
    running = in_background(office)
    assert office.store.asked.wait(30)
    office.commands.cancel_job(job_id, tenant=TENANT)
    assert running.result(30) is Outcome.CANCELLED
    assert office.job(job_id).status == "cancelled"
    assert not list(office.work(job_id).glob("*/output"))


def test_a_cancel_ends_an_upload_and_progress_is_in_bytes(office: Office, in_background: Any) -> None:
    def take_long(on_bytes: OnBytes) -> None:
        on_bytes(7)
        while True:
            time.sleep(0.01)
            on_bytes(0)

    office.store = Trying(office.settings.artifacts_dir, take_long)
    job_id = office.submit("succeed")
    running = in_background(office)
    eventually(lambda: office.job(job_id).progress.done == 7)
    shown = office.job(job_id).progress
    assert (shown.stage, shown.unit) == ("publish", "byte")
    assert shown.total is not None
    assert shown.total > 7
    office.commands.cancel_job(job_id, tenant=TENANT)
    assert running.result(30) is Outcome.CANCELLED
    assert office.queries.list_artifacts(job_id, tenant=TENANT).data == ()


def test_a_store_that_refuses_fails_the_job_with_a_remedy(office: Office) -> None:
    def refuse(_: OnBytes) -> None:
        raise StoreRefused

    office.store = Trying(office.settings.artifacts_dir, refuse)
    job_id = office.submit("succeed")
    assert office.supervisor().run_next() is Outcome.FAILED
    error = office.job(job_id).error
    assert error is not None
    assert (error["code"], error["category"]) == ("store_refused", "platform")
    assert "QUANTRY_ARTIFACTS_URL" in error["hint"]
