"""A receiver of webhooks on loopback whose answers a test chooses: good, bad, slow, or none."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behavior = Callable[["Exchange"], None]


@dataclass(frozen=True)
class Received:
    """One request, with its headers by lower-case name."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Exchange:
    """One request that is being answered; behaviors use it to answer."""

    received: Received
    connection: Any
    stopping: threading.Event
    sent: int = 0

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send a complete answer."""
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.raw(("\r\n".join([*lines, "", ""])).encode() + body)

    def raw(self, data: bytes) -> None:
        """Send these bytes."""
        self.connection.sendall(data)
        self.sent += len(data)

    def drip(self, data: bytes, every_seconds: float) -> None:
        """Send these bytes one at a time."""
        for byte in data:
            self.raw(bytes([byte]))
            time.sleep(every_seconds)

    def hang(self) -> None:
        """Send nothing until the receiver stops."""
        self.stopping.wait(30)


@dataclass
class Receiver:
    """The requests that came, and the next answers: the behaviors of ``script`` in turn, the last one forever."""

    port: int = 0
    scheme: str = "http"
    script: list[Behavior] = field(default_factory=lambda: [lambda exchange: exchange.answer(200)])
    received: list[Received] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def url(self, host: str = "127.0.0.1", path: str = "/hooks?from=quantry") -> str:
        """The address of the receiver."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    def answers(self, *statuses: int) -> None:
        """Answer with these statuses from now on."""
        self.script[:] = [_answering(status) for status in statuses]

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Received]:
        """Wait for this many requests and return them."""
        deadline = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < deadline, f"{len(self.received)} of {count} messages came"
            time.sleep(0.02)
        return list(self.received)

    def take(self, exchange: Exchange) -> Behavior:
        """Store a request and return how to answer it."""
        with self.lock:
            self.received.append(exchange.received)
            self.exchanges.append(exchange)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of a connection, because some tests close it."""


@contextmanager
def receiving(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    """Run a receiver until the block ends."""
    receiver = Receiver(scheme="http" if tls is None else "https")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            """Do the TLS handshake in this connection's own thread."""
            if tls is not None:
                self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            """Close the socket of TLS, which the server does not know."""
            with suppress(OSError):
                super().finish()
            self.request.close()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            exchange = Exchange(Received(self.path, headers, body), self.connection, receiver.stopping)
            self.close_connection = True
            with suppress(OSError):
                receiver.take(exchange)(exchange)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the base class's name
            """Log nothing."""

    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: receiver.server_names.append(name)
    server = _Server((host, port), Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def closed_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answering(status: int) -> Behavior:
    return lambda exchange: exchange.answer(status)
