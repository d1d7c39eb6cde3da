"""Runs migrations on the connection that ``jobs.repository.migrate`` hands over, or on ``QUANTRY_DATABASE_URL``."""

from alembic import context
from sqlalchemy import Connection, create_engine, text

from jobs.repository.database import normalize_url
from jobs.repository.models import Base
from jobs.settings import get_settings

# A migration that waits for a lock makes every later query on that table wait behind it; give up instead, and retry.
LOCK_TIMEOUT = "3s"
# One migrator at a time; any constant that nothing else here uses.
ADVISORY_LOCK = 7_212_023


def run(connection: Connection) -> None:
    """Bring the database to the asked revision in one transaction."""
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_type=True, compare_server_default=True
    )
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        context.run_migrations()


def run_from_settings() -> None:
    """The command line's way: a connection of its own."""
    url = get_settings().database_url
    if url is None:
        raise SystemExit("Set QUANTRY_DATABASE_URL to the database to migrate.")
    engine = create_engine(normalize_url(url.get_secret_value()))
    with engine.connect() as connection:
        run(connection)
    engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    run_from_settings()
else:
    run(given)
