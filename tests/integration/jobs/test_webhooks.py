"""The outbox: messages are committed with what they tell, sent at least once, and by one sender at a time."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from standardwebhooks import Webhook

from jobs.credentials import Vault
from jobs.job.lease import Manifest
from jobs.kit.errors import InvalidState, JobProblem
from jobs.kit.states import DeliveryStatus, JobStatus
from jobs.publications.lease import Commit, PublicationLeases
from jobs.repository import webhook_queue, webhooks
from jobs.repository.changes import move_job
from jobs.repository.database import Database
from jobs.repository.models import Job, WebhookDelivery, WebhookEndpoint
from jobs.repository.outbox_events import DEFAULT_EVENTS, EVENT_TYPES
from jobs.settings import Settings
from jobs.webhooks.lease import DeliveryLeases, Refusal
from jobs.webhooks.requests import NewWebhook, WebhookChanges
from jobs.webhooks.service import WebhookService
from jobs.webhooks.views import DeliveryView, WebhookWithSecretView
from tests.integration.jobs.conftest import TENANT, House, layer
from worker.webhooks.deliverer import Deliverer
from worker.webhooks.transport import Answer, Undeliverable

URL = "https://hooks.example.com/quantry"
BROKEN = JobProblem(code="numerical_instability", category="user", title="NaN", detail="NaN.", hint="Try again.")


@dataclass
class Post:
    """A port to no network: notes what is posted, and answers as it is told, always with the last one in the end."""

    answers: list[Answer | Undeliverable] = field(default_factory=lambda: [Answer(200, None)])
    posted: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    under_way: set[str] = field(default_factory=set)
    twice_at_once: list[str] = field(default_factory=list)
    takes_seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """See ``Messenger``."""
        with self.lock:
            message = headers["webhook-id"]
            if message in self.under_way:
                self.twice_at_once.append(message)
            self.under_way.add(message)
            self.posted.append((url, dict(headers), body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        time.sleep(self.takes_seconds)
        with self.lock:
            self.under_way.discard(message)
        if isinstance(answer, Undeliverable):
            raise answer
        return answer


@dataclass
class Hooks:
    """Webhooks over the house's database, and hands to send and to look with."""

    house: House
    settings: Settings
    vault: Vault
    post: Post

    @property
    def service(self) -> WebhookService:
        return WebhookService(self.house.database, self.vault, self.settings)

    @property
    def leases(self) -> DeliveryLeases:
        return DeliveryLeases(self.house.database, self.vault, self.settings)

    def deliverer(self, concurrency: int = 0) -> Deliverer:
        return Deliverer(self.leases, self.post, concurrency=concurrency)

    def add(self, *events: str, tenant: str = TENANT) -> WebhookWithSecretView:
        new = NewWebhook.model_validate({"url": URL, **({"events": events} if events else {})})
        return self.service.create(new, tenant=tenant)

    def deliveries(self, hook: str, tenant: str = TENANT) -> list[DeliveryView]:
        """Oldest first."""
        return list(self.service.list_deliveries(hook, tenant=tenant, limit=100).data)[::-1]

    def delivery(self, hook: str) -> DeliveryView:
        """The only one."""
        [view] = self.deliveries(hook)
        return view

    def types(self, hook: str, tenant: str = TENANT) -> list[str]:
        return [view.type for view in self.deliveries(hook, tenant)]

    def shift(self, column: str, seconds: float) -> None:
        """Set one of the moments of every delivery to ``seconds`` from the database's now."""
        moment = func.clock_timestamp() + timedelta(seconds=seconds)
        with self.house.database.transaction() as session:
            session.execute(update(WebhookDelivery).values({column: moment}))

    def make_due(self) -> None:
        self.shift("available_at", -1)

    def send(self) -> str | None:
        """One attempt, of whatever is next."""
        self.make_due()
        return self.deliverer().deliver_next()


@pytest.fixture
def hooks(house: House, settings: Settings) -> Hooks:
    return Hooks(house, settings, Vault.open(settings), Post())


def manifest() -> Manifest:
    return Manifest(summary={}, report={"secret": "report"}, layers=[layer()], artifacts=[])


