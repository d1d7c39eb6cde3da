"""Publications as a worker runs them: leases and fences, a Hub that is away, dying workers, and a job's own target."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from jobs.job.lease import Manifest
from jobs.kit.errors import InvalidState, PublicationNotFound, UnknownCredential
from jobs.publications.lease import Commit, PublicationClaim, PublicationLeases
from jobs.publications.service import PublicationService
from jobs.publications.views import PublicationView
from jobs.settings import Settings
from quant_engine.policy.request import HubTarget
from tests.hub_server import TOKEN, Fault
from tests.hub_uploads import WritableHub, new_repository, serve_uploads
from tests.integration.worker.conftest import TENANT, Office, eventually, family_of, is_running
from worker.outcomes import Outcome
from worker.publishing.attempt import PublishDependencies
from worker.publishing.publisher import Publisher, hub_tokens

REPO = "me/tiny"
ATTEMPTS = 2
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 512, "second.safetensors": b"second" * 9999}
PATIENT = {"QUANTRY_PUBLISH_RETRY_SECONDS": "0", "QUANTRY_LEASE_SECONDS": "300"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    with serve_uploads(WritableHub(part_bytes=1 << 16)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


@dataclass
class Press:
    """What publishes, and what a test asks of it."""

    office: Office
    service: PublicationService
    leases: PublicationLeases

    @property
    def settings(self) -> Settings:
        return self.office.settings

    def succeeded_job(self, files: Mapping[str, bytes] = FILES, **fields: Any) -> str:
        """A job that a worker has finished, with these files as its checkpoint."""
        job_id = self.office.submit("succeed", **fields)
        claim = self.office.leases.claim("test:1")
        assert claim is not None
        output = self.settings.data_dir / "output" / job_id
        output.mkdir(parents=True)
        for name, content in files.items():
            path = output / "checkpoint" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        artifacts = self.office.store.put(output)
        assert self.office.leases.publish(claim, Manifest(summary={}, report={}, layers=[], artifacts=artifacts))
        return job_id

    def create(self, job_id: str, **target: Any) -> str:
        """Ask for a publication."""
        asked = HubTarget.model_validate({"repo": REPO, **target})
        return self.service.create(job_id, asked, tenant=TENANT).id

    def view(self, publication_id: str) -> PublicationView:
        """As a client sees it."""
        return self.service.get(publication_id, tenant=TENANT)

    def publisher(self, **dependencies: Any) -> Publisher:
        """One in this process."""
        settings = self.settings
        tokens = hub_tokens(self.office.credentials, os.environ)
        made = {"leases": self.leases, "store": self.office.store, "token_for": tokens, "settings": settings}
        return Publisher(PublishDependencies(**{**made, **dependencies}), "test:1")

    def claim(self) -> PublicationClaim:
        """The oldest, which must be there."""
        claim = self.leases.claim("test:1")
        assert claim is not None
        return claim

    def expire_leases(self) -> None:
        """As if the worker had died."""
        with self.office.database.transaction() as session:
            session.execute(text("UPDATE publications SET lease_until = now() - interval '1 second'"))

    def wait(self, publication_id: str, *statuses: str) -> PublicationView:
        """The publication once it has one of ``statuses``."""
        eventually(lambda: self.view(publication_id).status in statuses, 60)
        return self.view(publication_id)


@pytest.fixture
def press(office: Office) -> Press:
    # With a lease that a busy machine does not lose; tests that need its end bring it about.
    chosen = {"publish_retry_seconds": 0.0, "publish_max_attempts": ATTEMPTS, "lease_seconds": 30.0}
    office.settings = office.settings.model_copy(update=chosen)
    return Press(
        office=office,
        service=PublicationService(office.database, office.settings),
        leases=PublicationLeases(office.database, office.settings),
    )


def test_a_succeeded_job_is_published(press: Press, hub: WritableHub) -> None:
    publication_id = press.create(press.succeeded_job())
    queued = press.view(publication_id)
    total = sum(map(len, FILES.values()))
    assert (queued.status, queued.private, queued.progress.bytes_total) == ("queued", True, total)
    assert press.publisher().run_next() == "succeeded"
    view = press.view(publication_id)
    assert (view.status, view.is_terminal, view.attempt, view.error) == ("succeeded", True, 1, None)
    assert view.commit is not None
    assert view.commit.sha == hub.repository(REPO).heads["main"]
    assert view.commit.url == f"{hub.url}/{REPO}/commit/{view.commit.sha}"
    assert (view.progress.bytes_done, view.progress.bytes_total) == (total, total)
    assert hub.repository(REPO).access == "private"
    assert list((press.settings.data_dir / "publishing").iterdir()) == [], "nothing is left behind"
    assert press.publisher().run_next() is None


def test_a_hub_that_is_busy_is_asked_again_later(press: Press, hub: WritableHub) -> None:
    hub.faults.append(Fault(match="/refs", status=429, headers={"Retry-After": "120"}))
    publication_id = press.create(press.succeeded_job())
    assert press.publisher().run_next() == "postponed"
    view = press.view(publication_id)
    assert (view.status, view.attempt, view.error) == ("queued", 1, None)
    assert view.last_error is not None
    assert view.last_error["code"] == "hub_rate_limited"
    assert view.next_attempt_at is not None
    assert 100 < (view.next_attempt_at - view.created_at).total_seconds() < 160
    assert press.publisher().run_next() is None, "not before that"


def test_a_hub_that_stays_away_fails_the_publication_and_a_retry_publishes_it(press: Press, hub: WritableHub) -> None:
    hub.failing = True
    job_id = press.succeeded_job()
    publication_id = press.create(job_id)
    assert [press.publisher().run_next() for _ in range(3)] == ["postponed", "failed", None]
    view = press.view(publication_id)
    assert (view.status, view.attempt) == ("failed", ATTEMPTS)
    assert view.error is not None
    assert (view.error["code"], view.error["category"]) == ("hub_unreachable", "platform")
    assert view.error["instance"] == f"/v1/publications/{publication_id}"
    assert press.office.job(job_id).status == "succeeded"
    hub.failing = False
    assert press.service.retry(publication_id, tenant=TENANT).status == "queued"
    assert press.publisher().run_next() == "succeeded"
    assert press.view(publication_id).attempt == 1


def test_what_the_user_must_mend_fails_at_once(press: Press, hub: WritableHub) -> None:
    hub.models[REPO] = new_repository(private=False)
    publication_id = press.create(press.succeeded_job())
    assert press.publisher().run_next() == "failed"
    error = press.view(publication_id).error
    assert error is not None
    assert (error["code"], error["category"]) == ("repo_is_public", "user")
    assert error["hint"]


def test_a_stored_credential_is_used_and_leaves_no_trace(
    press: Press, hub: WritableHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    vault = press.office.credentials
    stored = vault.create(tenant=TENANT, name="mine", token=SecretStr(TOKEN))
    job_id = press.succeeded_job()
    without = press.create(job_id)
    assert press.publisher().run_next() == "failed"
    error = press.view(without).error
    assert error is not None
    assert error["code"] == "hub_unauthorized"
    press.create(job_id, credential=stored.id)
    assert press.publisher().run_next() == "succeeded"
    assert len(hub.repository(REPO).commits) == 2
    with press.office.database.transaction() as session:
        for table in ("publications", "jobs", "job_events", "idempotency_keys"):
            rows = session.execute(text(f"SELECT t::text FROM {table} t")).scalars()  # noqa: S608 — our own names
            assert not any(TOKEN in row for row in rows)
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err
    files = [path for path in press.settings.data_dir.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_a_deleted_or_foreign_credential(press: Press, hub: WritableHub) -> None:
    del hub
    vault = press.office.credentials
    job_id = press.succeeded_job()
    foreign = vault.create(tenant="other", name="theirs", token=SecretStr(TOKEN))
    with pytest.raises(UnknownCredential) as refused:
        press.create(job_id, credential=foreign.id)
    assert refused.value.errors[0].pointer == "/credential"
    mine = vault.create(tenant=TENANT, name="mine", token=SecretStr(TOKEN))
    publication_id = press.create(job_id, credential=mine.id)
    vault.delete(mine.id, tenant=TENANT)
    assert press.publisher().run_next() == "failed"
    error = press.view(publication_id).error
    assert error is not None
    assert (error["code"], error["category"]) == ("credential_not_found", "user")


def test_the_fence_keeps_a_stale_worker_out(press: Press) -> None:
    press.create(press.succeeded_job())
    stale = press.claim()
    press.expire_leases()
    assert press.office.leases.sweep().publications == 1
    fresh = press.claim()
    assert (fresh.publication_id, fresh.fence, fresh.attempt) == (stale.publication_id, 2, 2)
    commit = Commit("a" * 40, "http://hub/commit")
    assert not press.leases.heartbeat(stale).ok
    assert not press.leases.record_progress(stale, 1, 2)
    assert not press.leases.succeed(stale, commit)
    assert not press.leases.release(stale)
    assert press.leases.heartbeat(fresh).ok
    assert press.leases.succeed(fresh, commit)
    assert not press.leases.succeed(fresh, commit)


def test_leases_that_run_out_again_and_again_end_in_a_failure(press: Press) -> None:
    publication_id = press.create(press.succeeded_job())
    for _ in range(ATTEMPTS):
        press.claim()
        press.expire_leases()
        press.office.leases.sweep()
    view = press.view(publication_id)
    assert (view.status, view.attempt) == ("failed", ATTEMPTS)
    assert view.error is not None
    assert view.error["code"] == "crash_loop"


def test_many_workers_claim_each_publication_once(press: Press) -> None:
    job_id = press.succeeded_job()
    wanted = {press.create(job_id, repo=f"me/tiny-{number}") for number in range(12)}
    claimed: list[str] = []

    def claim_all() -> None:
        while (claim := press.leases.claim("w")) is not None:
            claimed.append(claim.publication_id)

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(wanted)


def test_a_draining_publisher_hands_its_publication_back_uncounted(press: Press, hub: WritableHub) -> None:
    hub.held = "/storage/"
    publication_id = press.create(press.succeeded_job())
    publisher = press.publisher()
    publisher.start()
    eventually(hub.holding.is_set)
    publisher.stop()
    view = press.view(publication_id)
    assert (view.status, view.attempt) == ("queued", 0)
    hub.release()
    assert press.publisher().run_next() == "succeeded"
    assert len(hub.repository(REPO).commits) == 2


def test_a_worker_that_lost_its_claim_kills_the_upload(press: Press, hub: WritableHub) -> None:
    hub.held = "/storage/"
    publication_id = press.create(press.succeeded_job())
    publisher = press.publisher()
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(publisher.run_next()))
    thread.start()
    eventually(hub.holding.is_set)
    with press.office.database.transaction() as session:
        session.execute(text("UPDATE publications SET fence = fence + 1"))
    thread.join(20)
    assert outcome == ["lost"]
    assert hub.messages(REPO) == ["initial commit"]
    assert press.view(publication_id).status == "running", "whose it is now decides"


def test_only_a_succeeded_job_and_only_a_failed_publication(press: Press, hub: WritableHub) -> None:
    del hub
    waiting = press.office.submit("succeed")
    with pytest.raises(InvalidState):
        press.create(waiting)
    press.office.commands.cancel_job(waiting, tenant=TENANT)
    with pytest.raises(InvalidState):
        press.create(waiting)
    with pytest.raises(InvalidState, match="no checkpoint"):
        press.create(press.succeeded_job(files={}))
    publication_id = press.create(press.succeeded_job())
    with pytest.raises(InvalidState):
        press.service.retry(publication_id, tenant=TENANT)
    with pytest.raises(PublicationNotFound):
        press.service.get(publication_id, tenant="other")
    with pytest.raises(PublicationNotFound):
        press.service.retry(publication_id, tenant="other")


def test_output_hub_publishes_what_the_job_made(press: Press, hub: WritableHub) -> None:
    hub.failing = True  # the job does not care
    job_id = press.office.submit("succeed", output={"hub": {"repo": REPO}})
    assert press.office.supervisor().run_next() is Outcome.SUCCEEDED
    (publication,) = press.service.list_of(job_id, tenant=TENANT).data
    assert (publication.status, publication.repo, publication.private) == ("queued", REPO, True)
    hub.failing = False
    assert press.publisher().run_next() == "succeeded"
    repository = hub.repository(REPO)
    assert repository.commits[repository.heads["main"]].files["config.json"] == b"{}"


def test_a_failed_job_publishes_nothing(press: Press) -> None:
    job_id = press.office.submit("refuse", output={"hub": {"repo": REPO}})
    assert press.office.supervisor().run_next() is Outcome.FAILED
    assert press.service.list_of(job_id, tenant=TENANT).data == ()


def test_killed_workers_leave_one_commit(press: Press, hub: WritableHub) -> None:
    large = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    small = hashlib.sha256(FILES["second.safetensors"]).hexdigest()
    hub.held = f"/storage/{large}"
    job_id = press.succeeded_job()
    long_job = press.office.submit("step")
    worker = press.office.start_worker(**PATIENT)
    publication_id = press.create(job_id)
    eventually(lambda: hub.holding.is_set() and small in hub.objects, 60)
    eventually(lambda: press.office.job(long_job).status in {"running", "succeeded"}, 60)  # it holds back no job
    family = family_of(worker.pid)
    assert any("worker.publishing" in " ".join(process.cmdline()) for process in family)
    for process in family:
        process.send_signal(signal.SIGKILL)
    worker.wait(10)
    eventually(lambda: not any(is_running(process.pid) for process in family), 10)
    hub.release()
    assert press.view(publication_id).status == "running", "nobody could hand it back"
    press.office.start_worker(**PATIENT)
    view = press.wait(publication_id, "succeeded", "failed")  # without waiting for the lease
    assert (view.status, view.attempt) == ("succeeded", 2)
    assert [message.partition("\n")[0] for message in hub.messages(REPO)] == [f"Publish {job_id}", "initial commit"]
    assert sum(small in address for address, _ in hub.sent) == 1, "what the Hub had was not sent again"
    logs = "".join(path.read_text(errors="replace") for path in press.settings.data_dir.glob("worker-*.log"))
    assert TOKEN not in logs


def test_a_warm_shutdown_hands_the_publication_back(press: Press, hub: WritableHub) -> None:
    hub.held = "/storage/"
    publication_id = press.create(press.succeeded_job())
    worker = press.office.start_worker()
    eventually(hub.holding.is_set, 60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    view = press.view(publication_id)
    assert (view.status, view.attempt) == ("queued", 0)
