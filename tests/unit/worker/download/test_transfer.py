"""One file over a real connection that breaks, repeats itself, lies or asks for backoff."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session
from huggingface_hub.errors import HfHubHTTPError

from tests.hub_server import TOKEN, Fault, Hub, HubModel, git_blob_id, serve_hub
from worker.download.hub_retry import HubBackoff
from worker.download.transfer import UNFINISHED, Abandoned, DamagedFile, HubFile, fetch_file

NAME = "model.safetensors"
CONTENT = bytes(range(256)) * 4000
COMMIT = "a" * 40


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(Hub(models={"some/one": HubModel(files={NAME: CONTENT, "empty.json": b""})})) as hub:
        yield hub
    close_session()


def described(hub: Hub, name: str = NAME, **fields: object) -> HubFile:
    content = hub.models["some/one"].files[name]
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "blob_id": None}
    return HubFile(name=name, url=f"{hub.url}/some/one/resolve/{COMMIT}/{name}", **{**known, **fields})  # type: ignore[arg-type]


def fetch(
    file: HubFile,
    directory: Path,
    *,
    seconds: float = 30.0,
    stop: threading.Event | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    backoff = HubBackoff(seconds, sleep=lambda _: None)
    fetch_file(file, directory, headers=headers or {}, backoff=backoff, stop=stop or threading.Event())
    return (directory / file.name).read_bytes()


def left(directory: Path) -> bytes:
    return (directory / UNFINISHED / NAME).read_bytes()


def test_a_broken_connection_is_continued_where_it_broke(tmp_path: Path, hub: Hub) -> None:
    hub.faults = [Fault(match=NAME, cut_after=100_000, times=3)]
    assert fetch(described(hub), tmp_path) == CONTENT
    assert hub.ranges(NAME) == ["", "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_what_is_left_when_patience_ends_is_for_the_next_one(tmp_path: Path, hub: Hub) -> None:
    hub.faults = [Fault(match=NAME, cut_after=100_000), Fault(match=NAME, status=503, times=9)]
    with pytest.raises(HfHubHTTPError):
        fetch(described(hub), tmp_path, seconds=1.0)
    assert left(tmp_path) == CONTENT[:100_000]
    assert not (tmp_path / NAME).exists()
    hub.faults.clear()
    assert fetch(described(hub), tmp_path) == CONTENT
    assert hub.ranges(NAME)[-1] == "bytes=100000-"


def test_a_server_that_ignores_the_range_sends_it_all_again(tmp_path: Path, hub: Hub) -> None:
    hub.faults = [Fault(match=NAME, cut_after=100_000), Fault(match=NAME, ignore_range=True)]
    assert fetch(described(hub), tmp_path) == CONTENT


def test_a_leftover_that_is_wrong_is_fetched_anew_once(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / NAME).write_bytes(b"x" * 1000)
    assert fetch(described(hub), tmp_path) == CONTENT
    assert hub.ranges(NAME) == ["bytes=1000-", ""]


@pytest.mark.parametrize("leftover", [CONTENT, CONTENT + b"x"])
def test_a_leftover_that_is_whole_or_too_long(tmp_path: Path, hub: Hub, leftover: bytes) -> None:
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / NAME).write_bytes(leftover)
    assert fetch(described(hub), tmp_path) == CONTENT
    assert hub.ranges(NAME) == ([] if leftover == CONTENT else [""])


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": "0" * 64},
        {"sha256": None, "blob_id": "0" * 40},
        {"size": len(CONTENT) + 1},
        {"size": len(CONTENT) - 1},
    ],
)
def test_a_file_that_is_not_as_promised_never_appears(tmp_path: Path, hub: Hub, wrong: dict[str, object]) -> None:
    with pytest.raises(DamagedFile):
        fetch(described(hub, **wrong), tmp_path)
    assert not (tmp_path / NAME).exists()
    assert not (tmp_path / UNFINISHED / NAME).exists()


def test_small_files_are_known_by_their_git_id(tmp_path: Path, hub: Hub) -> None:
    file = described(hub, sha256=None, blob_id=git_blob_id(CONTENT))
    assert fetch(file, tmp_path) == CONTENT


def test_without_any_metadata_a_file_is_taken_as_it_comes(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / NAME).write_bytes(b"x")
    assert fetch(described(hub, size=None, sha256=None), tmp_path) == CONTENT
    assert hub.ranges(NAME) == [""]


def test_the_token_stays_with_the_hub_when_the_content_lies_elsewhere(tmp_path: Path, hub: Hub) -> None:
    with serve_hub(Hub(models=hub.models)) as elsewhere:
        signed = f"{elsewhere.url}/some/one/resolve/{COMMIT}/{NAME}?signature=x"
        hub.faults = [Fault(match=NAME, status=302, headers={"Location": signed}, times=9)]
        elsewhere.faults = [Fault(match=NAME, cut_after=100_000)]
        assert fetch(described(hub), tmp_path, headers={"authorization": f"Bearer {TOKEN}"}) == CONTENT
    assert [request.headers.get("authorization") for request in hub.received] == [f"Bearer {TOKEN}"] * 2
    assert [request.headers.get("authorization") for request in elsewhere.received] == [None, None]
    assert elsewhere.ranges(NAME) == ["", "bytes=100000-"]


def test_an_empty_file(tmp_path: Path, hub: Hub) -> None:
    assert fetch(described(hub, "empty.json"), tmp_path) == b""


def test_what_is_there_is_not_asked_for(tmp_path: Path, hub: Hub) -> None:
    fetch(described(hub), tmp_path)
    fetch(described(hub), tmp_path)
    assert len(hub.downloads) == 1


def test_it_stops_when_another_file_has_failed(tmp_path: Path, hub: Hub) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Abandoned):
        fetch(described(hub), tmp_path, stop=stop)
    assert hub.downloads == []
