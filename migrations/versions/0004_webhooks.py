"""Create webhook endpoints, and the outbox of their messages.

Revision: 0004. It only adds, so the release before runs on it unchanged.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
STATUSES = "'pending', 'succeeded', 'failed'"
NEWEST_FIRST = [sa.text("created_at DESC"), sa.text("id DESC")]


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "webhook_endpoints",
        _text("id"),
        _text("tenant"),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default=sa.text("1")),
        _text("url"),
        _text("description"),
        sa.Column("events", JSONB(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False, server_default=sa.true()),
        _text("disabled_reason", nullable=True),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary()),
        _moment("previous_until"),
        _moment("created_at", nullable=False),
        _moment("failing_since"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index("ix_webhook_endpoints_tenant_created_at_id", "webhook_endpoints", ["tenant", *NEWEST_FIRST])
    _create_deliveries()


def downgrade() -> None:
    """Drop them."""
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")


def _create_deliveries() -> None:
    owner = sa.ForeignKey(
        "webhook_endpoints.id", name="fk_webhook_deliveries_endpoint_id_webhook_endpoints", ondelete="CASCADE"
    )
    op.create_table(
        "webhook_deliveries",
        _text("id"),
        sa.Column("endpoint_id", sa.Text(), owner, nullable=False),
        _text("status"),
        _text("type"),
        _text("payload"),
        _moment("created_at", nullable=False),
        _moment("available_at", nullable=False),
        _moment("attempted_at"),
        _moment("finished_at"),
        sa.Column("fence", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _moment("lease_until"),
        sa.Column("last_status", sa.Integer()),
        _text("last_error", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_webhook_deliveries_status")),
    )
    table, index = "webhook_deliveries", op.create_index
    index("ix_webhook_deliveries_endpoint_id_created_at_id", table, ["endpoint_id", *NEWEST_FIRST])
    pending, leased = sa.text("status = 'pending'"), sa.text("lease_until IS NOT NULL")
    index("ix_webhook_deliveries_pending", table, ["available_at", "id"], postgresql_where=pending)
    index("ix_webhook_deliveries_leased", table, ["endpoint_id"], postgresql_where=leased)
    ended = sa.text("finished_at IS NOT NULL")
    index("ix_webhook_deliveries_finished_at", table, ["finished_at"], postgresql_where=ended)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    default = None if nullable else NOW
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)
