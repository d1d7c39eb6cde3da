"""Add the columns of jobs for retries, low memory, turns in the queue, retention and traces.

Revision: 0003. It only adds, so the release before runs on it unchanged.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = ("retries", "retry_from", "low_memory", "expired_at", "request_id", "traceparent")


def upgrade() -> None:
    """Add the columns, the table and the indexes."""
    op.add_column("jobs", sa.Column("retries", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("retry_from", sa.Text()))
    op.add_column("jobs", sa.Column("low_memory", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("expired_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("request_id", sa.Text()))
    op.add_column("jobs", sa.Column("traceparent", sa.Text()))
    op.create_table(
        "queue_turns",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_queue_turns"),
    )
    op.create_index(
        "ix_jobs_queued_tenant",
        "jobs",
        ["tenant", "created_at", "id"],
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL"))


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_jobs_finished_at", "jobs")
    op.drop_index("ix_jobs_queued_tenant", "jobs")
    op.drop_table("queue_turns")
    for column in reversed(_COLUMNS):
        op.drop_column("jobs", column)
