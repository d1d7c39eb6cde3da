"""The order of the queue, between tenants and within one.

Between tenants: the tenant with the fewest running jobs is served next. Among equals, it is the one whose turn is
longest ago; a tenant that never had a turn comes first. So many jobs of one tenant delay the others by at most one job
for each worker. While two tenants wait, neither gets more workers than the other.

Within a tenant: the oldest job, by creation. A job that returns (after a crash, a drain or a retry) keeps its place, so
newer jobs do not delay it for ever. It does not block the queue either: until ``available_at`` it is skipped, a job
that keeps crashing ends after ``max_attempts``, and only its own tenant waits for it.

A tenant in the queue has a row in ``queue_turns``. It is enrolled with its job, or by the sweep if that row is missing.
A claimer locks the row of the tenant that it serves and skips locked rows. So claimers do not wait for each other, and
do not serve one tenant twice in one turn. Where every row is locked, or no tenant with a row has a claimable job, the
oldest claimable job of all is taken.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    FromClause,
    ScalarSelect,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from jobs.repository.clock import now
from jobs.repository.models import Job, QueueTurn

# A new tenant's turn: older than every real one.
_LONG_AGO: Final = timedelta(days=36_525)
_IDLE: Final = timedelta(days=1)

AnyJob = type[Job]
"""``Job`` or an alias of it."""


def is_queued(job: AnyJob = Job) -> ColumnElement[bool]:
    """Return the condition as literal SQL: a prepared statement with a parameter could not use the partial indexes."""
    return job.status == literal_column("'queued'")


def is_held(job: AnyJob = Job) -> ColumnElement[bool]:
    """Return the condition for jobs that a worker holds, also as literal SQL."""
    return job.status.in_([literal_column("'running'"), literal_column("'cancelling'")])


def waited_too_long(job: AnyJob = Job) -> ColumnElement[bool]:
    """Return the condition for jobs that waited too long: the sweep ends them, and a claim skips them."""
    return now() - job.queued_at > job.max_queue_seconds * timedelta(seconds=1)


def is_claimable(job: AnyJob = Job) -> ColumnElement[bool]:
    """Return the condition for jobs that a worker may start now."""
    return and_(is_queued(job), job.available_at <= now(), ~waited_too_long(job))


@cache  # building the statement takes longer than running it
def next_job() -> ScalarSelect[str]:
    """Select the oldest claimable job of the tenant whose turn it is; both rows are locked."""
    job = aliased(Job)
    return (
        select(job.id)
        .where(job.tenant == _next_tenant(), is_claimable(job))
        # In the order of the index ``ix_jobs_queued_tenant``.
        .order_by(job.tenant, job.created_at, job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


@cache
def any_job() -> ScalarSelect[str]:
    """Select the oldest claimable job of all that no other claimer has locked."""
    job = aliased(Job)
    return (
        select(job.id)
        .where(is_claimable(job))
        .order_by(job.created_at, job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


def take_turn(session: Session, tenant: str) -> None:
    """Record that the tenant is served now. If another claimer holds the tenant's row, that claimer records it."""
    free = select(QueueTurn.tenant).where(QueueTurn.tenant == tenant).with_for_update(skip_locked=True)
    taken = session.scalars(
        update(QueueTurn)
        .where(QueueTurn.tenant == free.scalar_subquery())
        .values(claimed_at=now())
        .returning(QueueTurn.tenant)
        .execution_options(synchronize_session=False)
    )
    if taken.one_or_none() is None:
        _insert_missing(session, select(literal(tenant).label("tenant")).subquery(), now())


def enroll(session: Session, tenant: str) -> None:
    """Add a tenant with a new job to the turns, before all tenants that had a turn."""
    _insert_missing(session, select(literal(tenant).label("tenant")).subquery(), now() - _LONG_AGO)


def tidy(session: Session) -> None:
    """Delete the turns of idle tenants, and enroll tenants that wait without a turn."""
    _purge_idle(session)
    _enrol_waiting(session)


def _enrol_waiting(session: Session) -> None:
    """Enroll tenants without a row: their job was queued by an older release, by a retry, or during a purge."""
    job, later = aliased(Job), aliased(Job)
    # A loose index scan: one search of the index for each tenant, however many jobs it has.
    waiting = select(func.min(job.tenant).label("tenant")).where(is_queued(job)).cte("waiting", recursive=True)
    beyond = select(func.min(later.tenant)).where(is_queued(later), later.tenant > waiting.c.tenant)
    waiting = waiting.union_all(
        select(beyond.correlate(waiting).scalar_subquery()).where(waiting.c.tenant.is_not(None))
    )
    _insert_missing(session, waiting, now() - _LONG_AGO)


def _purge_idle(session: Session) -> None:
    """Delete the turns of tenants without a queued job whose turn is more than a day ago."""
    waits = exists().where(is_queued(), Job.tenant == QueueTurn.tenant)
    idle = select(QueueTurn.tenant).where(QueueTurn.claimed_at < now() - _IDLE, ~waits)
    idle = idle.with_for_update(of=QueueTurn, skip_locked=True)
    session.execute(delete(QueueTurn).where(QueueTurn.tenant.in_(idle)).execution_options(synchronize_session=False))


