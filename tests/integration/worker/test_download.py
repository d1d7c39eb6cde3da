"""Fetching from the Hub: the real client in its own process, against a Hub on loopback."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import TOKEN, Hub, HubModel, serve_hub
from tests.integration.worker.conftest import Office
from worker.child import Child, Command
from worker.ending import Outcome
from worker.environment import DOWNLOAD, download_environment
from worker.messages import DownloadFile, Error, Message, Result, StageAdvanced

WANTED = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"w" * 300_000,
    "tokenizer.json": b"{}",
    "tokenizer.model": b"spm",
    "chat_template.jinja": b"{{ messages }}",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "tokenizer_evil.py": b"import os",
    "README.md": b"hello",
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


def start(
    tmp_path: Path, model_id: str = ID, revision: str = "main", *, token: str | None = None, **fields: Any
) -> Child:
    """A download process."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    file = tmp_path / "download.json"
    cache = tmp_path / "models-cache"
    fields = {"patience_seconds": 5.0, **fields}
    request = DownloadFile(parent_pid=os.getpid(), model_id=model_id, revision=revision, cache_dir=cache, **fields)
    file.write_text(request.model_dump_json())
    command = Command(
        arguments=[*DOWNLOAD, str(file)],
        environment=download_environment(scratch),
        directory=scratch,
        log=tmp_path / "runner.log",
        token=token,
    )
    return Child(command)


def download(tmp_path: Path, *arguments: str, **keywords: Any) -> list[Message]:
    """Everything that one download process says."""
    messages: list[Message] = []
    with start(tmp_path, *arguments, **keywords) as child:
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


HUB_JOB = {"model": {"source": "hub", "id": ID, "revision": "main"}}


def test_a_job_runs_on_the_commit_that_its_first_attempt_resolved(office: Office, hub: Hub) -> None:
    job_id = office.submit(**HUB_JOB)
    dies = (sys.executable, "-c", "raise SystemExit(3)")
    assert office.supervisor(runner=dies).run_next() is Outcome.CRASHED
    hub.models[ID] = HubModel(files=WANTED, sha="b" * 40)
    time.sleep(0.2)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    job = office.job(job_id)
    assert (job.attempt, job.model.resolved_revision) == (2, "a" * 40)
    assert job.stages[0].name == "resolve"


def test_a_job_on_a_gated_model_fails_with_a_remedy(office: Office, hub: Hub) -> None:
    hub.models[ID].access = "gated"
    job_id = office.submit(**HUB_JOB)
    assert office.supervisor().run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == ("model_gated", "user")
    assert [(stage.name, stage.status) for stage in job.stages] == [("resolve", "failed")]