def test_every_status_that_is_subscribed_to_is_told_in_order(house: House, hooks: Hooks) -> None:
    everything, ends = hooks.add(*sorted(EVENT_TYPES)).id, hooks.add().id
    done, failed, cancelled, again = (house.submit() for _ in range(4))
    claims = [house.claim() for _ in range(2)]
    assert house.leases.publish(claims[0], manifest())
    assert house.leases.fail(claims[1], BROKEN)
    house.commands.cancel_job(cancelled, tenant=TENANT)
    claim = house.claim()
    assert house.leases.release(claim, "drain")
    house.commands.cancel_job(house.claim().job_id, tenant=TENANT)
    told: dict[str, list[str]] = {}
    for view in hooks.deliveries(everything):
        told.setdefault(view.payload["data"]["id"], []).append(view.type.removeprefix("job."))
    assert told == {
        done: ["queued", "running", "succeeded"],
        failed: ["queued", "running", "failed"],
        cancelled: ["queued", "cancelled"],
        again: ["queued", "running", "queued", "running"],  # and cancelling, which is not told
    }
    assert hooks.types(ends) == ["job.succeeded", "job.failed", "job.cancelled"]


def test_the_payload_is_thin(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.succeeded").id
    job = house.submit(metadata={"team": "secret"})
    assert house.leases.publish(house.claim(), manifest())
    [view] = hooks.deliveries(hook)
    moment = datetime.fromisoformat(view.payload["timestamp"])
    assert abs(moment - datetime.now(UTC)) < timedelta(minutes=5)
    links = {"self": f"/v1/jobs/{job}", "events": f"/v1/jobs/{job}/events", "artifacts": f"/v1/jobs/{job}/artifacts"}
    assert view.payload == {
        "type": "job.succeeded",
        "timestamp": view.payload["timestamp"],
        "data": {"id": job, "object": "quantization.job", "status": "succeeded", "attempt": 1, "links": links},
    }
    assert "secret" not in json.dumps(view.payload)


def test_publications_are_told_of(house: House, hooks: Hooks, tmp_path: Any) -> None:
    hook = hooks.add().id
    leases = PublicationLeases(house.database, hooks.settings.model_copy(update={"publish_max_attempts": 1}))
    for end in (lambda claim: leases.succeed(claim, Commit("c0ffee", "https://hub/c0ffee")), _fail_with(leases)):
        job = house.submit(output={"hub": {"repo": "me/tiny"}})
        (tmp_path / "checkpoint").mkdir(exist_ok=True)
        (tmp_path / "checkpoint" / "config.json").write_text("{}")
        artifacts = house.store.put(tmp_path)
        published = Manifest(summary={}, report={}, layers=[layer()], artifacts=artifacts)
        assert house.leases.publish(house.claim(), published)
        claim = leases.claim("w1")
        assert claim is not None
        assert end(claim)
        [*_, last] = hooks.deliveries(hook)
        data = last.payload["data"]
        assert (data["id"], data["object"], data["job_id"]) == (claim.publication_id, "publication", job)
    told = ["job.succeeded", "publication.succeeded", "job.succeeded", "publication.failed"]
    assert hooks.types(hook) == told


def _fail_with(leases: PublicationLeases) -> Callable[[Any], bool]:
    return lambda claim: leases.fail(claim, BROKEN)


def test_a_transaction_that_is_rolled_back_leaves_no_message(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.running", "job.failed").id
    job = house.submit()
    with house.database.transaction() as session:
        assert move_job(session, JobStatus.RUNNING, Job.id == job) is not None
        assert session.scalars(select(func.count()).select_from(WebhookDelivery)).one() == 1
        session.rollback()
    assert (house.status(job), hooks.deliveries(hook)) == ("queued", [])


def test_a_write_that_changes_no_row_leaves_no_message(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.failed").id
    job = house.submit()
    stale = house.claim()
    house.expire(job)
    house.leases.sweep()
    house.claim("w2")
    assert not house.leases.fail(stale, BROKEN)
    assert hooks.deliveries(hook) == []


def test_others_and_the_disabled_are_not_told(house: House, hooks: Hooks) -> None:
    other, off = hooks.add(tenant="other").id, hooks.add().id
    hooks.service.change(off, WebhookChanges(enabled=False), tenant=TENANT)
    house.submit()
    assert house.leases.fail(house.claim(), BROKEN)
    assert hooks.deliveries(other, "other") == hooks.deliveries(off) == []


def test_a_job_does_not_wait_for_an_endpoint_that_is_being_deleted(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.running").id
    job = house.submit()
    with house.database.transaction() as session:
        assert webhooks.delete(session, TENANT, hook)
        assert house.claim().job_id == job  # in a transaction of its own; it would wait for this one for ever
    assert house.status(job) == "running"


def test_a_message_holds_its_endpoint_until_it_is_committed(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued").id
    deleted = threading.Event()

    def delete() -> None:
        hooks.service.delete(hook, tenant=TENANT)
        deleted.set()

    with house.database.transaction() as session:
        webhooks.add_deliveries(
            session, [_message(held) for held in webhooks.hold_subscribers(session, TENANT, "job.queued")]
        )
        thread = threading.Thread(target=delete)
        thread.start()
        assert not deleted.wait(0.3)
    assert deleted.wait(10)
    thread.join()


def _message(endpoint_id: str) -> WebhookDelivery:
    return WebhookDelivery(id="msg_x", endpoint_id=endpoint_id, status="pending", type="job.queued", payload="{}")


def test_a_message_is_sent_signed_and_noted(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued")
    house.submit()
    assert hooks.send() == "succeeded"
    assert hooks.send() is None
    [(url, headers, body)] = hooks.post.posted
    view = hooks.delivery(hook.id)
    assert (url, headers["webhook-id"], headers["Content-Type"]) == (URL, view.id, "application/json")
    assert Webhook(hook.secret).verify(body, headers) == view.payload
    assert (view.status, view.attempts, view.last_status, view.last_error) == ("succeeded", 1, 200, None)
    assert view.next_attempt_at is None
    assert view.finished_at is not None
    assert view.last_attempt_at is not None


def test_two_deliverers_send_each_message_once(house: House, hooks: Hooks) -> None:
    hook_ids = [hooks.add("job.queued").id for _ in range(5)]
    for _ in range(6):
        house.submit()
    hooks.post.takes_seconds = 0.01
    deliverers = [hooks.deliverer(3) for _ in range(2)]
    for deliverer in deliverers:
        deliverer.start()
    _eventually(lambda: all(view.status == "succeeded" for hook in hook_ids for view in hooks.deliveries(hook)))
    for deliverer in deliverers:
        deliverer.stop()
    sent = [headers["webhook-id"] for _, headers, _ in hooks.post.posted]
    assert len(sent) == len(set(sent)) == 30
    assert hooks.post.twice_at_once == []


def test_of_two_claims_at_once_one_gets_the_message(house: House, hooks: Hooks) -> None:
    hooks.add("job.queued")
    house.submit()
    with house.database.transaction() as session, house.database.transaction() as other:
        assert webhook_queue.claim_due(session, 30, 10) is not None
        assert webhook_queue.claim_due(other, 30, 10) is None
    assert hooks.leases.claim() is None


def test_a_receiver_that_hangs_takes_up_one_sender(house: House, hooks: Hooks) -> None:
    slow, quick = hooks.add("job.queued").id, hooks.add("job.queued").id
    for _ in range(3):
        house.submit()
    claims = [hooks.leases.claim() for _ in range(3)]
    assert claims[2] is None
    assert {claim.endpoint_id for claim in claims if claim is not None} == {slow, quick}


def test_a_sender_that_dies_is_followed_by_another_and_writes_nothing_late(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued").id
    house.submit()
    first = hooks.leases.claim()
    assert first is not None
    assert hooks.leases.claim() is None
    hooks.shift("lease_until", -1)
    second = hooks.leases.claim()
    assert second is not None
    assert (second.delivery_id, second.body, second.attempt) == (first.delivery_id, first.body, 2)
    assert not hooks.leases.refuse(first, Refusal("late"))
    assert not hooks.leases.succeed(first, 200)
    assert hooks.delivery(hook).status == "pending"
    assert hooks.leases.succeed(second, 200)
    assert hooks.delivery(hook).status == "succeeded"


def test_a_sender_that_stood_still_does_not_send(house: House, hooks: Hooks) -> None:
    hooks.add("job.queued")
    house.submit()
    moments = iter([0.0, 0.0, hooks.leases.lease_seconds])
    deliverer = Deliverer(hooks.leases, hooks.post, concurrency=0, clock=lambda: next(moments))
    assert deliverer.deliver_next() == "late"
    assert hooks.post.posted == []


def test_failures_are_tried_again_later_and_given_up_in_the_end(house: House, hooks: Hooks) -> None:
    hooks.settings = hooks.settings.model_copy(update={"webhook_max_attempts": 3})
    hook = hooks.add("job.queued").id
    house.submit()
    hooks.post.answers = [Answer(500, None), Undeliverable("No answer within 10 seconds."), Answer(302, None)]
    assert hooks.send() == "refused"
    view = hooks.delivery(hook)
    assert (view.status, view.attempts, view.last_status) == ("pending", 1, 500)
    assert "500" in (view.last_error or "")
    assert 4 < _seconds_until(view.next_attempt_at) <= 6
    assert hooks.deliverer().deliver_next() is None  # not yet
    assert hooks.send() == "undeliverable"
    view = hooks.delivery(hook)
    assert (view.attempts, view.last_status, view.last_error) == (2, None, "No answer within 10 seconds.")
    assert 299 < _seconds_until(view.next_attempt_at) <= 360
    assert hooks.send() == "refused"
    view = hooks.delivery(hook)
    assert (view.status, view.attempts, view.last_status) == ("failed", 3, 302)
    assert "redirects are not followed" in (view.last_error or "")
    assert hooks.send() is None
    bodies = {body for _, _, body in hooks.post.posted}
    ids = {headers["webhook-id"] for _, headers, _ in hooks.post.posted}
    assert (len(bodies), len(ids), len(hooks.post.posted)) == (1, 1, 3)


@pytest.mark.parametrize("told", ["120", "date"])
def test_a_receiver_can_ask_for_time(house: House, hooks: Hooks, told: str) -> None:
    hook = hooks.add("job.queued").id
    house.submit()
    later = (datetime.now(UTC) + timedelta(seconds=120)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    hooks.post.answers = [Answer(429, later if told == "date" else told)]
    assert hooks.send() == "refused"
    assert 115 < _seconds_until(hooks.delivery(hook).next_attempt_at) <= 145


@pytest.mark.parametrize("nonsense", ["", "soon", "-5", "1e9", "99999999999999999999", "Mon, 99 Foo 2026 00:00:00"])
def test_nonsense_in_retry_after_is_bounded(house: House, hooks: Hooks, nonsense: str) -> None:
    hook = hooks.add("job.queued").id
    house.submit()
    hooks.post.answers = [Answer(503, nonsense)]
    assert hooks.send() == "refused"
    assert 4 < _seconds_until(hooks.delivery(hook).next_attempt_at) <= 1.2 * 86_400


def test_a_receiver_that_is_gone_gets_nothing_more(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued").id
    house.submit()
    house.submit()
    hooks.post.answers = [Answer(410, None)]
    assert hooks.send() == "gone"
    view = hooks.service.get(hook, tenant=TENANT)
    assert (view.enabled, view.disabled_reason) == (False, "gone")
    assert hooks.send() is None
    assert hooks.leases.tidy() == 1
    assert [view.status for view in hooks.deliveries(hook)] == ["failed", "failed"]
    house.submit()
    assert len(hooks.deliveries(hook)) == 2
    with pytest.raises(InvalidState, match="disabled"):
        hooks.service.redeliver(hook, hooks.deliveries(hook)[0].id, tenant=TENANT)
    with pytest.raises(InvalidState, match="disabled"):
        hooks.service.test(hook, tenant=TENANT)


def test_days_of_nothing_but_failures_disable_and_one_success_forgives(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued").id
    for _ in range(4):
        house.submit()
    hooks.post.answers = [Answer(500, None), Answer(200, None), Answer(500, None)]
    assert hooks.send() == "refused"
    assert hooks.service.get(hook, tenant=TENANT).failing_since is not None
    _fail_since(house.database, hook, days=6)
    assert hooks.send() == "succeeded"
    assert hooks.service.get(hook, tenant=TENANT).failing_since is None
    assert hooks.send() == "refused"
    _fail_since(house.database, hook, days=4)
    assert hooks.send() == "refused"
    assert hooks.service.get(hook, tenant=TENANT).enabled
    _fail_since(house.database, hook, days=6)
    assert hooks.send() == "refused"
    view = hooks.service.get(hook, tenant=TENANT)
    assert (view.enabled, view.disabled_reason) == (False, "failing")
    view = hooks.service.change(hook, WebhookChanges(enabled=True), tenant=TENANT)
    assert (view.enabled, view.disabled_reason, view.failing_since) == (True, None, None)


def _fail_since(database: Database, hook: str, *, days: int) -> None:
    moment = func.clock_timestamp() - timedelta(days=days)
    with database.transaction() as session:
        session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == hook).values(failing_since=moment))


def test_a_rotated_secret_signs_beside_the_new_one_for_its_time(house: House, hooks: Hooks) -> None:
    first = hooks.add("job.queued")
    second = hooks.service.rotate(first.id, tenant=TENANT)
    assert second.secret != first.secret
    assert 86_000 < _seconds_until(second.previous_secret_until) <= 86_400
    house.submit()
    assert hooks.send() == "succeeded"
    _, headers, body = hooks.post.posted[-1]
    assert len(headers["webhook-signature"].split()) == 2
    for secret in (first.secret, second.secret):
        Webhook(secret).verify(body, headers)
    with house.database.transaction() as session:
        session.execute(update(WebhookEndpoint).values(previous_until=func.clock_timestamp() - timedelta(seconds=1)))
    house.submit()
    assert hooks.send() == "succeeded"
    _, headers, body = hooks.post.posted[-1]
    assert len(headers["webhook-signature"].split()) == 1
    Webhook(second.secret).verify(body, headers)


def test_a_secret_of_another_key_is_not_sent_with(house: House, hooks: Hooks, tmp_path: Any) -> None:
    hook = hooks.add("job.queued").id
    house.submit()
    hooks.vault = Vault.open(Settings(data_dir=tmp_path / "elsewhere"))
    assert hooks.send() == "unreadable"
    assert hooks.post.posted == []
    assert "key" in (hooks.delivery(hook).last_error or "")


def test_a_message_can_be_sent_again_under_its_id(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued").id
    house.submit()
    assert hooks.send() == "succeeded"
    before = hooks.delivery(hook)
    again = hooks.service.redeliver(hook, before.id, tenant=TENANT)
    assert (again.id, again.status, again.attempts, again.payload) == (before.id, "pending", 0, before.payload)
    claim = hooks.leases.claim()
    assert claim is not None
    with pytest.raises(InvalidState, match="being sent"):
        hooks.service.redeliver(hook, before.id, tenant=TENANT)
    assert hooks.leases.succeed(claim, 204)
    assert hooks.delivery(hook).last_status == 204


def test_the_last_attempt_of_a_sender_that_died_is_given_up(house: House, hooks: Hooks) -> None:
    hooks.settings = hooks.settings.model_copy(update={"webhook_max_attempts": 1})
    hook = hooks.add("job.queued").id
    house.submit()
    assert hooks.leases.claim() is not None
    assert hooks.leases.tidy() == 0
    hooks.shift("lease_until", -1)
    assert hooks.leases.claim() is None
    assert hooks.leases.tidy() == 1
    view = hooks.delivery(hook)
    assert view.status == "failed"
    assert view.last_error


def test_ended_deliveries_are_forgotten_in_time(house: House, hooks: Hooks) -> None:
    hook = hooks.add("job.queued").id
    for _ in range(3):
        house.submit()
    assert hooks.send() == "succeeded"
    assert hooks.send() == "succeeded"
    hooks.shift("finished_at", -100)
    hooks.make_due()
    with house.database.transaction() as session:
        session.execute(update(WebhookDelivery).where(WebhookDelivery.status == "pending").values(finished_at=None))
        assert webhook_queue.purge(session, 101, 10) == 0
        assert [webhook_queue.purge(session, 99, 1) for _ in range(3)] == [1, 1, 0]
    assert [view.status for view in hooks.deliveries(hook)] == ["pending"]


def test_the_default_is_the_ends() -> None:
    assert set(DEFAULT_EVENTS) < EVENT_TYPES
    assert not {"job.queued", "job.running"} & set(DEFAULT_EVENTS)
    assert {f"job.{status}" for status in JobStatus if status is not JobStatus.CANCELLING} <= EVENT_TYPES
    assert {status.value for status in DeliveryStatus} == {"pending", "succeeded", "failed"}


def _seconds_until(moment: datetime | None) -> float:
    assert moment is not None
    return (moment - datetime.now(UTC)).total_seconds()


def _eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
