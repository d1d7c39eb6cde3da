"""Uploading to the Hub: the real client against a Hub on loopback that can be written to.

What concerns the process (token, logs, death) runs as a process; the rest calls what that process calls.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from huggingface_hub.utils._http import default_client_factory

from jobs.publications.queueing import published_files_digest
from tests.hub_server import TOKEN, Fault
from tests.hub_uploads import Repository, WritableHub, new_repository, serve_uploads
from tests.integration.worker.conftest import eventually
from worker.publishing.commit import HubUpload, Published
from worker.publishing.errors import publish_error
from worker.publishing.http import Meter, install
from worker.publishing.request import PublishFile, UploadedFile
from worker.subprocesses.child import Child, Command
from worker.subprocesses.environment import PUBLISH, publish_environment
from worker.subprocesses.messages import Error, Message, Result, StageAdvanced

# huggingface_hub sends files in a way that httpx has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "me/tiny-w4a4"
PART = 1 << 18
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# tiny\n",
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 256,
    "model-00002-of-00002.safetensors": bytes(reversed(range(256))) * (3 * PART // 256 + 7),
    "empty.txt": b"",
}
SHARD, LARGE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARD_BYTES = sum(len(content) for name, content in FILES.items() if name.endswith(".safetensors"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the Hub here speaks LFS
    disable_progress_bars()
    with serve_uploads(WritableHub(part_bytes=PART)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub
    set_client_factory(default_client_factory)
    enable_progress_bars()


@dataclass
class Upload:
    """One upload. ``result`` and ``error`` do it here, ``child`` and ``process`` in a process of its own."""

    directory: Path
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    publication_id: str = "pub_1"
    private: bool = True
    revision: str = "main"
    repo: str = REPO
    resumed: bool = False
    token: str = TOKEN

    def request(self) -> PublishFile:
        """What to upload, with its files in place."""
        self.directory.mkdir(exist_ok=True)
        for name, content in self.files.items():
            (self.directory / name).write_bytes(content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        return PublishFile(
            parent_pid=os.getpid(),
            publication_id=self.publication_id,
            job_id="job_1",
            repo=self.repo,
            private=self.private,
            revision=self.revision,
            manifest_sha256=published_files_digest((name, digests[name], len(self.files[name])) for name in self.files),
            resumed=self.resumed,
            files=tuple(
                UploadedFile(path=name, source=self.directory / name, bytes=len(content), sha256=digests[name])
                for name, content in self.files.items()
            ),
        )

    def result(self, hub: WritableHub) -> Published:
        """Where it ends, when it succeeds."""
        meter = Meter()
        install(meter)
        publication = HubUpload(HfApi(endpoint=hub.url, token=self.token), self.request(), meter)
        published = publication.run()
        assert publication.bytes_done() == publication.request.bytes
        return published

    def error(self, hub: WritableHub) -> Error:
        """What is told of it, when it fails."""
        with pytest.raises(Exception) as raised:  # noqa: PT011 — publish_error is what tells them apart
            self.result(hub)
        told = publish_error(raised.value, self.request())
        assert told.hint
        assert self.token not in str(told)
        return told

    def child(self) -> Child:
        """Start the process."""
        scratch = self.directory / "scratch"
        scratch.mkdir(exist_ok=True)
        file = self.directory / "publish.json"
        file.write_text(self.request().model_dump_json())
        return Child(
            Command(
                arguments=[*PUBLISH, str(file)],
                environment=publish_environment(scratch),
                directory=scratch,
                log=self.directory / "publish.log",
                token=self.token,
            )
        )

    def process(self) -> list[Message]:
        """Everything the process says, to its end."""
        messages: list[Message] = []
        with self.child() as child:
            while not child.has_exited():
                messages += child.receive(0.05)
            messages += child.drain()
            assert child.exit_code() == (0 if isinstance(messages[-1], Result) else 1), child.log_tail()
        log = (self.directory / "publish.log").read_text()
        assert self.token not in log + str(messages)
        assert "presigned" not in log + str(messages)
        return messages


def head_of(hub: WritableHub, branch: str = "main") -> dict[str, bytes]:
    """The files of a branch, without the one the Hub puts there."""
    repository = hub.repository(REPO)
    files = dict(repository.commits[repository.heads[branch]].files)
    del files[".gitattributes"]
    return files


def test_a_checkpoint_becomes_one_commit_of_a_new_private_repository(tmp_path: Path, hub: WritableHub) -> None:
    messages = Upload(tmp_path).process()
    result = messages[-1]
    assert isinstance(result, Result)
    repository = hub.repository(REPO)
    sha = repository.heads["main"]
    assert result.payload == {"sha": sha, "url": f"{hub.url}/{REPO}/commit/{sha}", "created_repo": True}
    assert repository.access == "private"
    assert head_of(hub) == FILES
    assert len(repository.commits) == 2
    assert "Quantry-Publication: pub_1" in hub.messages(REPO)[0]
    progress = [message for message in messages if isinstance(message, StageAdvanced)]
    total = sum(map(len, FILES.values()))
    assert progress[-1] == StageAdvanced(name="publish", done=total, total=total)
    assert hub.bytes_sent == SHARD_BYTES
    assert sum("part=" in address for address, _ in hub.sent) == 4, "the large one went in parts"


def test_the_same_files_published_twice_are_one_commit(tmp_path: Path, hub: WritableHub) -> None:
    first = Upload(tmp_path / "1").result(hub)
    sent = hub.bytes_sent
    second = Upload(tmp_path / "2", publication_id="pub_2").result(hub)
    assert second == replace(first, created_repo=False)
    assert hub.bytes_sent == sent
    assert len(hub.repository(REPO).commits) == 2


def test_a_later_commit_of_others_leaves_the_publication_where_it_was(tmp_path: Path, hub: WritableHub) -> None:
    first = Upload(tmp_path / "1").result(hub)
    repository = hub.repository(REPO)
    repository.commit({**repository.commits[repository.heads["main"]].files, "notes.md": b"mine"}, "a note")
    assert Upload(tmp_path / "2", publication_id="pub_2").result(hub).sha == first.sha
    assert head_of(hub)["notes.md"] == b"mine"


def test_another_checkpoint_replaces_the_weights_and_keeps_what_is_not_ours(tmp_path: Path, hub: WritableHub) -> None:
    Upload(tmp_path / "1").result(hub)
    repository = hub.repository(REPO)
    repository.commit({**repository.commits[repository.heads["main"]].files, "notes.md": b"mine"}, "a note")
    other = {"config.json": b'{"a": 1}', "model.safetensors": b"whole" * 1000}
    Upload(tmp_path / "2", publication_id="pub_2", files=other).result(hub)
    kept = {name: content for name, content in FILES.items() if not name.endswith(".safetensors")}
    assert head_of(hub) == {**kept, **other, "notes.md": b"mine"}


def test_a_cut_part_alone_is_sent_again(tmp_path: Path, hub: WritableHub) -> None:
    digest = hashlib.sha256(FILES[LARGE]).hexdigest()
    hub.faults.append(Fault(match=f"PUT /storage/{digest}", cut_after=PART // 2))
    Upload(tmp_path).result(hub)
    assert head_of(hub) == FILES
    assert SHARD_BYTES < hub.bytes_sent <= SHARD_BYTES + PART


def test_a_killed_upload_is_resumed_with_what_is_missing(tmp_path: Path, hub: WritableHub) -> None:
    shard = hashlib.sha256(FILES[SHARD]).hexdigest()
    hub.held = "part=3"
    with Upload(tmp_path).child() as child:
        eventually(lambda: shard in hub.objects and hub.holding.is_set())
        os.kill(child.pid, signal.SIGKILL)
        child.exit_code()
    hub.release()
    assert hub.messages(REPO) == ["initial commit"]
    Upload(tmp_path, resumed=True).result(hub)
    assert head_of(hub) == FILES
    assert sum(shard in address for address, _ in hub.sent) == 1, "it was there"
    assert len(hub.repository(REPO).commits) == 2


def test_a_commit_whose_answer_is_lost_is_recognized(tmp_path: Path, hub: WritableHub) -> None:
    hub.faults.append(Fault(match="/commit/", cut_after=0))
    result = Upload(tmp_path).result(hub)
    assert result.sha == hub.repository(REPO).heads["main"]
    assert len(hub.repository(REPO).commits) == 2


def test_a_lost_commit_is_recognized_by_the_next_attempt_even_when_others_came_after(
    tmp_path: Path, hub: WritableHub
) -> None:
    first = Upload(tmp_path / "1").result(hub)
    repository = hub.repository(REPO)
    repository.commit({**repository.commits[repository.heads["main"]].files, "config.json": b"edited"}, "an edit")
    assert Upload(tmp_path / "2", resumed=True).result(hub).sha == first.sha
    assert head_of(hub)["config.json"] == b"edited"


def test_a_head_that_moves_meanwhile_is_read_again_and_not_written_over(tmp_path: Path, hub: WritableHub) -> None:
    def move(repository: Repository) -> None:
        hub.on_commit = None
        head = repository.commits[repository.heads["main"]]
        repository.commit({**head.files, "config.json": b"theirs", "notes.md": b"theirs"}, "meanwhile")

    hub.models[REPO] = new_repository(private=True)
    hub.on_commit = move
    Upload(tmp_path).result(hub)
    assert [message.partition("\n")[0] for message in hub.messages(REPO)] == [
        "Publish job_1",
        "meanwhile",
        "initial commit",
    ]
    assert head_of(hub) == {**FILES, "notes.md": b"theirs"}, "compared with the head as it was then"


def test_a_public_repository_is_refused_where_private_was_asked(tmp_path: Path, hub: WritableHub) -> None:
    hub.models[REPO] = new_repository(private=False)
    error = Upload(tmp_path).error(hub)
    assert (error.code, error.category, error.retry_after) == ("repo_is_public", "user", None)
    assert hub.sent == []
    assert Upload(tmp_path, private=False).result(hub).created_repo is False


def test_a_branch_that_is_missing_is_made(tmp_path: Path, hub: WritableHub) -> None:
    hub.models[REPO] = new_repository(private=True)
    Upload(tmp_path, revision="w4a4/test").result(hub)
    assert head_of(hub, "w4a4/test") == FILES
    assert head_of(hub) == {}


@pytest.mark.parametrize(
    ("fault", "code", "retry_after"),
    [
        (Fault(match="/refs", status=429, headers={"Retry-After": "77"}), "hub_rate_limited", 77.0),
        (Fault(match="/preupload/", status=503), "hub_unreachable", 0.0),
        (Fault(match="/objects/batch", status=502, headers={"Retry-After": "5"}), "hub_unreachable", 5.0),
        (Fault(match="PUT /storage/", times=9, status=503, headers={"Retry-After": "9"}), "hub_unreachable", 9.0),
    ],
)
def test_a_busy_hub_asks_for_another_attempt(
    tmp_path: Path, hub: WritableHub, fault: Fault, code: str, retry_after: float
) -> None:
    hub.faults.append(fault)
    error = Upload(tmp_path).error(hub)
    assert (error.code, error.retry_after) == (code, retry_after)
    assert error.category != "user"


def test_a_hub_that_is_not_there_asks_for_another_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    error = Upload(tmp_path).process()[-1]
    assert isinstance(error, Error)
    assert (error.code, error.retry_after) == ("hub_unreachable", 0.0)


def test_a_wrong_token_and_a_foreign_account_are_the_users_to_mend(tmp_path: Path, hub: WritableHub) -> None:
    wrong = Upload(tmp_path, token="hf_wrong").error(hub)  # noqa: S106 — opens nothing
    assert (wrong.code, wrong.category, wrong.retry_after) == ("hub_unauthorized", "user", None)
    foreign = Upload(tmp_path, repo="someone/else").error(hub)
    assert (foreign.code, foreign.category, foreign.retry_after) == ("hub_forbidden", "user", None)


def test_files_that_the_hub_leaves_out_are_noticed(tmp_path: Path, hub: WritableHub) -> None:
    hub.models[REPO] = new_repository(private=True)
    hub.repository(REPO).ignored = frozenset({"config.json"})
    error = Upload(tmp_path).error(hub)
    assert (error.code, error.category) == ("publication_incomplete", "user")
    assert "config.json" in error.detail


def test_the_token_is_in_no_argument_no_environment_and_no_file(tmp_path: Path, hub: WritableHub) -> None:
    hub.held = "/storage/"
    with Upload(tmp_path).child() as child:
        eventually(hub.holding.is_set)
        process = psutil.Process(child.pid)
        assert TOKEN not in str(process.cmdline())
        assert TOKEN not in str(process.environ())
        assert not any(TOKEN in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    hub.release()
