"""Checking that the database has every table and column that this release reads and writes."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from jobs.kit.errors import NotMigrated
from jobs.repository.models import Base

_COLUMNS = text("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()")


def require_current(session: Session) -> None:
    """Check the tables. Additional ones are allowed: a newer release may have migrated the database already.

    Raises:
        NotMigrated: a table or a column is missing.
    """
    found = {(row.table_name, row.column_name) for row in session.execute(_COLUMNS)}
    expected = {(table.name, column.name) for table in Base.metadata.tables.values() for column in table.columns}
    if expected - found:
        raise NotMigrated
