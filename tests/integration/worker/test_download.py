"""Fetching from the Hub: the real client in its own process, against a Hub on loopback."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import TOKEN, Fault, Hub, HubModel, serve_hub
from worker.subprocesses.child import Child, Command
from worker.subprocesses.environment import DOWNLOAD, download_environment
from worker.subprocesses.messages import DownloadFile, Error, Log, Message, Result, StageAdvanced

WANTED = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"w" * 300_000,
    "tokenizer.json": b"{}",
    "tokenizer.model": b"spm",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"---\nlicense: apache-2.0\n---",
    "NOTICE": b"of someone",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "tokenizer_evil.py": b"import os",
    "IMAGES.md": b"hello",
    ".gitattributes": b"*",
    "onnx/model.safetensors": b"nested",
    "consolidated.safetensors": b"twice",
}
ID = "someone/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(Hub(models={ID: HubModel(files=WANTED | UNWANTED)})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def download(
    tmp_path: Path, model_id: str = ID, revision: str = "main", *, token: str | None = None, **fields: Any
) -> list[Message]:
    """Everything that one download process says."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    file = tmp_path / "download.json"
    cache = tmp_path / "models-cache"
    fields = {"patience_seconds": 5.0, **fields}
    request = DownloadFile(
        parent_pid=os.getpid(),
        model_id=model_id,
        revision=revision,
        cache_dir=cache,
        preview_dir=cache / "preview",
        **fields,
    )
    file.write_text(request.model_dump_json())
    command = Command(
        arguments=[*DOWNLOAD, str(file)],
        environment=download_environment(scratch),
        directory=scratch,
        log=tmp_path / "runner.log",
        token=token,
    )
    messages: list[Message] = []
    with Child(command) as child:
        while not child.has_exited():
            messages += child.receive(0.1)
        messages += child.drain()
        assert child.exit_code() == (0 if isinstance(messages[-1], Result) else 1), child.log_tail()
    return messages


def error_of(messages: list[Message]) -> Error:
    assert isinstance(messages[-1], Error)
    assert messages[-1].hint
    return messages[-1]


def test_a_revision_becomes_a_commit_and_only_allowed_files_arrive(tmp_path: Path, hub: Hub) -> None:
    messages = download(tmp_path)
    result = messages[-1]
    assert isinstance(result, Result)
    directory = Path(result.payload["path"])
    assert result.payload["revision"] == hub.models[ID].sha
    assert directory == tmp_path / "models-cache" / ID / hub.models[ID].sha
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == WANTED
    assert not any(name in line for name in UNWANTED for line in hub.downloads)
    total = sum(map(len, WANTED.values()))
    assert [m for m in messages if isinstance(m, StageAdvanced)][-1] == StageAdvanced(
        name="resolve", done=total, total=total
    )


def test_what_is_there_is_not_fetched_again(tmp_path: Path, hub: Hub) -> None:
    download(tmp_path)
    fetched = len(hub.downloads)
    assert isinstance(download(tmp_path)[-1], Result)
    assert len(hub.downloads) == fetched
    before = len(hub.requests)
    assert isinstance(download(tmp_path, revision=hub.models[ID].sha)[-1], Result)
    assert len(hub.requests) == before, "a pinned commit that is there needs no Hub at all"


def test_a_moved_branch_is_another_commit(tmp_path: Path, hub: Hub) -> None:
    download(tmp_path)
    hub.models[ID] = HubModel(files=WANTED, sha="b" * 40)
    result = download(tmp_path)[-1]
    assert isinstance(result, Result)
    assert result.payload["revision"] == "b" * 40
    assert len(list((tmp_path / "models-cache" / ID).glob("*/config.json"))) == 2


def test_an_unknown_model(tmp_path: Path, hub: Hub) -> None:
    error = error_of(download(tmp_path, "someone/else"))
    assert (error.code, error.category) == ("model_not_found", "user")
    assert not hub.downloads


def test_an_unknown_revision(tmp_path: Path, hub: Hub) -> None:
    error = error_of(download(tmp_path, revision="no-such-branch"))
    assert error.code == "model_not_found"
    assert "no-such-branch" in error.detail
    assert not hub.downloads


def test_a_gated_model(tmp_path: Path, hub: Hub) -> None:
    hub.models[ID].access = "gated"
    error = error_of(download(tmp_path))
    assert (error.code, error.category) == ("model_gated", "user")
    assert not (tmp_path / "models-cache" / ID / hub.models[ID].sha).exists()


@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_token_opens_it(tmp_path: Path, hub: Hub, access: str) -> None:
    hub.models[ID].access = access
    messages = download(tmp_path, token=TOKEN)
    assert isinstance(messages[-1], Result)
    assert TOKEN not in str(messages)
    assert TOKEN not in (tmp_path / "runner.log").read_text()


