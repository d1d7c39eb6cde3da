"""Fetching a data set with the real client of the Hub, against a Hub on loopback."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from quant_engine.interface.datasets import Purpose
from tests.hub_server import TOKEN, Fault, Hub, HubModel, serve_hub
from worker.download.dataset import DatasetDownload
from worker.download.dataset_problems import as_dataset_error
from worker.download.snapshot import HUB_SECONDS, Connection, Snapshot
from worker.subprocesses.messages import DatasetDownloadFile, Error, EventWriter

ID = "someone/texts"
MIB = 1 << 20
FILES = {
    "README.md": b"---\nlicense: mit\n---",
    "script.py": b"import os",
    "en/train-0.parquet": b"0" * 3 * MIB,
    "en/train-1.parquet": b"1" * 3 * MIB,
    "en/train-2.parquet": b"2" * 3 * MIB,
    "en/test-0.jsonl.gz": gzip.compress(b'{"text": "held out"}'),
}
CARD = {
    "configs": [
        {
            "config_name": "en",
            "data_files": [{"split": "train", "path": "en/train-*"}, {"split": "test", "path": "en/test-*"}],
        }
    ]
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(Hub(datasets={ID: HubModel(files=FILES, card=CARD)})) as hub:
        # In this process: the client has read its variables already.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def events() -> Iterator[EventWriter]:
    null = os.open(os.devnull, os.O_WRONLY)
    yield EventWriter(null)
    os.close(null)


def asked(tmp_path: Path, **fields: Any) -> DatasetDownloadFile:
    given: dict[str, Any] = {
        "parent_pid": os.getpid(),
        "dataset_id": ID,
        "revision": "main",
        "config": None,
        "split": None,
        "purpose": Purpose.CALIBRATION,
        "characters": 4_000_000,
        "cache_dir": tmp_path / "datasets-cache",
        "max_bytes": 100 * MIB,
        "patience_seconds": 0.5,
    }
    return DatasetDownloadFile(**{**given, **fields})


def fetch(tmp_path: Path, events: EventWriter, token: str | None = None, **fields: Any) -> Snapshot:
    request = asked(tmp_path, **fields)
    connection = Connection(token=token, patience_seconds=request.patience_seconds, events=events)
    return DatasetDownload(request, connection).fetch()


def refused(tmp_path: Path, events: EventWriter, token: str | None = None, **fields: Any) -> Error:
    with pytest.raises(Exception) as raised:  # noqa: PT011 — every kind of failure becomes a message
        fetch(tmp_path, events, token, **fields)
    error = as_dataset_error(raised.value, asked(tmp_path, **fields), has_token=token is not None)
    assert error.hint
    return error


def names(snapshot: Snapshot) -> list[str]:
    return sorted(path.name for path in snapshot.directory.iterdir())


def test_no_more_files_than_needed_arrive_at_a_commit(tmp_path: Path, hub: Hub, events: EventWriter) -> None:
    snapshot = fetch(tmp_path, events)
    assert snapshot.commit == "a" * 40
    assert names(snapshot) == ["en%2Ftrain-0.parquet", "en%2Ftrain-1.parquet"]
    assert (snapshot.directory / "en%2Ftrain-1.parquet").read_bytes() == FILES["en/train-1.parquet"]
    assert snapshot.directory.is_relative_to(tmp_path / "datasets-cache" / ID)
    held_out = fetch(tmp_path, events, purpose=Purpose.EVALUATION)
    assert names(held_out) == ["en%2Ftest-0.jsonl.gz"]
    assert not any("script.py" in path for path in hub.downloads)


def test_what_is_there_is_not_fetched_again(tmp_path: Path, hub: Hub, events: EventWriter) -> None:
    first = fetch(tmp_path, events)
    downloads = len(hub.downloads)
    assert fetch(tmp_path, events, characters=4_100_000) == first
    assert len(hub.downloads) == downloads
    before = len(hub.requests)
    assert fetch(tmp_path, events, revision="a" * 40) == first
    assert len(hub.requests) == before, "a pinned commit that is there needs no Hub at all"
    hub.datasets[ID].move({"train.txt": b"moved"}, "b" * 40)
    hub.datasets[ID].card = {}
    assert names(fetch(tmp_path, events)) == ["train.txt"]


def test_a_broken_transfer_is_continued(tmp_path: Path, hub: Hub, events: EventWriter) -> None:
    hub.faults = [Fault(match="GET /datasets/someone/texts/resolve", cut_after=100_000)]
    assert names(fetch(tmp_path, events))
    assert "bytes=100000-" in hub.ranges("train-0.parquet") + hub.ranges("train-1.parquet")


def test_the_cap_ends_the_list_and_refuses_what_is_too_large(tmp_path: Path, hub: Hub, events: EventWriter) -> None:
    assert names(fetch(tmp_path, events, max_bytes=4 * MIB)) == ["en%2Ftrain-0.parquet"]
    downloads = len(hub.downloads)
    error = refused(tmp_path / "other", events, max_bytes=MIB)
    assert (error.code, error.category) == ("quota_exceeded", "user")
    assert "en/train-0.parquet" in error.detail
    assert "QUANTRY_MAX_DATASET_BYTES" in error.hint
    assert len(hub.downloads) == downloads


@pytest.mark.parametrize(("access", "code"), [("gated", "dataset_gated"), ("private", "dataset_not_found")])
def test_a_token_opens_what_is_restricted_for_its_owner_alone(
    tmp_path: Path, hub: Hub, events: EventWriter, access: str, code: str
) -> None:
    hub.datasets[ID].access = access
    assert refused(tmp_path, events).code == code
    assert names(fetch(tmp_path, events, TOKEN))
    assert refused(tmp_path, events, revision="a" * 40).code == code
    assert refused(tmp_path, events, "hf_wrong").code == "hub_token_refused"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset_id": "someone/else"}, "shows no data set someone/else"),
        ({"revision": "no-such-branch"}, "no revision 'no-such-branch'"),
        ({"config": "de"}, "no configuration"),
        ({"split": "dev"}, "no split"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have(tmp_path: Path, events: EventWriter, fields: dict[str, Any], words: str) -> None:
    error = refused(tmp_path, events, **fields)
    assert (error.code, error.category) == ("dataset_not_found", "user")
    assert words in error.detail


def test_without_the_hub_the_way_without_it_is_told(tmp_path: Path, hub: Hub, events: EventWriter) -> None:
    hub.failing = True
    for error in (
        refused(tmp_path, events),
        as_dataset_error(OfflineModeIsEnabled("offline"), asked(tmp_path), has_token=False),
    ):
        assert (error.code, error.category) == ("hub_unreachable", "platform")
        assert "QUANTRY_DATASETS_DIR" in error.hint


def test_a_silent_hub_does_not_hold_a_request_for_ever(events: EventWriter) -> None:
    api = Connection(token=None, patience_seconds=1.0, events=events).api()
    assert api.token is False
    assert get_session().timeout == httpx.Timeout(HUB_SECONDS)


@pytest.mark.parametrize("card", [["configs"], "configs", {"configs": "en"}, {"configs": [{"data_files": 5}]}])
def test_a_card_of_any_form_is_no_internal_error(tmp_path: Path, hub: Hub, events: EventWriter, card: Any) -> None:
    hub.datasets[ID] = HubModel(files={"train.txt": b"words"}, card=card)
    assert names(fetch(tmp_path, events)) == ["train.txt"]


def test_a_damaged_file_is_not_kept(tmp_path: Path, hub: Hub, events: EventWriter) -> None:
    hub.datasets[ID].claimed["en/train-0.parquet"] = "0" * 64
    assert refused(tmp_path, events).code == "download_damaged"
    assert not any(path.is_dir() and path.suffix != ".partial" for path in (tmp_path / "datasets-cache" / ID).iterdir())
