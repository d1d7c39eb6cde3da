"""Create credentials, publications and chores, and the index for references to the artifact store.

Revision: 0002. It only adds, so the release before runs on it unchanged.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
STATUSES = "'queued', 'running', 'succeeded', 'failed'"
NEWEST_FIRST = [sa.text("created_at DESC"), sa.text("id DESC")]


def upgrade() -> None:
    """Create the tables and the index."""
    _create_credentials()
    _create_publications()
    op.create_table(
        "chores", _text("name"), _moment("begun_at", nullable=False), sa.PrimaryKeyConstraint("name", name="pk_chores")
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_artifacts_sha256", "artifacts")
    op.drop_table("chores")
    op.drop_table("publications")
    op.drop_table("credentials")


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    default = None if nullable else NOW
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _zero(name: str, kind: type[sa.Integer | sa.BigInteger]) -> sa.Column[object]:
    return sa.Column(name, kind(), nullable=False, server_default=sa.text("0"))


def _create_credentials() -> None:
    op.create_table(
        "credentials",
        _text("id"),
        _text("tenant"),
        _text("name"),
        _text("kind"),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        _moment("created_at", nullable=False),
        _moment("last_used_at"),
        sa.PrimaryKeyConstraint("id", name="pk_credentials"),
    )
    op.create_index("ix_credentials_tenant_created_at_id", "credentials", ["tenant", *NEWEST_FIRST])


def _create_publications() -> None:
    op.create_table(
        "publications",
        _text("id"),
        sa.Column(
            "job_id",
            sa.Text(),
            sa.ForeignKey("jobs.id", name="fk_publications_job_id_jobs", ondelete="CASCADE"),
            nullable=False,
        ),
        _text("tenant"),
        _text("status"),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default=sa.text("1")),
        _text("repo"),
        sa.Column("private", sa.Boolean(), nullable=False),
        _text("revision"),
        _text("credential_id", nullable=True),
        _text("manifest_sha256"),
        _moment("created_at", nullable=False),
        _moment("available_at", nullable=False),
        _moment("started_at"),
        _moment("finished_at"),
        _zero("fence", sa.BigInteger),
        _zero("attempt", sa.Integer),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        _text("owner", nullable=True),
        _moment("lease_until"),
        _zero("bytes_done", sa.BigInteger),
        _zero("bytes_total", sa.BigInteger),
        _text("commit_sha", nullable=True),
        _text("commit_url", nullable=True),
        sa.Column("created_repo", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("error", JSONB()),
        sa.PrimaryKeyConstraint("id", name="pk_publications"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_publications_status")),
    )
    op.create_index("ix_publications_job_id_created_at_id", "publications", ["job_id", *NEWEST_FIRST])
    queued, running = sa.text("status = 'queued'"), sa.text("status = 'running'")
    op.create_index("ix_publications_queued", "publications", ["available_at", "id"], postgresql_where=queued)
    op.create_index("ix_publications_running", "publications", ["lease_until"], postgresql_where=running)
