"""What a finished job gives: layers, report, artifacts with ranges and digests, the archive."""

import base64
import csv
import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jobs.settings import Settings
from tests.integration.api.conftest import FILES, Hands

_WEIGHTS = "checkpoint/model.safetensors"


def _artifact(client: httpx.Client, job_id: str, path: str) -> dict[str, Any]:
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    [artifact] = [artifact for artifact in listed if artifact["path"] == path]
    return dict(artifact)


def test_layers_as_json(client: httpx.Client, finished: str) -> None:
    path = f"/v1/jobs/{finished}/layers"
    assert [row["block"] for row in client.get(path).json()["data"]] == [0, 1, 2]
    worst = client.get(path, params={"sort": "-error"}).json()["data"]
    assert [row["error"] for row in worst] == [3.0, 2.0, 1.0]
    assert worst[0]["rtn_error"] is None
    first = client.get(path, params={"sort": "-error", "limit": 2}).json()
    rest = client.get(path, params={"sort": "-error", "limit": 2, "after": first["next_cursor"]}).json()
    assert first["data"] + rest["data"] == worst
    assert (first["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)
    assert client.get(path, params={"sort": "name; drop"}).status_code == 422
    assert client.get(path, params={"sort": "nonsense"}).json()["code"] == "invalid_query"


def test_layers_as_csv_are_all_of_them(client: httpx.Client, finished: str) -> None:
    path = f"/v1/jobs/{finished}/layers"
    response = client.get(path, params={"sort": "-error"}, headers={"Accept": "text/csv"})
    assert response.headers["content-type"].startswith("text/csv")
    assert response.headers["vary"] == "Accept"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    expected = client.get(path, params={"sort": "-error"}).json()["data"]
    assert list(rows[0]) == list(expected[0])
    assert [float(row["error"]) for row in rows] == [3.0, 2.0, 1.0]
    assert rows[0]["rtn_error"] == ""
    limited = client.get(path, params={"limit": 1}, headers={"Accept": "text/csv"})
    assert len(limited.text.splitlines()) == 2


def test_report(client: httpx.Client, finished: str, submit: Callable[..., dict[str, Any]]) -> None:
    assert client.get(f"/v1/jobs/{finished}/report").json()["perplexity"] == {"original": 10.0, "quantized": 11.0}
    early = client.get(f"/v1/jobs/{submit()['id']}/report")
    assert (early.status_code, early.json()["code"]) == (404, "report_not_found")
    assert "retry-after" in early.headers


def test_artifacts_list(client: httpx.Client, finished: str) -> None:
    path = f"/v1/jobs/{finished}/artifacts"
    page = client.get(path).json()
    assert {artifact["path"]: artifact["bytes"] for artifact in page["data"]} == {
        name: len(content) for name, content in FILES.items()
    }
    assert all(artifact["sha256"] == hashlib.sha256(FILES[artifact["path"]]).hexdigest() for artifact in page["data"])
    pages, after = [], None
    while True:
        part = client.get(path, params={"limit": 3, **({"after": after} if after else {})}).json()
        pages += part["data"]
        after = part["next_cursor"]
        if after is None:
            break
    assert pages == page["data"]
    assert client.get(path, params={"after": "art_unknown"}).json()["code"] == "invalid_query"


def test_content_whole(client: httpx.Client, finished: str) -> None:
    for path, content in FILES.items():
        artifact = _artifact(client, finished, path)
        response = client.get(artifact["href"])
        assert (response.status_code, response.content) == (200, content)
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert response.headers["accept-ranges"] == "bytes"
        assert response.headers["etag"] == f'"{artifact["sha256"]}"'
        assert response.headers["content-type"].startswith(artifact["media_type"])
        head = client.head(artifact["href"])
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "etag", "repr-digest", "accept-ranges", "content-type"):
            assert head.headers[name] == response.headers[name]
        unchanged = {"If-None-Match": response.headers["etag"]}
        assert client.get(artifact["href"], headers=unchanged).status_code == 304
        assert client.head(artifact["href"], headers=unchanged).status_code == 304


@pytest.mark.parametrize(
    ("asked", "part"),
    [("bytes=0-9", slice(0, 10)), ("bytes=767990-", slice(767990, None)), ("bytes=-7", slice(-7, None))],
)
def test_content_range(client: httpx.Client, finished: str, asked: str, part: slice) -> None:
    content = FILES[_WEIGHTS]
    artifact = _artifact(client, finished, _WEIGHTS)
    response = client.get(artifact["href"], headers={"Range": asked})
    assert (response.status_code, response.content) == (206, content[part])
    start, stop, _ = part.indices(len(content))
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(content)}"
    assert response.headers["content-length"] == str(stop - start)
    whole = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{whole}:"
    assert client.head(artifact["href"], headers={"Range": asked}).headers["content-length"] == str(len(content))


