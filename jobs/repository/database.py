"""The connection to PostgreSQL: one engine per process, one transaction per use case."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from jobs.kit.errors import NotMigrated, Unavailable

_DRIVER: Final = "postgresql+psycopg"
_CONNECT_TIMEOUT_SECONDS: Final = 5
_POOL_TIMEOUT_SECONDS: Final = 10
_STATEMENT_TIMEOUT: Final = "30s"
_IDLE_IN_TRANSACTION_TIMEOUT: Final = "10s"  # a process frozen inside a transaction must not keep its row locks

_SILENCE: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""When a network takes packets and answers none, a connection fails within 25 seconds (the last in milliseconds): by
the system's own settings a heartbeat, and with it a worker, would wait for a quarter of an hour. TCP's, not a Unix
socket's.
"""


def normalize_url(url: str) -> str:
    """Any PostgreSQL URL as SQLAlchemy needs it for psycopg 3.

    Raises:
        ValueError: the URL is not one of PostgreSQL.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in {"postgresql", "postgres"}:
        raise ValueError("QUANTRY_DATABASE_URL must be a PostgreSQL URL: postgresql://user:password@host:5432/name")
    return f"{_DRIVER}://{rest}"


class Database:
    """An engine and its sessions. Connections are made on first use and never cross a fork."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self._engine = create_engine(
            make_url(normalize_url(url)),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_timeout=_POOL_TIMEOUT_SECONDS,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
                **_SILENCE,
                "application_name": "quantry",
                "options": f"-c statement_timeout={_STATEMENT_TIMEOUT} -c timezone=UTC "
                f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_TIMEOUT}",
            },
        )
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @property
    def engine(self) -> Engine:
        """The engine itself, for migrations and tests."""
        return self._engine

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose work is committed at the end, or rolled back by whatever is raised inside.

        Raises:
            Unavailable: the database does not answer, or broke the connection.
            NotMigrated: it has yet to be upgraded to this release's tables.
        """
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, PoolTimeoutError) as error:
            raise Unavailable from error
        except DBAPIError as error:  # such as InterfaceError on a connection that a restart closed
            if error.connection_invalidated:
                raise Unavailable from error
            if isinstance(error.orig, UndefinedTable | UndefinedColumn):
                raise NotMigrated from error
            raise

    def after_fork(self) -> None:
        """In a forked child: forget the parent's connections without closing them under it."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()
