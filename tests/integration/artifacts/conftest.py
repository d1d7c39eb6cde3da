"""Stores of both kinds, the S3 one on a real server."""

from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore, LocalStore, S3Store
from jobs.artifacts.s3_client import s3_client
from tests.s3_server import KEYS, Wire

PART = 5 << 20


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
