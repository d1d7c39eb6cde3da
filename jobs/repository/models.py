"""The tables. The rows are the only state of a job; ``migrations/`` creates exactly these tables."""

from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.kit.states import DeliveryStatus, JobStatus, PublicationStatus

Json = dict[str, Any]

_NOW = text("clock_timestamp()")
_EMPTY_OBJECT = text("'{}'::jsonb")
_EMPTY_ARRAY = text("'[]'::jsonb")
_ZERO = text("0")

JobKey = Annotated[str, mapped_column(Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)]


class Base(DeclarativeBase):
    """The base of all tables. Its names of constraints are fixed, so that a migration can use them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        datetime: DateTime(timezone=True),
        Json: JSONB(),
        list[Json]: JSONB(),
        list[str]: JSONB(),
        dict[str, str]: JSONB(),
    }


class Job(Base):
    """One job. Large columns (``spec`` may contain inline texts, ``report``) are only loaded when they are read."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(status.value) for status in JobStatus)})", name="status"),
        Index("ix_jobs_tenant_created_at_id", "tenant", text("created_at DESC"), text("id DESC")),
        # Partial indexes: they stay small although finished jobs stay in the table.
        Index("ix_jobs_queued", "created_at", "id", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_queued_tenant", "tenant", "created_at", "id", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("ix_jobs_held", "lease_until", postgresql_where=text("status IN ('running', 'cancelling')")),
        Index("ix_jobs_metadata", "metadata", postgresql_using="gin", postgresql_ops={"metadata": "jsonb_path_ops"}),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    status: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))

    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    queued_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    available_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    nudged_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    attempt_started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    ran_seconds: Mapped[float] = mapped_column(server_default=_ZERO)
    max_queue_seconds: Mapped[int]
    max_run_seconds: Mapped[int]

    fence: Mapped[int] = mapped_column(BigInteger, server_default=_ZERO)
    attempt: Mapped[int] = mapped_column(server_default=_ZERO)
    max_attempts: Mapped[int]
    owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    retries: Mapped[int] = mapped_column(server_default=_ZERO)
    retry_from: Mapped[str | None]
    low_memory: Mapped[bool] = mapped_column(server_default=false())
    expired_at: Mapped[datetime | None]
    request_id: Mapped[str | None]
    traceparent: Mapped[str | None]

    model_source: Mapped[str]
    model_id: Mapped[str]
    model_revision: Mapped[str]
    resolved_revision: Mapped[str | None]
    # ``policy`` and ``options`` are shown to the user; ``spec`` is what the worker runs.
    policy: Mapped[Json]
    policy_hash: Mapped[str]
    options: Mapped[Json]
    # SQLAlchemy reserves the attribute name ``metadata``.
    labels: Mapped[dict[str, str]] = mapped_column("metadata", server_default=_EMPTY_OBJECT)

    progress: Mapped[Json] = mapped_column(server_default=_EMPTY_OBJECT)
    stages: Mapped[list[Json]] = mapped_column(server_default=_EMPTY_ARRAY)
    last_event_id: Mapped[int] = mapped_column(server_default=_ZERO)
    published_fence: Mapped[int | None] = mapped_column(BigInteger)
    # With none_as_null, None becomes SQL's NULL and not the JSON value null.
    summary: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))
    spec: Mapped[Json] = mapped_column(deferred=True)
    report: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True), deferred=True)


class JobEvent(Base):
    """One entry of a job's log. The UPDATE of the job's row allocates ``id``, so it has no gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[JobKey]
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    data: Mapped[Json]


class JobLayer(Base):
    """One quantized linear of a job."""

    __tablename__ = "job_layers"

    job_id: Mapped[JobKey]
    name: Mapped[str] = mapped_column(primary_key=True)
    block: Mapped[int]
    role: Mapped[str]
    scheme: Mapped[str]
    transform: Mapped[str]
    alpha: Mapped[float | None]
    statistic: Mapped[str | None]
    error: Mapped[float | None]
    error_normalized: Mapped[float | None]
    sqnr_db: Mapped[float | None]
    cosine: Mapped[float | None]
    baseline_error: Mapped[float | None]
    gain_percent: Mapped[float | None]
    rtn_error: Mapped[float | None]
    input_absmax: Mapped[float | None]
    input_kurtosis: Mapped[float | None]
    parameters: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    selected: Mapped[str | None]


class Artifact(Base):
    """One published file. These rows are the manifest; the bytes are in the artifact store, under ``sha256``."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "path"), Index("ix_artifacts_sha256", "sha256"))

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    media_type: Mapped[str]