def test_content_range_conditions(client: httpx.Client, finished: str) -> None:
    artifact = _artifact(client, finished, _WEIGHTS)
    part = {"Range": "bytes=0-9"}
    etag = f'"{artifact["sha256"]}"'
    assert client.get(artifact["href"], headers={**part, "If-Range": etag}).status_code == 206
    assert client.get(artifact["href"], headers={**part, "If-Range": '"older"'}).status_code == 200
    assert client.get(artifact["href"], headers={"Range": "bytes=0-1,4-5"}).status_code == 200
    beyond = client.get(artifact["href"], headers={"Range": "bytes=768000-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{artifact['bytes']}"


def test_content_that_is_not_there(client: httpx.Client, finished: str, settings: Settings) -> None:
    artifact = _artifact(client, finished, _WEIGHTS)
    for path in (
        "/v1/artifacts/art_unknown/content",
        "/v1/artifacts/%2e%2e%2fpasswd/content",
        "/v1/artifacts/x%00/content",
    ):
        assert client.get(path).status_code == 404
        assert client.head(path).status_code == 404
    [path] = settings.artifacts_dir.glob(f"blobs/*/{artifact['sha256']}")
    path.unlink()
    assert client.get(artifact["href"]).json()["code"] == "artifact_not_found"
    assert client.head(artifact["href"]).status_code == 404
    assert client.get(f"/v1/jobs/{finished}/archive").json()["code"] == "artifact_not_found"


def test_archive(client: httpx.Client, finished: str) -> None:
    response = client.get(f"/v1/jobs/{finished}/archive")
    assert response.headers["content-type"] == "application/x-tar"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-disposition"] == f'attachment; filename="{finished}.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        read = {info.name: (tar.extractfile(info) or io.BytesIO()).read() for info in tar}
    assert read == {name: content for name, content in FILES.items() if name.startswith("checkpoint/")}
    assert client.get(f"/v1/jobs/{finished}/archive").content == response.content


def test_no_archive_before_success(client: httpx.Client, submit: Callable[..., dict[str, Any]], hands: Hands) -> None:
    job = submit()
    early = client.get(f"/v1/jobs/{job['id']}/archive")
    assert (early.status_code, early.json()["code"]) == (409, "invalid_state")
    assert "retry-after" in early.headers
    client.post(f"/v1/jobs/{job['id']}/cancel")
    never = client.get(f"/v1/jobs/{job['id']}/archive")
    assert (never.status_code, "retry-after" in never.headers) == (409, False)
    assert client.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"] == []
    assert hands.leases.claim("w") is None


def test_a_file_that_shrank_is_seen_by_the_client(client: httpx.Client, finished: str, settings: Settings) -> None:
    artifact = _artifact(client, finished, _WEIGHTS)
    [path] = settings.artifacts_dir.glob(f"blobs/*/{artifact['sha256']}")
    path.unlink()
    path.write_bytes(FILES[_WEIGHTS][:500_000])
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(artifact["href"])
