"""The wire does what it is told."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Mode, Proxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that says everything again."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with client:
            try:
                while chunk := client.recv(100):
                    client.sendall(chunk)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: tuple[str, int]) -> Iterator[Proxy]:
    """A wire to it."""
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0)


def said(client: socket.socket, word: bytes) -> bytes:
    client.sendall(word)
    return client.recv(100)


def test_an_open_wire_carries_everything(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert said(client, b"one") == b"one"
        assert said(client, b"two") == b"two"


def test_a_slow_wire_is_slow(proxy: Proxy) -> None:
    proxy.set(Mode.DELAY, delay_seconds=0.2)
    with connect(proxy) as client:
        began = time.monotonic()
        assert said(client, b"one") == b"one"
        assert time.monotonic() - began >= 0.4, "there and back"


def test_a_cut_wire_ends_open_connections_and_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert said(client, b"one") == b"one"
        proxy.set(Mode.RESET)
        assert is_ended(client)
    assert is_refused(proxy)
    proxy.set(Mode.OPEN)
    with connect(proxy) as client:
        assert said(client, b"two") == b"two"


def test_a_silent_wire_accepts_and_says_nothing_until_it_is_mended(proxy: Proxy) -> None:
    proxy.set(Mode.BLACKHOLE)
    with connect(proxy) as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            said(client, b"one")
        proxy.set(Mode.OPEN)
        client.settimeout(5.0)
        assert is_ended(client), "what was in it is lost"


def test_a_server_that_is_away_looks_like_one() -> None:
    with Proxy("/nowhere/at.all") as proxy:
        assert is_refused(proxy)


def is_refused(proxy: Proxy) -> bool:
    try:
        with connect(proxy) as client:
            return is_ended(client)
    except ConnectionError:
        return True  # the reset was quicker than the connection


def is_ended(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True
