"""The database's clock, the only one for leases, turns and deliveries: clocks of machines may differ."""

from typing import Any

from sqlalchemy import ColumnElement, func


def now() -> ColumnElement[Any]:
    """Return the time of the statement. It is constant within a statement, so that indexes can be used."""
    return func.statement_timestamp()
