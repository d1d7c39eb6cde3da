"""One checkpoint onto one branch of the Hub, as one commit: what is there is compared, what is missing is sent.

The commit names the head that was compared (``parent_commit``): a head that moved meanwhile is read and compared again,
never written over. A branch that holds the files already needs no commit, and a commit whose answer was lost is known
by the publication's id in its message. Weights of another checkpoint are removed in the same commit, because a loader
would prefer an old ``model.safetensors`` to our shards; other files stay.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from worker.publishing.errors import Refused, head_keeps_moving, incomplete, repo_is_public
from worker.publishing.http import HubBusy, Meter
from worker.publishing.request import PublishFile, UploadedFile

_TRIES: Final = 5
_CONFLICT: Final = frozenset({409, 412})
_TOO_MANY: Final = 429
_GROUP_BYTES: Final = 8 << 20  # smaller files are sent together, larger ones one by one, so that progress is exact
_THREADS: Final = 4
_WEIGHTS: Final = re.compile(r"[^/]+\.safetensors(\.index\.json)?")


class _HeadMoved(Exception):
    """Someone committed since the branch was read."""


class _AnswerLost(Exception):
    """The commit was sent, and nobody knows whether it landed."""


@dataclass(frozen=True)
class Published:
    """The commit that holds the files."""

    sha: str
    url: str
    created_repo: bool


@dataclass
class HubUpload:
    """One attempt. ``meter`` counts what is being sent; ``done`` is what the Hub has for certain, in bytes."""

    api: HfApi
    request: PublishFile
    meter: Meter
    done: int = 0
    _git_ids: dict[str, str] = field(default_factory=dict)

    def run(self) -> Published:
        """Publish.

        Raises:
            Refused: it will not work, and says why.
            HubBusy, httpx.TransportError, HfHubHTTPError, RuntimeError: what the Hub or the client said.
        """
        created = self._ensure_repo()
        unsure = self.request.resumed
        for _ in range(_TRIES):
            self._require_private()
            head = self._ensure_branch()
            remote = self._remote_files(head)
            landed = self._landed(head, remote, unsure=unsure)
            if landed is not None:
                self.done = self.request.bytes
                return Published(landed, self._url_of(landed), created)
            try:
                sha = self._commit(head, remote)
            except _HeadMoved:
                continue
            except _AnswerLost:
                unsure = True
                continue
            self._require_whole(sha)
            return Published(sha, self._url_of(sha), created)
        raise Refused(head_keeps_moving(self.request))

    def bytes_done(self) -> int:
        """Of the whole checkpoint, what the Hub has or is being sent."""
        return min(self.done + self.meter.bytes, self.request.bytes)

    def _ensure_repo(self) -> bool:
        """Whether this made it."""
        try:
            self.api.model_info(self.request.repo)
        except RepositoryNotFoundError:
            self.api.create_repo(self.request.repo, private=self.request.private, exist_ok=True)
            return True
        return False

    def _require_private(self) -> None:
        """A repository can be public already, or have been made so meanwhile."""
        if self.request.private and not self.api.model_info(self.request.repo).private:
            raise Refused(repo_is_public(self.request))

    def _ensure_branch(self) -> str | None:
        """The head of the branch, made from main if it is missing; None in a repository without a commit."""
        heads = self._heads()
        if heads and self.request.revision not in heads:
            self.api.create_branch(self.request.repo, branch=self.request.revision, exist_ok=True)
            heads = self._heads()
        return heads.get(self.request.revision)

    def _heads(self) -> dict[str, str]:
        return {branch.name: branch.target_commit for branch in self.api.list_repo_refs(self.request.repo).branches}

    def _remote_files(self, revision: str | None) -> dict[str, RepoFile]:
        if revision is None:
            return {}
        tree = self.api.list_repo_tree(self.request.repo, revision=revision, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _landed(self, head: str | None, remote: Mapping[str, RepoFile], *, unsure: bool) -> str | None:
        """The commit that did all this already, if one did."""
        if head is None:
            return None
        same = self._is_there(remote)
        if not same and not unsure:
            return None
        ours = f"Quantry-Publication: {self.request.publication_id}"
        equal = f"Quantry-Manifest: sha256:{self.request.manifest_sha256}"
        for commit in self.api.list_repo_commits(self.request.repo, revision=head):
            lines = commit.message.split("\n")
            if ours in lines or (same and equal in lines):
                return commit.commit_id
        return head if same else None

    def _is_there(self, remote: Mapping[str, RepoFile]) -> bool:
        return all(self._equal(file, remote) for file in self.request.files) and not any(self._stale(remote))

    def _equal(self, file: UploadedFile, remote: Mapping[str, RepoFile]) -> bool:
        """By what git and LFS call the content."""
        there = remote.get(file.path)
        if there is None or there.size != file.bytes:
            return False
        if there.lfs is not None:
            return bool(there.lfs.sha256 == file.sha256)
        if file.path not in self._git_ids:
            self._git_ids[file.path] = git_hash(file.source.read_bytes())
        return bool(there.blob_id == self._git_ids[file.path])

    def _stale(self, remote: Mapping[str, RepoFile]) -> Iterator[str]:
        """Weights there that are not of this checkpoint."""
        ours = {file.path for file in self.request.files}
        return (path for path in remote if path not in ours and _WEIGHTS.fullmatch(path))

    def _commit(self, head: str | None, remote: Mapping[str, RepoFile]) -> str:
        missing = [file for file in self.request.files if not self._equal(file, remote)]
        additions = self._upload(missing)
        removals = [CommitOperationDelete(path, is_folder=False) for path in self._stale(remote)]
        try:
            commit = self.api.create_commit(
                self.request.repo,
                [*additions, *removals],
                commit_message=f"Publish {self.request.job_id}",
                commit_description=self._description(),
                revision=self.request.revision,
                parent_commit=head,
            )
        except httpx.TransportError as error:
            raise _AnswerLost from error
        except HubBusy as error:
            if error.status == _TOO_MANY:
                raise
            raise _AnswerLost from error
        except HfHubHTTPError as error:
            if error.response.status_code in _CONFLICT:
                raise _HeadMoved from error
            raise
        self.done = self.request.bytes
        return str(commit.oid)

    def _upload(self, files: list[UploadedFile]) -> list[CommitOperationAdd]:
        """Send what the Hub does not have yet; asked by hash, it says of each file whether it has it."""
        self.done = self.request.bytes - sum(file.bytes for file in files)
        additions: list[CommitOperationAdd] = []
        for group in _groups(files):
            operations = [_addition(file) for file in group]
            self.api.preupload_lfs_files(
                self.request.repo,
                operations,
                revision=self.request.revision,
                num_threads=_THREADS,
                free_memory=False,
            )
            self.done += sum(file.bytes for file in group)
            self.meter.clear()
            additions += operations
        return additions

    def _require_whole(self, sha: str) -> None:
        """A ``.gitignore`` there makes the Hub leave files out without a word."""
        remote = self._remote_files(sha)
        missing = [file.path for file in self.request.files if not self._equal(file, remote)]
        if missing:
            raise Refused(incomplete(self.request, missing))

    def _description(self) -> str:
        return (
            f"Quantry-Publication: {self.request.publication_id}\n"
            f"Quantry-Manifest: sha256:{self.request.manifest_sha256}"
        )

    def _url_of(self, sha: str) -> str:
        return f"{self.api.endpoint}/{self.request.repo}/commit/{sha}"


def _groups(files: list[UploadedFile]) -> Iterator[list[UploadedFile]]:
    small = [file for file in files if file.bytes < _GROUP_BYTES]
    if small:
        yield small
    for file in files:
        if file.bytes >= _GROUP_BYTES:
            yield [file]


def _addition(file: UploadedFile) -> CommitOperationAdd:
    operation = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.source)
    operation.upload_info.sha256 = bytes.fromhex(file.sha256)  # known: the file is not read for it again
    return operation
