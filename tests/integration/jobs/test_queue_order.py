"""The queue's order: first come, first served within a tenant; turns between tenants; nobody starves or blocks."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import delete, insert, select, update

from jobs.job.lease import Claim
from jobs.kit.errors import JobProblem
from jobs.kit.ids import new_id
from jobs.repository import clock, leases, turns
from jobs.repository.models import Job, QueueTurn
from tests.integration.jobs.conftest import House, request

HOUR = 3600.0
LEASE = 30.0
PROBLEM = JobProblem(code="unsafe_checkpoint", category="user", detail="Corrupt.", hint="Fetch it again.")


def submit(house: House, tenant: str) -> str:
    view, _ = house.commands.create_job(request(), tenant=tenant)
    return view.id


def submit_many(house: House, tenants: Sequence[str]) -> list[str]:
    """A job for each of ``tenants``, oldest first, without the service: hundreds of them take a second."""
    ids = sorted(new_id("job") for _ in tenants)
    limits = {"max_queue_seconds": 3600, "max_run_seconds": 3600, "max_attempts": 3}
    model = {"model_source": "local", "model_id": "tiny", "model_revision": "main"}
    rest = {"status": "queued", "policy": {}, "policy_hash": "", "options": {}, "spec": {}}
    began = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        {"id": each, "tenant": tenant, "created_at": began + timedelta(seconds=number), **limits, **model, **rest}
        for number, (each, tenant) in enumerate(zip(ids, tenants, strict=True))
    ]
    with house.database.transaction() as session:
        session.execute(insert(Job), rows)
        turns.tidy(session)
    return ids


def finish(house: House, claim: Claim) -> None:
    assert house.leases.fail(claim, PROBLEM)


def serve(house: House) -> Claim:
    """Claim a job and end it."""
    claim = house.claim()
    finish(house, claim)
    return claim


def turn_rows(house: House) -> set[str]:
    with house.database.transaction() as session:
        return set(session.scalars(select(QueueTurn.tenant)))


def test_a_tenants_jobs_run_in_the_order_of_their_creation(house: House) -> None:
    jobs = [submit(house, "a") for _ in range(5)]
    assert [serve(house).job_id for _ in jobs] == jobs


def test_tenants_alternate_however_long_their_backlogs_are(house: House) -> None:
    submit_many(house, "a" * 12 + "b" * 3 + "c")
    assert "".join(serve(house).tenant for _ in range(16)) == "abc" + "ab" * 2 + "a" * 9


def test_one_job_beside_a_flood_is_served_next_and_a_second_one_is_second(house: House) -> None:
    submit_many(house, "a" * 100)
    assert serve(house).tenant == "a"
    submit(house, "b")
    assert [serve(house).tenant for _ in range(2)] == ["b", "a"]
    submit(house, "b")
    assert [serve(house).tenant for _ in range(3)] == ["b", "a", "a"]


def test_who_has_fewer_jobs_running_goes_first(house: House) -> None:
    submit_many(house, "aaabbb")
    first = house.claim()
    served = [serve(house).tenant for _ in range(3)]
    assert (first.tenant, served) == ("a", ["b"] * 3)
    finish(house, first)
    assert [serve(house).tenant for _ in range(2)] == ["a"] * 2


def test_a_delayed_job_blocks_neither_its_tenant_nor_the_others_and_keeps_its_place(house: House) -> None:
    a1, a2, b1, a3 = submit_many(house, "aaba")
    house.shift(a1, "available_at", HOUR)
    assert [serve(house).job_id for _ in range(2)] == [a2, b1]
    house.shift(a1, "available_at", -1)
    assert [serve(house).job_id for _ in range(2)] == [a1, a3]


def test_a_tenant_whose_jobs_are_all_delayed_keeps_its_turn(house: House) -> None:
    a1, *_ = submit_many(house, "abb")
    house.shift(a1, "available_at", HOUR)
    assert serve(house).tenant == "b"
    house.shift(a1, "available_at", -1)
    assert serve(house).tenant == "a"


def test_a_job_that_waited_too_long_is_passed_over(house: House) -> None:
    expired, next_one = submit_many(house, "aa")
    house.shift(expired, "queued_at", -2 * HOUR)
    assert house.claim().job_id == next_one
    assert house.leases.claim("w2") is None


@pytest.mark.parametrize("reason", ["crash", "drain"])
def test_a_job_that_comes_back_keeps_its_place(house: House, reason: str) -> None:
    a1, a2 = submit_many(house, "aa")
    claim = house.claim()
    assert house.leases.release(claim, "crash" if reason == "crash" else "drain")
    assert [serve(house).job_id for _ in range(2)] == [a1, a2]


def test_two_claimers_at_once_neither_wait_nor_pass_a_tenant_over(house: House) -> None:
    a1, a2, _, b1 = submit_many(house, "aaab")
    began = time.monotonic()
    with ExitStack() as open_claims:
        claimed = []
        for _ in range(3):  # none of them has committed when the next one looks
            session = open_claims.enter_context(house.database.transaction())
            job = leases.claim_oldest(session, "w", LEASE)
            assert job is not None
            claimed.append(job.id)
        submit(house, "a")  # a client is not kept waiting by claimers either
    assert claimed == [a1, b1, a2]
    assert time.monotonic() - began < 20


def test_a_claim_that_is_rolled_back_leaves_turn_and_job(house: House) -> None:
    a1, *_ = submit_many(house, "ab")
    with house.database.transaction() as session:
        assert leases.claim_oldest(session, "w", LEASE) is not None
        session.rollback()
    assert house.claim().job_id == a1


def test_a_sweep_that_marks_nudged_rows_lets_no_job_overtake(house: House) -> None:
    jobs = submit_many(house, "a" * 20)
    with house.database.transaction() as session:
        assert leases.mark_nudged(session, 8, quiet_seconds=5.0) == 8
        assert [serve(house).job_id for _ in range(3)] == jobs[:3]


def test_eight_claimers_share_five_hundred_jobs(house: House) -> None:
    tenants = [f"t{number % 5}" for number in range(500)]
    jobs = submit_many(house, tenants)

    def drain(owner: str) -> list[Claim]:
        # SKIP LOCKED may make a claimer see an empty queue while others take the last rows.
        return list(iter(lambda: house.leases.claim(owner), None))

    with ThreadPoolExecutor(8) as pool:
        shares = list(pool.map(drain, [f"w{number}" for number in range(8)]))
    taken = [claim.job_id for share in shares for claim in share]
    assert sorted(taken) == jobs
    for share in shares:
        for tenant in set(tenants):
            own = [claim.job_id for claim in share if claim.tenant == tenant]
            assert own == sorted(own), "a claimer was given a later job of a tenant before an earlier one"
    with house.database.transaction() as session:
        rows = session.execute(select(Job.tenant, Job.fence).order_by(Job.attempt_started_at, Job.id)).all()
    assert {row.fence for row in rows} == {1}
    served = Counter(dict.fromkeys(tenants, 0))
    for row in rows:
        served[row.tenant] += 1
        assert max(served.values()) - min(served.values()) <= 8


def test_tenants_without_a_turn_are_served_and_enrolled_by_the_sweep(house: House) -> None:
    submit_many(house, "aaab")
    with house.database.transaction() as session:
        session.execute(delete(QueueTurn))  # as an older release leaves it
    assert serve(house).tenant == "a"
    assert turn_rows(house) == {"a"}
    house.leases.sweep()
    assert turn_rows(house) == {"a", "b"}
    assert [serve(house).tenant for _ in range(3)] == ["b", "a", "a"]


def test_a_turn_is_forgotten_a_day_after_the_tenants_last_job(house: House) -> None:
    submit_many(house, "abc")
    serve(house), serve(house)
    with house.database.transaction() as session:
        days_ago = clock.now() - timedelta(days=2)
        session.execute(update(QueueTurn).where(QueueTurn.tenant != "a").values(claimed_at=days_ago))
    house.leases.sweep()
    assert turn_rows(house) == {"a", "c"}


@dataclass
class Model:
    """The order as one would say it, of jobs that are numbered by their creation."""

    waiting: dict[str, dict[int, str]] = field(default_factory=dict)
    delayed: set[str] = field(default_factory=set)
    running: dict[str, tuple[str, int]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    clock: "count[int]" = field(default_factory=count)

    def submit(self, tenant: str, job_id: str) -> None:
        now = next(self.clock)
        self.waiting.setdefault(tenant, {})[now] = job_id
        self.turns.setdefault(tenant, now - 1_000_000)

    def next(self) -> str | None:
        held = Counter(tenant for tenant, _ in self.running.values())
        ready = [tenant for tenant, jobs in self.waiting.items() if set(jobs.values()) - self.delayed]
        if not ready:
            return None
        tenant = min(ready, key=lambda tenant: (held[tenant], self.turns[tenant]))
        number, job_id = min(item for item in self.waiting[tenant].items() if item[1] not in self.delayed)
        del self.waiting[tenant][number]
        self.turns[tenant] = next(self.clock)
        self.running[job_id] = (tenant, number)
        return job_id

    def give_back(self, job_id: str) -> None:
        tenant, number = self.running.pop(job_id)
        self.waiting[tenant][number] = job_id

    def queued(self) -> list[str]:
        return [job_id for jobs in self.waiting.values() for job_id in jobs.values()]

    def places(self) -> dict[str, int]:
        """Of every queued job, if they were all taken now and none ended."""
        rest = Model(
            {tenant: dict(jobs) for tenant, jobs in self.waiting.items()},
            set(),
            dict(self.running),
            dict(self.turns),
            count(1_000_000),
        )
        order = iter(rest.next, None)
        return {job_id: place for place, job_id in enumerate(order, start=1) if job_id is not None}


@pytest.mark.parametrize("seed", [1, 2])
def test_claims_and_places_are_what_the_model_says(house: House, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 — a seed, not a secret
    model, claims = Model(), dict[str, Claim]()
    for _ in range(100):
        match chance.choice(["submit"] * 3 + ["claim"] * 3 + ["end", "drain", "delay", "release"]):
            case "submit":
                tenant = chance.choice("aaabcd")
                model.submit(tenant, submit(house, tenant))
            case "claim":
                claim = house.leases.claim("w")
                assert (claim.job_id if claim else None) == model.next()
                claims |= {claim.job_id: claim} if claim else {}
            case "end" if model.running:
                ended = chance.choice(sorted(model.running))
                finish(house, claims[ended])
                del model.running[ended]
            case "drain" if model.running:
                drained = chance.choice(sorted(model.running))
                assert house.leases.release(claims[drained], "drain")
                model.give_back(drained)
            case "delay" if model.queued():
                late = chance.choice(sorted(model.queued()))
                house.shift(late, "available_at", HOUR)
                model.delayed.add(late)
            case "release" if model.delayed:
                ready = chance.choice(sorted(model.delayed))
                house.shift(ready, "available_at", -1)
                model.delayed.remove(ready)
        if model.queued() and chance.random() < 0.3:
            with house.database.transaction() as session:
                assert turns.queue_positions(session, model.queued()) == model.places()
