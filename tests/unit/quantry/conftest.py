"""A real HTTP server on loopback whose answers a test writes down beforehand."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quantry import Quantry, transport


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer. ``cut_after`` breaks the connection after so many bytes of the body, whose length was promised;
    ``hold`` keeps it open, with a byte more promised than sent, until the event is set.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    drop: bool = False
    hold: threading.Event | None = None


def json_answer(body: Any, status: int = 200, **headers: str) -> Answer:
    kind = "application/json" if status < 400 else "application/problem+json"
    return Answer(status=status, headers={"Content-Type": kind, **headers}, body=json.dumps(body).encode())


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedServer:
    """Gives its ``answers`` in order, and keeps what it ``received``."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.received: list[Received] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.received.append(Received(method=self.command, path=self.path, headers=headers, body=body))
                answer = script.answers.pop(0)
                self.close_connection = True
                if answer.drop:
                    return
                self.send_response(answer.status)
                promised = len(answer.body) + (answer.hold is not None)
                for name, value in {"Content-Length": str(promised), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body if answer.cut_after is None else answer.body[: answer.cut_after])
                if answer.hold is not None:
                    self.wfile.flush()
                    answer.hold.wait(30)

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the base class looks for these names

            def log_message(self, *arguments: object) -> None:
                del arguments

        return Handler


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits of the client's transport: recorded instead of slept."""
    taken: list[float] = []
    plain = transport.Transport.__init__

    def start(self: transport.Transport, *arguments: Any, **keywords: Any) -> None:
        plain(self, *arguments, **keywords, sleep=taken.append)

    monkeypatch.setattr(transport.Transport, "__init__", start)
    return taken


@pytest.fixture
def client(server: ScriptedServer, naps: list[float]) -> Iterator[Quantry]:
    del naps
    with Quantry(server.url, "qk_test", retries=3) as made:
        yield made


def job_body(status: str = "running", **fields: Any) -> dict[str, Any]:
    """A job as the contract shows it."""
    return {
        "id": "job_1",
        "object": "quantization.job",
        "status": status,
        "is_terminal": status in ("succeeded", "failed", "cancelled"),
        "attempt": 1,
        "created_at": "2026-01-01T00:00:00.000Z",
        "model": {"source": "local", "id": "tiny", "revision": "main", "resolved_revision": None},
        "policy": {},
        "policy_hash": "sha256:0",
        "progress": {"fraction": 0.0},
        "stages": [],
        **fields,
    }
