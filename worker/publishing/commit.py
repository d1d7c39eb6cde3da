"""The upload of one checkpoint to one branch of the Hub, as one commit with the files that the branch lacks.

The commit names the head that was compared (``parent_commit``). If the head has moved meanwhile, the branch is read and
compared again, and nothing is overwritten. A branch that has the files already needs no commit. A commit whose answer
was lost is found by the publication's id in its message. The same commit removes the weights of another checkpoint,
because a loader would prefer an old ``model.safetensors`` to the shards; other files stay. See decision 0012.
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
    """Another commit has changed the branch since it was read."""


class _AnswerLost(Exception):
    """The commit was sent, but the answer was lost, so it may or may not exist."""


@dataclass(frozen=True)
class Published:
    """The commit that holds the files."""

    sha: str
    url: str
    created_repo: bool


@dataclass
class HubUpload:
    """One upload. ``meter`` counts the bytes that are being sent; ``done`` is the bytes that the Hub surely has."""

    api: HfApi
    request: PublishFile
    meter: Meter
    done: int = 0
    _git_ids: dict[str, str] = field(default_factory=dict)

    def run(self) -> Published:
        """Publish the checkpoint and return its commit.

        Raises:
            Refused: the publication can not succeed, for the reason in ``error``.
            HubBusy, httpx.TransportError, HfHubHTTPError, RuntimeError: other errors of the Hub or its client.
        """
        created = self._ensure_repo()
        # An earlier attempt may have committed without learning it, so the history is searched as well.
        unsure = self.request.resumed
        for _ in range(_TRIES):
            # Before each try, because the repository may have been made public meanwhile.
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
        """Return how many bytes of the checkpoint the Hub has or is being sent."""
        return min(self.done + self.meter.bytes, self.request.bytes)

    def _ensure_repo(self) -> bool:
        """Create the repository if it is missing; return whether it was created."""
        try:
            self.api.model_info(self.request.repo)
        except RepositoryNotFoundError:
            self.api.create_repo(self.request.repo, private=self.request.private, exist_ok=True)
            return True
        return False

    def _require_private(self) -> None:
        """Raise Refused if the repository is public and the publication is to be private."""
        if self.request.private and not self.api.model_info(self.request.repo).private:
            raise Refused(repo_is_public(self.request))

    def _ensure_branch(self) -> str | None:
        """Return the head of the branch, created from main if missing; None in a repository without a commit."""
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
        """Return the commit that has published these files already, if there is one."""
        if head is None:
            return None
        same = self._is_there(remote)
        # The history is long to list: it is read only if it can hold a commit of ours.
        if not same and not unsure:
            return None
        ours = f"Quantry-Publication: {self.request.publication_id}"
        equal = f"Quantry-Manifest: sha256:{self.request.manifest_sha256}"
        for commit in self.api.list_repo_commits(self.request.repo, revision=head):
            lines = commit.message.split("\n")
            if ours in lines or (same and equal in lines):
                return commit.commit_id
        # Without a commit of ours, the head itself holds the files.
        return head if same else None

    def _is_there(self, remote: Mapping[str, RepoFile]) -> bool:
        return all(self._equal(file, remote) for file in self.request.files) and not any(self._stale(remote))

    def _equal(self, file: UploadedFile, remote: Mapping[str, RepoFile]) -> bool:
        """Return whether the branch has the file, by the hash of git or LFS."""
        there = remote.get(file.path)
        if there is None or there.size != file.bytes:
            return False
        if there.lfs is not None:
            return bool(there.lfs.sha256 == file.sha256)
        if file.path not in self._git_ids:
            self._git_ids[file.path] = git_hash(file.source.read_bytes())
        return bool(there.blob_id == self._git_ids[file.path])

    def _stale(self, remote: Mapping[str, RepoFile]) -> Iterator[str]:
        """Yield the paths of weights on the branch that do not belong to this checkpoint."""
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
        # The request may have arrived before the connection broke.
        except httpx.TransportError as error:
            raise _AnswerLost from error
        except HubBusy as error:
            # A 429 was refused before anything was done; other busy answers may hide a commit.
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
        """Send the files that the Hub does not have yet; the client asks it for each file by hash."""
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
            # The group is in ``done`` now: it must not be counted twice.
            self.meter.clear()
            additions += operations
        return additions

    def _require_whole(self, sha: str) -> None:
        """Raise Refused if the commit lacks a file: a ``.gitignore`` makes the Hub leave files out silently."""
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
    # The hash is known, so the client need not read the file for it.
    operation.upload_info.sha256 = bytes.fromhex(file.sha256)
    return operation
