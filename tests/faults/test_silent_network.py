"""A network that takes packets and answers none must not hold a worker for longer than its lease."""

import socket
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import text

from jobs.repository.database import Database
from jobs.settings import Settings
from tests.faults.proxy import Proxy
from tests.faults.servers import PORT


def test_a_connection_notices_a_dead_network_before_a_lease_ends(database_url: str) -> None:
    [directory] = parse_qs(urlsplit(database_url).query)["host"]
    with Proxy(f"{directory}/.s.PGSQL.{PORT}") as proxy:
        database = Database(f"postgresql://quantry@127.0.0.1:{proxy.port}/postgres")
        with database.transaction() as session:
            session.execute(text("SELECT 1"))
            descriptor = session.connection().connection.driver_connection.fileno()  # type: ignore[union-attr]
            with socket.socket(fileno=descriptor) as wire:
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                idle, interval, count, user_milliseconds = (
                    wire.getsockopt(socket.IPPROTO_TCP, option) for option in options
                )
                wire.detach()
        database.close()
    lease = Settings.model_fields["lease_seconds"].default
    assert idle + interval * count < lease
    assert user_milliseconds / 1000 < lease
