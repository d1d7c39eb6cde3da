"""How a worker finds its broker again."""

import socket

import pytest
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from jobs.settings import Settings
from worker.nudge import make_celery


def test_a_broker_that_is_away_is_tried_again_within_two_seconds() -> None:
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        celery = make_celery(Settings(database_url=None, broker_url=SecretStr(url)))
        pauses: list[float] = []
        with celery.connection_for_read() as connection, pytest.raises(OperationalError):
            connection.ensure_connection(lambda _error, pause: pauses.append(pause), 4)
    assert pauses[:3] == [0.5, 1.0, 1.5]
    assert max(pauses) <= 2.0
