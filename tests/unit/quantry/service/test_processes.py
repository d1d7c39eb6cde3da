"""Child processes: announced, stopped, restarted, and never orphaned."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from quantry.errors import QuantryError
from quantry.service.processes import Kept, Process, ProcessSpec

WAIT_SECONDS = 10.0


def python(code: str, *, name: str = "child", announces: bool = False, grace_seconds: float = 5.0) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        arguments=("-c", code),
        environment=dict(os.environ),
        announces=announces,
        grace_seconds=grace_seconds,
    )


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def never() -> bool:
    return False


def test_an_announcement_is_waited_for(tmp_path: Path) -> None:
    process = Process(
        python("import sys, time; print('{\"a\": 1}', flush=True); sys.stdin.read()", announces=True), tmp_path
    )
    assert process.announcement(timeout_seconds=WAIT_SECONDS, stopping=never) == '{"a": 1}\n'
    process.stop()
    assert process.exit_code == -signal.SIGTERM


def test_a_process_that_ends_while_starting_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("the fault of an earlier one\n")
    process = Process(python("raise SystemExit('no disk here')", announces=True), tmp_path)
    with pytest.raises(QuantryError, match="ended while starting") as caught:
        process.announcement(timeout_seconds=WAIT_SECONDS, stopping=never)
    process.stop()
    assert "no disk here" in caught.value.detail
    assert "an earlier one" not in caught.value.detail
    assert str(tmp_path / "child.log") in str(caught.value.hint)


def test_silence_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    process = Process(python("import sys; sys.stdin.read()", announces=True), tmp_path)
    with pytest.raises(QuantryError, match="not ready within"):
        process.announcement(timeout_seconds=0.3, stopping=never)
    assert process.announcement(timeout_seconds=WAIT_SECONDS, stopping=lambda: True) is None
    process.stop()


def test_sigkill_follows_when_the_grace_is_over(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = Process(python(stubborn, announces=True, grace_seconds=0.3), tmp_path)
    process.announcement(timeout_seconds=WAIT_SECONDS, stopping=never)
    process.stop()
    assert process.exit_code == -signal.SIGKILL


def test_what_a_child_left_running_is_ended_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time;"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True);"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    process = Process(python(code, announces=True), tmp_path)
    grandchild = psutil.Process(int(process.announcement(timeout_seconds=WAIT_SECONDS, stopping=never) or 0))
    process.stop()
    assert eventually(lambda: not grandchild.is_running())


def test_children_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from quantry.service.processes import Process, ProcessSpec\n"
        "code = 'import time; time.sleep(60)'\n"
        "spec = ProcessSpec(name='child', arguments=('-c', code), environment=dict(os.environ))\n"
        f"print(Process(spec, Path({str(tmp_path)!r})).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_launcher_refuses_to_start_for_a_parent_that_is_gone() -> None:
    someone_else = os.getppid()
    command = [
        sys.executable,
        "-m",
        "quantry.service.launch",
        "SIGKILL",
        str(someone_else),
        sys.executable,
        "-c",
        "print('ran')",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
    assert (done.returncode, done.stdout) == (70, "")


def test_a_crash_is_mended_and_a_stop_is_for_good(tmp_path: Path) -> None:
    said: list[str] = []
    kept = Kept(python("import time; time.sleep(60)"), tmp_path, said.append)
    first = kept.process
    os.kill(first.pid, signal.SIGKILL)

    def again() -> bool:
        kept.check()
        return kept.process is not first and kept.process.exit_code is None

    assert eventually(again)
    assert said[0].startswith("child ended with signal SIGKILL; starting it again")
    kept.stop()
    assert kept.process.exit_code is not None
    assert first.exit_code == -signal.SIGKILL


def test_a_process_that_keeps_ending_is_given_up_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantry.service.processes._LONGEST_PAUSE_SECONDS", 0.01)
    said: list[str] = []
    kept = Kept(python("raise SystemExit('broken for good')"), tmp_path, said.append)

    def check_for_long() -> None:
        for _ in range(int(WAIT_SECONDS / 0.02)):
            kept.check()
            time.sleep(0.02)

    with pytest.raises(QuantryError, match="ended 7 times in a row") as caught:
        check_for_long()
    assert "broken for good" in caught.value.detail
    assert len(said) == 6
    kept.stop()


def test_a_long_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantry.service.processes._LOG_BYTES", 10)
    (tmp_path / "child.log").write_text("x" * 11)
    process = Process(python("pass"), tmp_path)
    assert process.wait() == 0
    process.stop()
    assert (tmp_path / "child.log.1").read_text() == "x" * 11
    assert process.tail() == []


def test_the_current_directory_is_on_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the launcher, nor the child, nor what the child starts, imports a package that lies there."""
    for name in ("psutil", "quantry"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported from here')\n")
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    grandchild = "[sys.executable, '-c', 'import psutil, quantry, only_here']"
    code = f"import psutil, quantry, subprocess, sys; sys.exit(subprocess.run({grandchild}).returncode)"
    process = Process(python(code), tmp_path)
    assert process.wait() == 1
    assert "No module named 'only_here'" in process.tail()[-1]
