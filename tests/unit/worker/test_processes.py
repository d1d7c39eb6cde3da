"""Processes that must not outlive their parent, and the one that is kept alive."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from worker.draining import Draining
from worker.sweeper.restarter import SweeperRestarter

CHILD = """
import os, signal, sys, time
from worker.subprocesses.parent_death import die_with_parent
die_with_parent(int(sys.argv[1]))
print("tied", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
KEPT = """
import os, pathlib, sys, time
with pathlib.Path(sys.argv[1]).open("a") as log: log.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_child_dies_with_its_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
        eventually(lambda: not is_running(child))


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, "1"], capture_output=True, timeout=30, check=False)
    assert done.returncode == 70
    assert not done.stdout


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_the_sweeper_is_started_again_when_it_dies(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    restarter = SweeperRestarter("host:1", command=(sys.executable, "-c", KEPT, str(log)), restart_seconds=0.05)
    restarter.start()
    eventually(lambda: len(pids(log)) == 1)
    os.kill(pids(log)[0], signal.SIGKILL)
    eventually(lambda: len(pids(log)) == 2)
    restarter.stop()
    assert not any(is_running(pid) for pid in pids(log))
    time.sleep(0.3)
    assert len(pids(log)) == 2


def test_stopping_what_was_never_started_does_nothing() -> None:
    SweeperRestarter("host:1").stop()


def test_draining_is_seen_across_a_fork() -> None:
    draining = Draining()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(7 if draining.has_begun() and not draining.must_yield() else 0)
    assert not draining.has_begun()
    draining.begin()
    os.write(writer, b"x")
    _, status = os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_job_gets_its_seconds_to_end_before_it_has_to_go_back() -> None:
    now = 100.0
    draining = Draining(30.0, clock=lambda: now)
    assert not draining.must_yield()
    draining.begin()
    now = 129.9
    draining.begin()  # a second signal does not begin the time anew
    assert not draining.must_yield()
    assert draining.has_begun()
    now = 130.0
    assert draining.must_yield()


def test_sigterm_asks_for_the_job_only_while_there_is_one() -> None:
    draining = Draining()
    before = signal.getsignal(signal.SIGTERM)
    with draining.yielding_on_sigterm():
        assert not draining.must_yield()
        os.kill(os.getpid(), signal.SIGTERM)
        assert draining.must_yield()
        assert draining.has_begun()
        assert 0 < signal.alarm(0) <= 20
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "module", ["worker.app", "worker.sweeper.__main__", "worker.attempts.supervisor", "worker.download.__main__"]
)
def test_celerys_processes_never_load_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'numpy'}} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
