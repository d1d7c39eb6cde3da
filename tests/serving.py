"""``quantry serve`` as a user runs it: a real process with real children, for tests."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class Serving:
    """A running ``quantry serve``; ``said`` holds its output so far."""

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        program: Sequence[str] = (sys.executable, "-m", "quantry"),
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        data_dir.mkdir(exist_ok=True)
        self.data_dir = data_dir
        self.output = data_dir / "said.txt"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*program, "serve", "--port=0", f"--data-dir={data_dir}", *options],
                cwd=cwd,
                env={**inherited, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, module: str) -> psutil.Process:
        (found,) = [p for p in psutil.Process(self.process.pid).children() if module in p.cmdline()]
        return found

    def url(self) -> str:
        assert eventually(lambda: "ready at" in self.said or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.said
        return next(word for word in self.said.split() if word.startswith("http://"))


@contextmanager
def serving(
    data_dir: Path, *options: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    started = Serving(data_dir, *options, cwd=cwd, environment=environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
        started.process.wait(STOP_SECONDS)


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(processes: list[psutil.Process]) -> bool:
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in processes)