def test_a_model_without_safetensors(tmp_path: Path, hub: Hub) -> None:
    hub.models[ID] = HubModel(files={"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    error = error_of(download(tmp_path))
    assert (error.code, error.category) == ("unsafe_checkpoint", "user")
    assert not hub.downloads


def test_a_hub_that_answers_with_errors(tmp_path: Path, hub: Hub) -> None:
    hub.failing = True
    error = error_of(download(tmp_path, patience_seconds=0.6))
    assert (error.code, error.category) == ("hub_unreachable", "platform")
    assert "503" in error.detail


def test_a_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert error_of(download(tmp_path, patience_seconds=0.2)).code == "hub_unreachable"


def test_a_worker_told_to_stay_offline(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert error_of(download(tmp_path)).code == "hub_unreachable"
    assert not hub.requests


def test_a_model_larger_than_the_disk(tmp_path: Path, hub: Hub) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 60

    hub.models[ID] = HubModel(files={**WANTED, "model.safetensors": Huge(b"w")})
    error = error_of(download(tmp_path))
    assert (error.code, error.category) == ("insufficient_disk", "capacity")
    assert f"{(1 << 60) + (64 << 20) + sum(map(len, WANTED.values())) - 300_000:,}" in error.detail
    assert not hub.downloads


def logs(messages: list[Message]) -> list[str]:
    return [message.message for message in messages if isinstance(message, Log)]


def test_a_connection_that_breaks_is_resumed(tmp_path: Path, hub: Hub) -> None:
    hub.faults = [Fault(match="GET /someone/tiny/resolve/" + "a" * 40 + "/model.safetensors", cut_after=100_000)]
    result = download(tmp_path)[-1]
    assert isinstance(result, Result)
    assert (Path(result.payload["path"]) / "model.safetensors").read_bytes() == WANTED["model.safetensors"]
    assert hub.ranges("model.safetensors") == ["", "bytes=100000-"]


def test_a_busy_hub_is_waited_for_as_it_says(tmp_path: Path, hub: Hub) -> None:
    hub.faults = [
        Fault(match="/api/models/", status=429, headers={"Retry-After": "1"}),
        Fault(match="GET /someone/tiny/resolve/", status=503),
    ]
    began = time.monotonic()
    messages = download(tmp_path)
    assert isinstance(messages[-1], Result)
    assert time.monotonic() - began >= 1
    assert [line.split(": ")[1] for line in logs(messages)] == [
        "the Hub answered with HTTP status 429.",
        "the Hub answered with HTTP status 503.",
    ]
    assert logs(messages)[0].startswith("Waiting 1.0 s")


def test_a_wait_longer_than_the_operators_patience_fails(tmp_path: Path, hub: Hub) -> None:
    hub.faults = [Fault(match="/api/models/", status=429, headers={"Retry-After": "3600"})]
    error = error_of(download(tmp_path))
    assert (error.code, error.detail) == ("hub_unreachable", "The Hub answered with HTTP status 429.")


@pytest.mark.usefixtures("hub")
def test_a_wrong_token_is_refused_and_not_told(tmp_path: Path) -> None:
    messages = download(tmp_path, token="hf_wrong")  # noqa: S106 — opens nothing
    error = error_of(messages)
    assert (error.code, error.category) == ("hub_token_refused", "user")
    assert "hf_wrong" not in str(messages)
    assert "hf_wrong" not in (tmp_path / "runner.log").read_text()


def test_a_model_above_the_operators_quota(tmp_path: Path, hub: Hub) -> None:
    total = sum(map(len, WANTED.values()))
    error = error_of(download(tmp_path, max_bytes=total - 1))
    assert (error.code, error.category) == ("quota_exceeded", "user")
    assert f"{total:,}" in error.detail
    assert f"{total - 1:,}" in error.detail
    assert not hub.downloads
    assert isinstance(download(tmp_path, max_bytes=total)[-1], Result)


def test_a_file_that_is_not_what_the_hub_says(tmp_path: Path, hub: Hub) -> None:
    hub.models[ID].claimed["model.safetensors"] = "0" * 64
    error = error_of(download(tmp_path))
    assert (error.code, error.category) == ("download_damaged", "platform")
    assert "model.safetensors" in error.detail
    assert not (tmp_path / "models-cache" / ID / hub.models[ID].sha).exists()


@pytest.mark.parametrize(("access", "code"), [("gated", "model_gated"), ("private", "model_not_found")])
def test_what_one_token_fetched_does_not_open_to_who_has_none(tmp_path: Path, hub: Hub, access: str, code: str) -> None:
    hub.models[ID].access = access
    assert isinstance(download(tmp_path, token=TOKEN)[-1], Result)
    fetched = len(hub.downloads)
    commit = hub.models[ID].sha
    assert error_of(download(tmp_path, revision=commit)).code == code
    assert isinstance(download(tmp_path, revision=commit, token=TOKEN)[-1], Result)
    assert len(hub.downloads) == fetched
