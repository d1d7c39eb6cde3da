"""Webhooks by real worker processes: from a job's end to a verified message, whoever is killed on the way."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy import func, update
from standardwebhooks import Webhook

from jobs.credentials import Vault
from jobs.repository.database import Database
from jobs.repository.models import WebhookDelivery
from jobs.webhooks.requests import NewWebhook
from jobs.webhooks.service import WebhookService
from jobs.webhooks.views import WebhookWithSecretView
from tests.integration.worker.conftest import ROOT, TENANT, Office, eventually, family_of, suppressed
from tests.webhook_receiver import Exchange, Receiver, receiving
from worker.webhooks.deliverer import Deliverer, open_deliverer

OPEN = {"QUANTRY_WEBHOOK_ALLOW_PRIVATE": "true", "QUANTRY_WEBHOOK_RETRY_SECONDS": "0.2"}

_CANCEL_AND_DIE = """
import os, signal, sys
from jobs.repository.database import Database
from jobs.repository import jobs
url, tenant, job, commits = sys.argv[1:]
with Database(url).transaction() as session:
    assert jobs.request_cancel(session, jobs.lock(session, tenant, job)) is not None
    if commits != "commits":
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def service(office: Office) -> WebhookService:
    """Webhooks that may be sent to this machine."""
    settings = office.settings.model_copy(update={"webhook_allow_private": True})
    return WebhookService(office.database, Vault.open(settings), settings)


def add(service: WebhookService, receiver: Receiver, *events: str) -> WebhookWithSecretView:
    new = NewWebhook.model_validate({"url": receiver.url(), "events": events})
    return service.create(new, tenant=TENANT)


def deliverer(office: Office) -> Deliverer:
    """Another worker's, in this process."""
    settings = office.settings.model_copy(update={"webhook_allow_private": True})
    return open_deliverer(office.database, settings)


def kill(worker_pid: int) -> None:
    """kill -9 of a worker's every process."""
    family = family_of(worker_pid)
    for process in family:
        with suppressed():
            process.kill()
    psutil.wait_procs(family, timeout=10)


def test_a_jobs_end_reaches_its_receiver_through_failures_and_a_killed_worker(
    office: Office, service: WebhookService, receiver: Receiver
) -> None:
    """One worker for both, for a worker takes seconds to start: first a receiver that fails, then a kill -9."""
    hook = add(service, receiver, "job.running", "job.succeeded")
    receiver.answers(500, 200)
    worker = office.start_worker(**OPEN)
    job = office.submit("succeed")
    received = receiver.wait_for(3, seconds=90)
    messages = [Webhook(hook.secret).verify(each.body, each.headers) for each in received]
    assert {message["data"]["id"] for message in messages} == {job}
    assert {message["type"] for message in messages} == {"job.running", "job.succeeded"}
    assert len({each.headers["webhook-id"] for each in received}) == 2
    eventually(lambda: _statuses(service, hook.id) == ["succeeded"] * 2)

    receiver.script[:] = [Exchange.hang]
    office.wait(office.submit("succeed"), "succeeded", seconds=90)
    first = receiver.wait_for(4)[3]
    kill(worker.pid)
    assert _statuses(service, hook.id) == ["pending"] * 2 + ["succeeded"] * 2
    _let_leases_run_out(office.database)
    receiver.answers(200)
    assert [deliverer(office).deliver_next() for _ in range(3)] == ["succeeded", "succeeded", None]
    again, last = receiver.received[4:]
    assert (again.body, again.headers["webhook-id"]) == (first.body, first.headers["webhook-id"])
    for each, event in ((again, "job.running"), (last, "job.succeeded")):
        assert Webhook(hook.secret).verify(each.body, each.headers)["type"] == event
    assert _statuses(service, hook.id) == ["succeeded"] * 4


def test_a_process_that_dies_right_after_its_commit_has_left_its_messages(
    office: Office, service: WebhookService, receiver: Receiver
) -> None:
    hook = add(service, receiver, "job.cancelled")
    cancelled, not_cancelled = office.submit("succeed"), office.submit("succeed")
    assert office.settings.database_url is not None
    url = office.settings.database_url.get_secret_value()
    for job, commits in ((cancelled, "commits"), (not_cancelled, "dies first")):
        died = subprocess.run([sys.executable, "-c", _CANCEL_AND_DIE, url, TENANT, job, commits], cwd=ROOT, check=False)
        assert died.returncode == -signal.SIGKILL
    assert deliverer(office).deliver_next() == "succeeded"
    assert deliverer(office).deliver_next() is None
    [received] = receiver.received
    assert Webhook(hook.secret).verify(received.body, received.headers)["data"]["id"] == cancelled


def _let_leases_run_out(database: Database) -> None:
    with database.transaction() as session:
        held = WebhookDelivery.lease_until.is_not(None)
        session.execute(update(WebhookDelivery).where(held).values(lease_until=func.clock_timestamp()))


def _statuses(service: WebhookService, hook: str) -> list[str]:
    return [view.status.value for view in service.list_deliveries(hook, tenant=TENANT).data]