def queue_positions(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Return the place in the queue of those of ``job_ids`` that are queued; 1 is next.

    This is an estimate: the order in which workers would take the queued jobs if no job were submitted, ended or
    delayed until then. If h jobs of its tenant run, the tenant's k-th queued job belongs to round h + k. Within a
    round, tenants that enter it come first, because their turn is longer ago. The others follow as in the round before.
    """
    if not job_ids:
        return {}
    line = _line().cte("line")
    own, other = line.alias("own"), line.alias("other")
    ranked = _ranked_jobs(job_ids).subquery()
    round_ = own.c.held + ranked.c.rank
    # How many jobs of the other tenant are in earlier rounds, and whether it is served earlier in the same round.
    in_rounds_before = func.least(func.greatest(round_ - 1 - other.c.held, 0), other.c.queued)
    takes_part = and_(other.c.held < round_, round_ <= other.c.held + other.c.queued)
    goes_first = tuple_(-other.c.held, other.c.turn, other.c.tenant) < tuple_(-own.c.held, own.c.turn, own.c.tenant)
    before = in_rounds_before + case((and_(takes_part, goes_first), 1), else_=0)
    rows = session.execute(
        select(ranked.c.id, (func.sum(before) + 1).label("place"))
        .select_from(ranked.join(own, own.c.tenant == ranked.c.tenant).join(other, true()))
        .where(ranked.c.id.in_(job_ids))
        .group_by(ranked.c.id)
    )
    return {row.id: int(row.place) for row in rows}


def _line() -> Select[Any, Any, Any, Any]:
    """Select every tenant with queued jobs: their number, the number of its running jobs, and its last turn."""
    waiting = select(Job.tenant, func.count().label("queued")).where(is_queued()).group_by(Job.tenant).subquery()
    busy = _busy().subquery()
    return (
        select(
            waiting.c.tenant,
            waiting.c.queued,
            func.coalesce(busy.c.jobs, 0).label("held"),
            func.coalesce(QueueTurn.claimed_at, literal_column("'-infinity'::timestamptz")).label("turn"),
        )
        .outerjoin(busy, busy.c.tenant == waiting.c.tenant)
        .outerjoin(QueueTurn, QueueTurn.tenant == waiting.c.tenant)
    )


def _ranked_jobs(job_ids: Sequence[str]) -> Select[str, str, int]:
    """Select the queued jobs of the tenants of ``job_ids``, each with its place within its tenant."""
    tenants = select(Job.tenant).where(Job.id.in_(job_ids))
    order = func.row_number().over(partition_by=Job.tenant, order_by=(Job.created_at, Job.id))
    return select(Job.id, Job.tenant, order.label("rank")).where(is_queued(), Job.tenant.in_(tenants))


def _next_tenant() -> ScalarSelect[str]:
    ranked, first, turn = _ranked_turns().subquery(), aliased(Job), aliased(QueueTurn)
    has_job = (
        select(first.id)
        .where(first.tenant == ranked.c.tenant, is_claimable(first))
        .correlate(ranked)
        .order_by(first.tenant, first.created_at, first.id)
        .limit(1)
        .lateral()
    )
    # ``ranked`` has the values of the statement's snapshot. If another claimer took the turn since, the time differs.
    untaken = and_(turn.tenant == ranked.c.tenant, turn.claimed_at <= ranked.c.claimed_at)
    return (
        select(turn.tenant)
        .select_from(ranked.join(has_job, true()).join(turn, untaken))
        .order_by(ranked.c.held, ranked.c.claimed_at, ranked.c.tenant)
        .limit(1)
        .with_for_update(of=turn, skip_locked=True)
        .scalar_subquery()
    )


def _ranked_turns() -> Select[str, datetime, int]:
    """Select every tenant's turn, the next one first. The order comes first, so that one match with a job is enough."""
    busy = _busy().subquery()
    held = func.coalesce(busy.c.jobs, 0).label("held")
    return (
        select(QueueTurn.tenant, QueueTurn.claimed_at, held)
        .outerjoin(busy, busy.c.tenant == QueueTurn.tenant)
        .order_by(held, QueueTurn.claimed_at, QueueTurn.tenant)
        # OFFSET 0 makes PostgreSQL evaluate this subquery by itself, in its order.
        .offset(literal_column("0"))
    )


def _busy() -> Select[str, int]:
    """Select the number of running jobs of each tenant that has any."""
    return select(Job.tenant, func.count().label("jobs")).where(is_held()).group_by(Job.tenant)


def _insert_missing(session: Session, tenants: FromClause, claimed_at: ColumnElement[Any]) -> None:
    # Existing rows are excluded first: ON CONFLICT alone would wait for a claimer that has locked the row.
    absent = ~exists().where(QueueTurn.tenant == tenants.c.tenant)
    rows = select(tenants.c.tenant, claimed_at).where(tenants.c.tenant.is_not(None), absent).order_by(tenants.c.tenant)
    session.execute(insert(QueueTurn).from_select(["tenant", "claimed_at"], rows).on_conflict_do_nothing())
