"""A TCP proxy between the service and one of its servers, which can be slow, cut, or silent. Loopback only.

It uses threads with plain sockets, one for each direction of a connection, because there are only dozens of them.
"""

import contextlib
import socket
import struct
import threading
import time
from enum import StrEnum
from typing import Final, Self

Address = str | tuple[str, int]
"""Where a server listens: a Unix socket's path, or host and port."""

_CHUNK: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: closing sends RST instead of FIN


class Mode(StrEnum):
    """What the proxy does to bytes."""

    OPEN = "open"
    DELAY = "delay"  # every chunk waits ``delay_seconds``
    RESET = "reset"  # open connections are reset, new ones at once after they are accepted
    BLACKHOLE = "blackhole"  # connections are accepted and stay open; nothing comes through


class Proxy:
    """A context manager that listens on ``port`` of 127.0.0.1 during the block."""

    def __init__(self, upstream: Address) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._mode = Mode.OPEN
        self._delay_seconds = 0.0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False

    @property
    def port(self) -> int:
        """The port for clients."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self._mode

    def set(self, mode: Mode, *, delay_seconds: float = 0.0) -> None:
        """Set the mode. At the end of a blackhole its connections are reset: held bytes are lost, as in a real one."""
        held = self._mode is Mode.BLACKHOLE and mode is not Mode.BLACKHOLE
        self._mode, self._delay_seconds = mode, delay_seconds
        if mode is Mode.RESET or held:
            self._reset_all()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        # A blocked accept() does not notice that its socket is closed; a last connection wakes it.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass
        self._listener.close()
        self._reset_all()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                client.close()
                return
            threading.Thread(target=self._serve, args=(client,), name="proxy-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._mode is Mode.RESET:
            _reset(client)
            return
        try:
            server = _connect(self._upstream)
        except OSError:
            _reset(client)
            return
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client), name="proxy-back", daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        for end in (client, server):
            end.close()
        with self._lock:
            self._open -= {client, server}

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """Copy bytes from one end to the other, until one of them is gone."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if self._mode is Mode.DELAY:
                    time.sleep(self._delay_seconds)
                if self._mode is not Mode.BLACKHOLE:
                    target.sendall(chunk)
        # Whatever ended this direction ends both: neither PostgreSQL nor Redis uses half-open connections.
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _reset_all(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)


def _connect(upstream: Address) -> socket.socket:
    if isinstance(upstream, tuple):
        return socket.create_connection(upstream, timeout=None)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(upstream)
    except OSError:
        server.close()
        raise
    return server


def _reset(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