class Credential(Base):
    """A Hub token of a tenant. ``secret`` is encrypted; no view ever has it."""

    __tablename__ = "credentials"
    __table_args__ = (Index("ix_credentials_tenant_created_at_id", "tenant", text("created_at DESC"), text("id DESC")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    kind: Mapped[str]
    secret: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    last_used_at: Mapped[datetime | None]


class Publication(Base):
    """One push of a job's checkpoint to the Hub; leased and fenced like a job."""

    __tablename__ = "publications"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(status.value) for status in PublicationStatus)})", name="status"),
        Index("ix_publications_job_id_created_at_id", "job_id", text("created_at DESC"), text("id DESC")),
        Index("ix_publications_queued", "available_at", "id", postgresql_where=text("status = 'queued'")),
        Index("ix_publications_running", "lease_until", postgresql_where=text("status = 'running'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    tenant: Mapped[str]
    status: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))

    repo: Mapped[str]
    private: Mapped[bool]
    revision: Mapped[str]
    credential_id: Mapped[str | None]
    manifest_sha256: Mapped[str]

    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    available_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    fence: Mapped[int] = mapped_column(BigInteger, server_default=_ZERO)
    attempt: Mapped[int] = mapped_column(server_default=_ZERO)
    max_attempts: Mapped[int]
    owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]

    bytes_done: Mapped[int] = mapped_column(BigInteger, server_default=_ZERO)
    bytes_total: Mapped[int] = mapped_column(BigInteger, server_default=_ZERO)
    commit_sha: Mapped[str | None]
    commit_url: Mapped[str | None]
    created_repo: Mapped[bool] = mapped_column(server_default=false())
    error: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))


class WebhookEndpoint(Base):
    """An address to which a tenant wants events sent. The secrets are encrypted; no view ever has them."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index("ix_webhook_endpoints_tenant_created_at_id", "tenant", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    url: Mapped[str]
    description: Mapped[str]
    events: Mapped[list[str]]
    enabled: Mapped[bool] = mapped_column(server_default=true())
    disabled_reason: Mapped[str | None]
    secret: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    previous_secret: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    failing_since: Mapped[datetime | None]


class WebhookDelivery(Base):
    """One message to one endpoint: the outbox. It is written in the transaction of its event; leased and fenced."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(status.value) for status in DeliveryStatus)})", name="status"),
        Index(
            "ix_webhook_deliveries_endpoint_id_created_at_id",
            "endpoint_id",
            text("created_at DESC"),
            text("id DESC"),
        ),
        Index("ix_webhook_deliveries_pending", "available_at", "id", postgresql_where=text("status = 'pending'")),
        Index("ix_webhook_deliveries_leased", "endpoint_id", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_webhook_deliveries_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    status: Mapped[str]
    type: Mapped[str]
    payload: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    available_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    attempted_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default=_ZERO)
    attempts: Mapped[int] = mapped_column(server_default=_ZERO)
    lease_until: Mapped[datetime | None]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]


class IdempotencyKey(Base):
    """The stored answer to a POST, so that a repeated request gets the same one. It outlives the job that it made."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    endpoint: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    response: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]


class Chore(Base):
    """Periodic work that one worker does for all, and when it was last begun."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    begun_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class QueueTurn(Base):
    """When a tenant last had its turn in the queue: the tenant whose turn is longest ago is served next."""

    __tablename__ = "queue_turns"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    claimed_at: Mapped[datetime]


class Worker(Base):
    """A worker that reports that it is alive, and when it last claimed a job."""

    __tablename__ = "workers"

    owner: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    last_claim_at: Mapped[datetime | None]
