"""The service around one test on the shared servers: a back office, and API processes that can be killed."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import SecretStr

from jobs.embedded import Urls
from jobs.repository.database import Database
from jobs.settings import Settings
from tests.faults import failpoints
from tests.integration.worker.conftest import FAST, ROOT, Office, eventually, working_office
from tests.scripted_runner import BEHAVIORS
from tests.sound_model import write_sound_model

_API: Final = ("-m", "tests.faults.wrapped", "api", "uvicorn", "api.main:app", "--log-level=warning")


@contextmanager
def open_office(database: Database, urls: Urls, data_dir: Path, **settings: float) -> Iterator[Office]:
    """Open an office with a model for every behavior of the scripted runner; ``settings`` replace the short lease."""
    for behavior in BEHAVIORS:
        write_sound_model(data_dir / "models" / behavior)
    (data_dir / failpoints.DIRECTORY).mkdir()
    given: dict[str, Any] = {**FAST, **settings}
    chosen = Settings(
        data_dir=data_dir,
        database_url=SecretStr(urls.database_url),
        broker_url=SecretStr(urls.broker_url),
        **given,
    )
    with working_office(database, chosen) as office:
        yield office


@dataclass
class Apis:
    """API processes that accept from one socket: when one is killed, the next one answers."""

    office: Office
    listener: socket.socket
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def start(self, count: int = 1) -> None:
        """Start ``count`` more processes; requests wait in the socket until the first one runs."""
        environment = self.office.environment()
        for _ in range(count):
            with (self.office.settings.data_dir / f"api-{len(self.processes)}.log").open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, *_API, f"--fd={self.listener.fileno()}"],
                    cwd=ROOT,
                    env=environment,
                    pass_fds=[self.listener.fileno()],
                    stdout=output,
                    stderr=output,
                )
            self.processes.append(process)

    @property
    def running(self) -> int:
        """Return how many processes run."""
        return sum(process.poll() is None for process in self.processes)

    def dies_while_asked(
        self, edge: failpoints.Edge, moment: failpoints.Moment, client: httpx.Client, **post: object
    ) -> bool:
        """POST a job to an API that dies at the ``edge`` of answering; return whether an answer came nevertheless."""
        before, data_dir = self.running, self.office.settings.data_dir
        failpoints.arm(data_dir, failpoints.FailPoint("api", edge, moment, hits=1))
        answered = True
        try:
            client.post(f"{self.url}/v1/jobs", **post)  # type: ignore[arg-type]
        except httpx.TransportError:
            answered = False
        eventually(lambda: self.running == before - 1)
        return answered

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.wait(10)


@contextmanager
def open_apis(office: Office) -> Iterator[Apis]:
    """Open the socket; no process runs yet."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        apis = Apis(office, listener)
        try:
            yield apis
        finally:
            apis.stop()
