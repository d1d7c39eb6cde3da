"""Nudges through a real broker."""

import json
import os
import signal
import time
from pathlib import Path

import redis
from structlog.testing import capture_logs

from api.nudge import CeleryNudger, broker_answers
from jobs.embedded.valkey import Valkey
from jobs.job.nudge import QUEUE_NAME, TASK_NAME, redis_url


def _client(broker_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url(broker_url))


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


def test_nudging_waits_for_nobody(server_data_dir: Path) -> None:
    broker = Valkey(server_data_dir, server_data_dir)
    broker.start()
    assert broker.pid is not None
    try:
        with CeleryNudger(broker.url) as nudger, capture_logs() as logs:
            os.kill(broker.pid, signal.SIGSTOP)  # takes connections and answers none: 0.5 s for each one who waits
            began = time.monotonic()
            for _ in range(5000):
                nudger.nudge()
            assert time.monotonic() - began < 60
            dropped = [entry for entry in logs if entry["event"] == "nudge_dropped"]
            assert 1 <= len(dropped) < 500, "a burst is logged once, however long it is"
    finally:
        os.kill(broker.pid, signal.SIGCONT)
        broker.stop()


def test_the_broker_answers(broker_url: str) -> None:
    assert broker_answers(broker_url)
    assert not broker_answers("redis://127.0.0.1:1/0")


def test_nudges_flow_again_after_the_broker_was_killed(server_data_dir: Path) -> None:
    broker = Valkey(server_data_dir, server_data_dir)
    broker.start()
    try:
        with CeleryNudger(broker.url) as nudger:
            nudger.nudge()
            _wait_for_nudges(broker.url)
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            nudger.nudge()  # lost: the sweep of a worker makes it good
            broker.stop()
            broker.start()
            assert broker_answers(broker.url)
            nudger.nudge()
            nudger.nudge()
            _wait_for_nudges(broker.url)
    finally:
        broker.stop()


def _wait_for_nudges(url: str) -> None:
    deadline = time.monotonic() + 10
    with _client(url) as server:
        while not server.llen(QUEUE_NAME):
            assert time.monotonic() < deadline, "no nudge arrived"
            time.sleep(0.02)
