"""What the memory of a worker's processes is labeled with."""

import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from worker.subprocesses.environment import DOWNLOAD, PUBLISH, RUNNER
from worker.sweeper.restarter import SWEEPER
from worker.telemetry.prometheus import _role


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[psutil.Process]:
    with psutil.Popen([sys.executable, "-c", "input()", *request.param[1:]], stdin=-1) as started:
        # A new process may be seen before the system shows its command.
        deadline = time.monotonic() + 10
        while "input()" not in started.cmdline() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield started
        started.kill()


@pytest.mark.parametrize(
    ("process", "role"),
    [(RUNNER, "runner"), (DOWNLOAD, "download"), (PUBLISH, "publish"), (SWEEPER, "sweeper"), (("python",), "pool")],
    indirect=["process"],
)
def test_a_process_is_labeled_with_what_it_is_for(process: psutil.Process, role: str) -> None:
    assert _role(process) == role
