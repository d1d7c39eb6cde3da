"""An S3 server that many tests share, and a proxy to it that each test may break."""

import secrets
from collections.abc import Iterator

import pytest

from tests.s3_server import KEYS, S3Server, Wire, s3_server, wire_to


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    """Run one server for the session; every test has a bucket of its own."""
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> str:
    """Make an empty bucket."""
    return server.make_bucket(f"bucket-{secrets.token_hex(4)}")


@pytest.fixture(scope="session")
def session_wire(server: S3Server) -> Iterator[Wire]:
    """Run the proxy to the server."""
    with wire_to(server) as wire:
        yield wire


@pytest.fixture
def wire(session_wire: Wire) -> Wire:
    """Return the proxy to the server, which is not broken at the start."""
    session_wire.reset()
    return session_wire


@pytest.fixture
def s3_settings(bucket: str, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return settings of a store in the bucket, through the proxy; boto3 finds the keys in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return {"artifacts_url": f"s3://{bucket}/quantry", "s3_endpoint_url": wire.url}
