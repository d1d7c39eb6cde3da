"""Jobs, their events, layers and artifacts, idempotency keys and workers.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
STATUSES = "'queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    """Create everything."""
    _create_jobs()
    _create_events()
    _create_layers()
    _create_artifacts()
    _create_idempotency_keys()
    _create_workers()


def downgrade() -> None:
    """Drop everything."""
    for table in ("workers", "idempotency_keys", "artifacts", "job_layers", "job_events", "jobs"):
        op.drop_table(table)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    default = None if nullable else NOW
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _zero(name: str, kind: type[sa.Integer | sa.BigInteger | sa.Float[float]]) -> sa.Column[object]:
    return sa.Column(name, kind(), nullable=False, server_default=sa.text("0"))


def _job_id(table: str, *, primary_key: bool) -> sa.Column[str]:
    reference = sa.ForeignKey("jobs.id", name=f"fk_{table}_job_id_jobs", ondelete="CASCADE")
    return sa.Column("job_id", sa.Text(), reference, primary_key=primary_key, nullable=False)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        _text("id"),
        _text("tenant"),
        _text("status"),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default=sa.text("1")),
        _moment("created_at", nullable=False),
        _moment("queued_at", nullable=False),
        _moment("available_at", nullable=False),
        _moment("nudged_at"),
        _moment("started_at"),
        _moment("attempt_started_at"),
        _moment("finished_at"),
        _moment("cancel_requested_at"),
        _zero("ran_seconds", sa.Float),
        sa.Column("max_queue_seconds", sa.Integer(), nullable=False),
        sa.Column("max_run_seconds", sa.Integer(), nullable=False),
        _zero("fence", sa.BigInteger),
        _zero("attempt", sa.Integer),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        _text("owner", nullable=True),
        _moment("lease_until"),
        _moment("heartbeat_at"),
        _text("model_source"),
        _text("model_id"),
        _text("model_revision"),
        _text("resolved_revision", nullable=True),
        sa.Column("policy", JSONB(), nullable=False),
        _text("policy_hash"),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("metadata", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("progress", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("stages", JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb")),
        _zero("last_event_id", sa.Integer),
        sa.Column("published_fence", sa.BigInteger()),
        sa.Column("summary", JSONB()),
        sa.Column("error", JSONB()),
        sa.Column("spec", JSONB(), nullable=False),
        sa.Column("report", JSONB()),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_jobs_status")),
    )
    op.create_index("ix_jobs_tenant_created_at_id", "jobs", ["tenant", sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("ix_jobs_queued", "jobs", ["created_at", "id"], postgresql_where=sa.text("status = 'queued'"))
    held = sa.text("status IN ('running', 'cancelling')")
    op.create_index("ix_jobs_held", "jobs", ["lease_until"], postgresql_where=held)
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )


def _create_events() -> None:
    op.create_table(
        "job_events",
        _job_id("job_events", primary_key=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        _text("type"),
        _moment("created_at", nullable=False),
        sa.Column("data", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "id", name="pk_job_events"),
    )


def _create_layers() -> None:
    numbers = (
        "error",
        "error_normalized",
        "sqnr_db",
        "cosine",
        "baseline_error",
        "gain_percent",
        "rtn_error",
        "input_absmax",
        "input_kurtosis",
    )
    op.create_table(
        "job_layers",
        _job_id("job_layers", primary_key=False),
        _text("name"),
        sa.Column("block", sa.Integer(), nullable=False),
        _text("role"),
        _text("scheme"),
        _text("transform"),
        sa.Column("alpha", sa.Float()),
        _text("statistic", nullable=True),
        *(sa.Column(name, sa.Float()) for name in numbers),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        _text("selected", nullable=True),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_job_layers"),
    )


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        _text("id"),
        _job_id("artifacts", primary_key=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        _text("path"),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        _text("sha256"),
        _text("media_type"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.UniqueConstraint("job_id", "path", name="uq_artifacts_job_id_path"),
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        _text("tenant"),
        _text("endpoint"),
        _text("key"),
        _text("request_hash"),
        sa.Column("response", JSONB(), nullable=False),
        _moment("created_at", nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "endpoint", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])


def _create_workers() -> None:
    op.create_table(
        "workers",
        _text("owner"),
        _text("hostname"),
        sa.Column("pid", sa.Integer(), nullable=False),
        _text("device"),
        _moment("started_at", nullable=False),
        _moment("heartbeat_at", nullable=False),
        _moment("last_claim_at"),
        sa.PrimaryKeyConstraint("owner", name="pk_workers"),
    )
