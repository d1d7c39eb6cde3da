"""Run migrations on the connection of ``jobs.repository.migrate``, or on ``QUANTRY_DATABASE_URL``."""

from alembic import context
from sqlalchemy import Connection, create_engine, text

from jobs.repository.database import normalize_url
from jobs.repository.models import Base
from jobs.settings import get_settings

# A migration that waits for a lock blocks every later query on that table. It gives up instead and can be repeated.
LOCK_TIMEOUT = "3s"
# Only one process migrates at a time. Any number that no other lock of the service uses.
ADVISORY_LOCK = 7_212_023


def run(connection: Connection) -> None:
    """Bring the database to the requested revision, in one transaction."""
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_type=True, compare_server_default=True
    )
    with context.begin_transaction():
        # The wait for another migration comes before the lock timeout, because that migration may take long.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        context.run_migrations()


def run_from_settings() -> None:
    """Migrate from the command line, with a connection of its own."""
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
