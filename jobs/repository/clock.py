"""The database's clock: leases, turns and deliveries know no other."""

from typing import Any

from sqlalchemy import ColumnElement, func


def now() -> ColumnElement[Any]:
    """Stable within a statement, so that indexes can serve it."""
    return func.statement_timestamp()
