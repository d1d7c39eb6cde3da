"""Stores of both kinds, the S3 one on a real server."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore, LocalStore, S3Store
from jobs.artifacts.s3_client import s3_client
from tests.s3_server import KEYS, S3Server, Wire, s3_server, wire_to

PART = 5 << 20


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    """One server for the session; every test has a bucket of its own."""
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> str:
    """An empty bucket."""
    return server.make_bucket(f"bucket-{secrets.token_hex(4)}")


@pytest.fixture(scope="session")
def session_wire(server: S3Server) -> Iterator[Wire]:
    """The wire to the server."""
    with wire_to(server) as wire:
        yield wire


@pytest.fixture
def wire(session_wire: Wire) -> Wire:
    """A wire to the server that can be cut, and is whole."""
    session_wire.reset()
    return session_wire


@pytest.fixture(scope="session")
def client(session_wire: Wire) -> Any:
    """A client behind the wire that tries nothing twice; making one takes a while."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in KEYS.items():
            environment.setenv(name, value)
        return s3_client(endpoint_url=session_wire.url, attempts=1)


@pytest.fixture
def s3(bucket: str, wire: Wire, client: Any) -> S3Store:
    """An S3 store behind the wire, of the smallest parts."""
    assert not wire.broken
    return S3Store(client, bucket, prefix="some/place", part_bytes=PART)


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    """A local store."""
    return LocalStore(tmp_path / "artifacts")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    """Each kind in turn."""
    store: ArtifactStore = request.getfixturevalue(request.param)
    return store
