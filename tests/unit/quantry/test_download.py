"""Downloads: resumed, checked, renamed when whole."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from quantry import Artifact, Quantry, QuantryError
from tests.unit.quantry.conftest import Answer, ScriptedServer, json_answer

CONTENT = bytes(range(256)) * 20
NAME = "checkpoint/model.safetensors"


def manifest(path: str = NAME, content: bytes = CONTENT, sha256: str | None = None) -> Answer:
    artifact: dict[str, Any] = {
        "id": "art_1",
        "name": path.rsplit("/", 1)[-1],
        "path": path,
        "bytes": len(content),
        "sha256": sha256 or hashlib.sha256(content).hexdigest(),
        "media_type": "application/octet-stream",
        "href": "/v1/artifacts/art_1/content",
    }
    return json_answer({"data": [artifact], "has_more": False, "next_cursor": None})


def rest(start: int) -> Answer:
    bounds = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    return Answer(status=206, headers={"Content-Range": bounds}, body=CONTENT[start:])


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(
    client: Quantry, server: ScriptedServer, tmp_path: Path
) -> None:
    server.answers = [manifest(), Answer(body=CONTENT)]
    seen: list[int] = []

    def on_bytes(artifact: Artifact, have: int) -> None:
        assert artifact.path == NAME
        seen.append(have)

    assert client.download("job_1", tmp_path, on_bytes=on_bytes) == [tmp_path / NAME]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["model.safetensors"]
    assert seen[-1] == len(CONTENT)


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(
    client: Quantry, server: ScriptedServer, tmp_path: Path
) -> None:
    server.answers = [manifest(), Answer(body=CONTENT, cut_after=1000), rest(1000)]
    client.download("job_1", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.received[2].headers["range"] == "bytes=1000-"


def test_another_run_goes_on_with_what_an_earlier_one_left(
    client: Quantry, server: ScriptedServer, tmp_path: Path
) -> None:
    server.answers = [manifest(), Answer(body=CONTENT, cut_after=1000), *[Answer(drop=True)] * 4]
    with pytest.raises(QuantryError, match="connection_lost"):
        client.download("job_1", tmp_path)
    assert not (tmp_path / NAME).exists()
    server.answers = [manifest(), rest(1000)]
    client.download("job_1", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.received[-1].headers["range"] == "bytes=1000-"


def test_a_server_without_ranges_sends_it_all_again(client: Quantry, server: ScriptedServer, tmp_path: Path) -> None:
    server.answers = [manifest(), Answer(body=CONTENT, cut_after=1000), Answer(body=CONTENT)]
    client.download("job_1", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_an_intact_file_is_kept_and_a_damaged_one_is_fetched(
    client: Quantry, server: ScriptedServer, tmp_path: Path
) -> None:
    target = tmp_path / NAME
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    server.answers = [manifest()]
    client.download("job_1", tmp_path)
    assert len(server.received) == 1
    target.write_bytes(CONTENT[:-1] + b"x")
    server.answers = [manifest(), Answer(body=CONTENT)]
    client.download("job_1", tmp_path)
    assert target.read_bytes() == CONTENT


def test_wrong_bytes_are_fetched_once_more_and_then_refused(
    client: Quantry, server: ScriptedServer, tmp_path: Path
) -> None:
    wrong = Answer(body=CONTENT[:-1] + b"x")
    server.answers = [manifest(), wrong, Answer(body=CONTENT)]
    client.download("job_1", tmp_path / "once")
    assert (tmp_path / "once" / NAME).read_bytes() == CONTENT
    server.answers = [manifest(), wrong, wrong]
    with pytest.raises(QuantryError, match="digest_mismatch"):
        client.download("job_1", tmp_path / "twice")
    assert list((tmp_path / "twice" / "checkpoint").iterdir()) == []


def test_an_empty_file(client: Quantry, server: ScriptedServer, tmp_path: Path) -> None:
    server.answers = [manifest(content=b""), Answer(body=b"")]
    client.download("job_1", tmp_path)
    assert (tmp_path / NAME).read_bytes() == b""


def test_a_shorter_file_than_the_manifest_says_is_refused(
    client: Quantry, server: ScriptedServer, tmp_path: Path
) -> None:
    server.answers = [manifest(), *[Answer(body=CONTENT[:10])] * 4]
    with pytest.raises(QuantryError, match="bad_response"):
        client.download("job_1", tmp_path)


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\..\\x", ""])
def test_a_path_outside_the_directory_is_refused(
    client: Quantry, server: ScriptedServer, tmp_path: Path, path: str
) -> None:
    server.answers = [manifest(path)]
    with pytest.raises(QuantryError, match="unsafe_path"):
        client.download("job_1", tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_refusals_wait_or_end(client: Quantry, server: ScriptedServer, naps: list[float], tmp_path: Path) -> None:
    busy = json_answer({"code": "unavailable", "detail": "Busy."}, 503, **{"Retry-After": "4"})
    server.answers = [manifest(), busy, Answer(body=CONTENT)]
    client.download("job_1", tmp_path / "waited")
    assert naps == [4.0]
    server.answers = [manifest(), json_answer({"code": "artifact_not_found", "detail": "Gone."}, 404)]
    with pytest.raises(QuantryError, match="artifact_not_found"):
        client.download("job_1", tmp_path / "gone")


def test_an_archive_appears_only_when_it_is_whole(client: Quantry, server: ScriptedServer, tmp_path: Path) -> None:
    server.answers = [Answer(body=CONTENT, cut_after=100)]
    with pytest.raises(QuantryError, match="connection_lost"):
        client.archive("job_1", tmp_path / "model.tar")
    assert list(tmp_path.iterdir()) == []
    server.answers = [Answer(body=CONTENT)]
    assert client.archive("job_1", tmp_path / "model.tar").read_bytes() == CONTENT
