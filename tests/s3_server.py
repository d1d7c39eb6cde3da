"""A real S3 protocol server on loopback (moto's), and a TCP proxy to it that can break connections."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
from moto.server import ThreadedMotoServer

KEYS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
"""An environment in which boto3 finds these keys and no others."""


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The endpoint of the server."""
        return f"http://{self.host}:{self.port}"

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket and return its name."""
        httpx.put(f"{self.url}/{name}", timeout=60).raise_for_status()
        return name


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run the server for the block."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield S3Server(*server.get_host_and_port())
    finally:
        server.stop()


@dataclass
class Wire:
    """A TCP proxy. It counts the bytes of each direction, and breaks when one has carried the allowed number."""

    server: S3Server
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    sent: int = 0
    received: int = 0
    may_send: float = float("inf")
    may_receive: float = float("inf")
    mends_itself: bool = False

    @property
    def url(self) -> str:
        """The address for clients, in place of the server's."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def reset(self, *, may_send: float = float("inf"), may_receive: float = float("inf"), mends: bool = False) -> None:
        """Count from zero; break after this many bytes, for good or (``mends``) only once."""
        self.sent, self.received = 0, 0
        self.may_send, self.may_receive, self.mends_itself = may_send, may_receive, mends

    @property
    def broken(self) -> bool:
        """Whether a direction has carried all the bytes that it may."""
        return self.sent > self.may_send or self.received > self.may_receive

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.broken:
                client.close()
                continue
            server = socket.create_connection((self.server.host, self.server.port))
            for source, target, direction in ((client, server, "sent"), (server, client, "received")):
                threading.Thread(target=self._pump, args=(source, target, direction), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, direction, getattr(self, direction) + len(data))
                if self.broken:
                    if self.mends_itself:
                        self.may_send = self.may_receive = float("inf")
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def wire_to(server: S3Server) -> Iterator[Wire]:
    """Run a proxy to the server for the block."""
    wire = Wire(server)
    thread = threading.Thread(target=wire.serve, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        wire.listener.shutdown(socket.SHUT_RDWR)
        wire.listener.close()
        thread.join(5)
