"""Whether a database is at the newest migration."""

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.repository import migrate
from jobs.repository.database import Database


def is_current(database: Database) -> bool:
    """Return whether the database is at the newest migration, by Alembic. Raises: Unavailable."""
    head = ScriptDirectory.from_config(migrate._config()).get_current_head()
    with database.transaction() as session:
        return MigrationContext.configure(session.connection()).get_current_revision() == head
