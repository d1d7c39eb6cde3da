"""Nudges through a real broker."""

import json
import time

import redis

from api.nudge import CeleryNudger, broker_answers
from jobs.queue import QUEUE_NAME, TASK_NAME


def _client(broker_url: str) -> redis.Redis:
    """kombu writes ``redis+socket:///path``; redis-py reads ``unix:///path``."""
    return redis.Redis.from_url(broker_url.replace("redis+socket://", "unix://").split("?")[0])


def test_a_nudge_is_an_empty_short_lived_message(broker_url: str) -> None:
    with _client(broker_url) as server:
        server.flushall()
        with CeleryNudger(broker_url) as nudger:
            for _ in range(3):
                nudger.nudge()
        assert server.llen(QUEUE_NAME) == 3
        message = json.loads(server.lindex(QUEUE_NAME, 0))
        assert message["headers"]["task"] == TASK_NAME
        assert message["headers"]["expires"] is not None
        assert message["headers"]["argsrepr"] == "()"
        assert message["headers"]["kwargsrepr"] == "{}"
        server.flushall()


def test_nudging_waits_for_nobody(broker_url: str) -> None:
    with CeleryNudger(broker_url) as nudger:
        began = time.monotonic()
        for _ in range(5000):
            nudger.nudge()
        assert time.monotonic() - began < 1
    with _client(broker_url) as server:
        server.flushall()


def test_the_broker_answers(broker_url: str) -> None:
    assert broker_answers(broker_url)
    assert not broker_answers("redis://127.0.0.1:1/0")
