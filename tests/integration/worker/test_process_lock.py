"""Claims whose process is dead, told from those that are merely silent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.worker.conftest import Office, eventually, family_of, is_running
from tests.integration.worker.test_worker import pool_child, steps_done
from worker.attempts.workspace import open_workspace
from worker.claims.process_lock import claims_of_dead_processes, hold_process_lock

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from worker.claims.process_lock import hold_process_lock
with hold_process_lock(Path(sys.argv[1]), "job_a", 3):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def orphans(work_dir: Path, **boot: Path) -> frozenset[tuple[str, int]]:
    with claims_of_dead_processes(work_dir, **boot) as found:
        return found


def start_holder(work_dir: Path) -> tuple["subprocess.Popen[str]", int]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(work_dir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


def test_a_claim_is_orphaned_by_its_processs_death_and_not_by_its_silence(tmp_path: Path) -> None:
    holder, child = start_holder(tmp_path)
    try:
        assert not orphans(tmp_path)
        holder.send_signal(signal.SIGSTOP)
        assert not orphans(tmp_path), "frozen is not dead"
        holder.kill()
        holder.wait(10)
        assert is_running(child), "the lock is the process's own; what it started does not keep it"
        assert orphans(tmp_path) == {("job_a", 3)}
        assert orphans(tmp_path) == {("job_a", 3)}, "a sweep that could not use it leaves it to the next"
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_an_attempt_that_ended_leaves_nothing_and_the_next_one_clears_what_a_dead_one_left(tmp_path: Path) -> None:
    holder, child = start_holder(tmp_path)
    os.kill(child, signal.SIGKILL)
    holder.kill()
    holder.communicate()
    with hold_process_lock(tmp_path, "job_a", 4):
        open_workspace(tmp_path, "job_a", 4)
        assert not orphans(tmp_path)
    assert [path.name for path in (tmp_path / "job_a").iterdir()] == ["4"]


def test_two_sweeps_at_once_do_not_judge_the_same_claim(tmp_path: Path) -> None:
    (tmp_path / "job_a").mkdir()
    (tmp_path / "job_a" / "1.held").write_bytes(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    with claims_of_dead_processes(tmp_path) as first, claims_of_dead_processes(tmp_path) as second:
        assert (first, second) == ({("job_a", 1)}, frozenset())


@pytest.mark.parametrize("content", [b"", b"00000000-another-machine\n"])
def test_what_another_machine_holds_or_nobody_has_locked_yet_is_not_judged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job_a").mkdir()
    (tmp_path / "job_a" / "1.held").write_bytes(content)
    assert not orphans(tmp_path)
    assert not orphans(tmp_path, boot_id=tmp_path / "no-linux")


def test_an_attempt_goes_on_where_nothing_can_be_locked(tmp_path: Path) -> None:
    with hold_process_lock(tmp_path, "job_a", 1, boot_id=tmp_path / "no-linux"):
        assert not (tmp_path / "job_a").exists()
    (tmp_path / "file").touch()
    with hold_process_lock(tmp_path / "file", "job_a", 1):
        pass


@pytest.mark.parametrize("whole_worker", [False, True])
def test_a_dead_workers_job_does_not_wait_for_its_lease(office: Office, whole_worker: bool) -> None:
    patient = {"QUANTRY_LEASE_SECONDS": "300", "QUANTRY_HEARTBEAT_SECONDS": "1"}
    worker = office.start_worker(**patient)
    job_id = office.submit("step")
    runner = office.runner_pid(job_id)
    if whole_worker:
        office.start_worker(**patient)
    eventually(lambda: steps_done(office, job_id) >= 3)
    killed = [process.pid for process in family_of(worker.pid)] if whole_worker else [pool_child(worker.pid, runner)]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    job = office.wait(job_id, "succeeded", "failed")
    assert time.monotonic() - began < 30
    assert (job.status, job.attempt, job.summary) == ("succeeded", 2, {"runners": 2})
    assert "crash" in {event.data.get("reason") for event in office.events(job_id) if event.type == "job.status"}
