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
# A process that freezes inside a transaction must not keep its row locks.
_IDLE_IN_TRANSACTION_TIMEOUT: Final = "10s"

_SILENCE: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""A connection fails within 25 seconds when the network drops packets (the last value is in milliseconds). With the
system's defaults a heartbeat, and with it a worker, would wait for a quarter of an hour. This is for TCP only, not for
Unix sockets.
"""


def normalize_url(url: str) -> str:
    """Return a PostgreSQL URL in the form that SQLAlchemy needs for psycopg 3.

    Raises:
        ValueError: it is not a PostgreSQL URL.
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
            # A restart of the server closes pooled connections; this finds it before a statement fails.
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
        # Rows are read after the commit, which must not query them again.
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @property
    def engine(self) -> Engine:
        """The engine, for migrations and tests."""
        return self._engine

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a session that is committed at the end of the block, or rolled back by an exception.

        Raises:
            Unavailable: the database does not answer, or closed the connection.
            NotMigrated: it has not been upgraded to this release's tables.
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
        """Call this in a forked child: it forgets the parent's connections without closing them for the parent."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()
