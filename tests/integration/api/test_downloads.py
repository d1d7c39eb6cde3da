"""Downloads from either store, a store that is away, and files that the first release published."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from jobs.repository.database import Database
from jobs.settings import Settings
from tests.integration.api.conftest import FILES, Hands
from tests.s3_server import Wire

WEIGHTS = "checkpoint/model.safetensors"
CONTENT = FILES[WEIGHTS]


@pytest.fixture(params=["local", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of store in turn."""
    return str(request.param)


@pytest.fixture
def settings(settings: Settings, kind: str, request: pytest.FixtureRequest) -> Settings:
    """The settings of every other test, on this store."""
    if kind == "local":
        return settings
    return settings.model_copy(update=request.getfixturevalue("s3_settings"))


@pytest.fixture
def href(client: httpx.Client, finished: str) -> str:
    """Where the weights are."""
    return href_of(client, finished, WEIGHTS)


def href_of(client: httpx.Client, job_id: str, path: str) -> str:
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    [found] = [str(artifact["href"]) for artifact in listed if artifact["path"] == path]
    return found


@pytest.mark.parametrize(
    ("asked", "part"),
    [("bytes=0-9", slice(0, 10)), ("bytes=767990-", slice(767990, None)), ("bytes=-300000", slice(-300_000, None))],
)
def test_a_range(client: httpx.Client, href: str, asked: str, part: slice) -> None:
    response = client.get(href, headers={"Range": asked})
    assert (response.status_code, response.content) == (206, CONTENT[part])
    start, stop, _ = part.indices(len(CONTENT))
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


def test_whole_files_conditions_and_heads(client: httpx.Client, finished: str, href: str) -> None:
    for path, content in FILES.items():
        assert client.get(href_of(client, finished, path)).content == content
    whole = client.get(href)
    assert whole.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    head = client.head(href)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
    assert head.headers["repr-digest"] == whole.headers["repr-digest"]
    part = {"Range": "bytes=5-9"}
    assert client.get(href, headers={**part, "If-Range": whole.headers["etag"]}).content == CONTENT[5:10]
    assert client.get(href, headers={**part, "If-Range": '"older"'}).content == CONTENT
    assert client.get(href, headers={"Range": f"bytes={len(CONTENT)}-"}).status_code == 416
    assert client.get(href, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304


def test_the_archive(client: httpx.Client, finished: str) -> None:
    response = client.get(f"/v1/jobs/{finished}/archive")
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        read = {info.name: (tar.extractfile(info) or io.BytesIO()).read() for info in tar}
    assert read == {name: content for name, content in FILES.items() if name.startswith("checkpoint/")}


def test_bytes_that_are_gone(client: httpx.Client, finished: str, href: str, hands: Hands) -> None:
    assert hands.store.delete(hashlib.sha256(CONTENT).hexdigest())
    for path in (href, f"/v1/jobs/{finished}/archive"):
        response = client.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    assert client.head(href).status_code == 404


def test_a_deleted_job_takes_nothing_from_one_with_equal_files(
    client: httpx.Client, finished: str, submit: Callable[..., dict[str, Any]], hands: Hands
) -> None:
    twin: str = submit()["id"]
    hands.publish(hands.claim())
    assert client.delete(f"/v1/jobs/{finished}").status_code == 204
    assert client.get(href_of(client, twin, WEIGHTS)).content == CONTENT


@pytest.mark.parametrize("kind", ["local"], indirect=True)
def test_what_the_first_release_published_is_served_and_deleted(
    client: httpx.Client, finished: str, href: str, hands: Hands, settings: Settings, database: Database
) -> None:
    hands.store.delete(hashlib.sha256(CONTENT).hexdigest())
    older = settings.artifacts_dir / finished / "1" / WEIGHTS
    older.parent.mkdir(parents=True)
    older.write_bytes(CONTENT)
    assert client.get(href, headers={"Range": "bytes=5-9"}).content == CONTENT[5:10]
    assert client.head(href).status_code == 200
    assert client.get(f"/v1/jobs/{finished}/archive").status_code == 200
    (settings.artifacts_dir / finished / "secret").write_bytes(b"secret")
    with database.transaction() as session:
        session.execute(text("UPDATE artifacts SET path = '../secret' WHERE path = :path"), {"path": WEIGHTS})
    assert client.get(href).status_code == 404, "a row leads nowhere outside its attempt"
    assert client.delete(f"/v1/jobs/{finished}").status_code == 204
    assert not (settings.artifacts_dir / finished).exists()


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_a_store_that_is_away_is_a_problem_and_not_a_short_body(
    client: httpx.Client, finished: str, href: str, wire: Wire
) -> None:
    wire.reset(may_send=0)
    for path in (href, f"/v1/jobs/{finished}/archive"):
        response = client.get(path)
        assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["retry-after"]) > 0
    assert client.head(href).status_code == 503
    assert client.get(f"/v1/jobs/{finished}").status_code == 200
    wire.reset(may_receive=300_000)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(href)
    wire.reset()
    assert client.get(href).content == CONTENT


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_a_connection_that_ends_in_the_middle_is_not_noticed(client: httpx.Client, href: str, wire: Wire) -> None:
    wire.reset(may_receive=300_000, mends=True)
    assert client.get(href).content == CONTENT
