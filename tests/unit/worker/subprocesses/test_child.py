"""A subprocess that reports over a pipe: its messages arrive, and it and its children end when told to."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from worker.subprocesses.child import Child, Command
from worker.subprocesses.messages import Log, Message, Result

PRELUDE = """
import json, os, signal, subprocess, sys, time
fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
def say(**message): os.write(fd, json.dumps(message).encode() + b"\\n")
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator["Starter"]:
    starter = Starter(tmp_path)
    yield starter
    for child in starter.children:
        child.close()


class Starter:
    """Starts Python snippets as children, and remembers them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []

    def __call__(self, snippet: str) -> Child:
        child = Child(
            Command(
                arguments=[sys.executable, "-c", PRELUDE + snippet],
                environment={"PATH": os.environ["PATH"]},
                directory=self.directory,
                log=self.directory / "runner.log",
            )
        )
        self.children.append(child)
        return child


def until_messages(child: Child, count: int) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + 20
    while len(messages) < count and time.monotonic() < deadline:
        messages += child.receive(0.1)
    return messages


def until_exit(child: Child) -> None:
    deadline = time.monotonic() + 20
    while not child.has_exited():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_messages_arrive_and_bad_lines_are_passed_over(started: Starter) -> None:
    child = started(
        """
say(type="log", message="one")
os.write(fd, b"not a message\\n{\\"type\\":\\"unknown\\"}\\n")
say(type="result", payload={"a": 1})
"""
    )
    until_exit(child)
    assert child.drain() == [Log(message="one"), Result(payload={"a": 1})]
    assert child.exit_code() == 0


def test_more_than_a_pipe_holds_is_drained(started: Starter) -> None:
    child = started("""
for _ in range(300): say(type="log", message="z" * 1000)
""")
    assert len(until_messages(child, 300)) == 300


def test_a_signal_shows_in_the_exit_code(started: Starter) -> None:
    child = started("os.kill(os.getpid(), signal.SIGKILL)")
    until_exit(child)
    assert child.exit_code() == -signal.SIGKILL


def test_its_own_session_and_no_descriptor_but_the_pipe(started: Starter) -> None:
    secret = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(secret, True)
    child = started("""
say(type="log", message=json.dumps([os.getsid(0), sorted(int(name) for name in os.listdir("/proc/self/fd"))]))
""")
    (message,) = until_messages(child, 1)
    os.close(secret)
    assert isinstance(message, Log)
    session, descriptors = eval(message.message)  # noqa: S307 — a list of numbers that this test printed itself
    assert session == child.pid
    assert secret not in descriptors
    assert len(descriptors) == 5  # in, out, error, the pipe, and the listing itself


def test_stop_ends_a_process_that_heeds_sigterm_soon(started: Starter) -> None:
    child = started("""
say(type="log", message="ready")
time.sleep(60)
""")
    until_messages(child, 1)
    began = time.monotonic()
    child.stop(grace=10)
    assert time.monotonic() - began < 5
    assert child.exit_code() == -signal.SIGTERM


def test_stop_kills_one_that_does_not_and_its_children_with_it(started: Starter) -> None:
    child = started("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
say(type="log", message=str(grandchild.pid))
time.sleep(60)
""")
    (message,) = until_messages(child, 1)
    assert isinstance(message, Log)
    child.stop(grace=0.3)
    assert child.exit_code() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_running(int(message.message)):
        assert time.monotonic() < deadline, "the grandchild outlived its group"
        time.sleep(0.02)


def test_a_process_that_closes_its_pipe_does_not_spin_its_supervisor(started: Starter) -> None:
    child = started("""
os.close(fd)
time.sleep(60)
""")
    time.sleep(0.5)
    child.receive(0.5)
    before = time.process_time()
    for _ in range(5):
        assert child.receive(0.1) == []
    assert time.process_time() - before < 0.2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of a process is polled for")
def test_the_end_of_a_process_is_noticed_at_once_though_its_pipe_was_closed_before(started: Starter) -> None:
    child = started("""
say(type="log", message="bye")
os.close(fd)
time.sleep(0.3)
""")
    assert until_messages(child, 1)
    child.receive(0.0)
    began = time.monotonic()
    while not child.has_exited():
        child.receive(20.0)
    assert time.monotonic() - began < 10


def test_leaving_the_context_ends_the_process(started: Starter) -> None:
    with started("time.sleep(60)") as child:
        pid = child.pid
        assert is_running(pid)
    assert not is_running(pid)


def test_the_log_keeps_what_was_printed(started: Starter) -> None:
    child = started("""
print("to output", flush=True); raise SystemExit("to error")
""")
    until_exit(child)
    assert child.exit_code() == 1
    assert "to output" in child.log_tail()
    assert child.log_tail(characters=9).strip() == "to error"
