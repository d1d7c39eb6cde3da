"""The download of one model: pinned to a commit, filtered, transferred, verified, and put in place by one rename.

Only files on an allow-list are fetched (safetensors, JSON, tokenizer files, chat templates; never pickles or code).
Each is checked against the Hub's metadata. The snapshot is ``models-cache/<id>/<commit>``. Until it is complete, its
files are in ``<commit>.partial``, where the next process continues.
"""

from dataclasses import dataclass
from typing import Final

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._paths import filter_repo_objects

from worker.download import problems
from worker.download.snapshot import HUB_SECONDS, Connection, Snapshot, is_commit, is_open_to_all, one_at_a_time
from worker.download.transfer import HubFile
from worker.subprocesses.messages import DownloadFile, Resolved

# The second group is for the card, which names the license, and for the notices that go with the checkpoint.
ALLOWED: Final = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt", "vocab.txt"),
    *(
        "README.md",
        "LICENSE*",
        "NOTICE*",
        "USE_POLICY*",
        "COPYING*",
    ),
)
REFUSED: Final = ("*/*", ".*", "*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "consolidated*")


@dataclass(frozen=True)
class Download:
    """The download of one model to this machine."""

    request: DownloadFile
    connection: Connection

    def fetch(self) -> Snapshot:
        """Fetch the snapshot, or use the one that another job has fetched already.

        Raises:
            problems.Refused: the model may not be fetched: it has no safetensors, or is too large.
            HfHubHTTPError, httpx.HTTPError, OSError: the Hub refused or did not answer, or the disk refused the data.
            DamagedFile: a file is not what the Hub's metadata says.
        """
        home, revision = self.request.cache_dir / self.request.model_id, self.request.revision
        if is_commit(revision) and is_open_to_all(home / revision):
            return Snapshot(home / revision, revision)
        api = self.connection.api()
        info, commit = self._resolve(api)
        restricted = bool(info.private or info.gated)
        directory = home / commit
        with one_at_a_time(directory):
            if not directory.is_dir():
                files = [self._hub_file(file, commit) for file in _wanted(info)]
                problems.require_within_quota(sum(file.size or 0 for file in files), self.request.max_bytes)
                self.connection.put_in_place(files, directory, restricted=restricted)
            elif restricted:  # another job's token fetched it; this job needs access of its own
                self.connection.ask(lambda: api.auth_check(self.request.model_id))
        return Snapshot(directory, commit)

    def _resolve(self, api: HfApi) -> tuple[ModelInfo, str]:
        model_id, revision = self.request.model_id, self.request.revision
        info = self.connection.ask(
            lambda: api.model_info(model_id, revision=revision, files_metadata=True, timeout=HUB_SECONDS)
        )
        # The commit becomes the name of a directory, so nothing else is accepted.
        if info.sha is None or not is_commit(info.sha):
            raise problems.Refused(problems.unreachable("The Hub named no commit for the revision."))
        self.connection.events.send(Resolved(revision=info.sha))
        return info, info.sha

    def _hub_file(self, file: RepoSibling, commit: str) -> HubFile:
        lfs = file.lfs
        return HubFile(
            name=file.rfilename,
            url=hf_hub_url(self.request.model_id, file.rfilename, revision=commit),
            size=file.size,
            sha256=None if lfs is None else lfs.sha256,
            blob_id=file.blob_id if lfs is None else None,
        )


def _wanted(info: ModelInfo) -> list[RepoSibling]:
    files = list(
        filter_repo_objects(
            info.siblings or [],
            allow_patterns=list(ALLOWED),
            ignore_patterns=list(REFUSED),
            key=lambda file: file.rfilename,
        )
    )
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise problems.Refused(problems.no_safetensors())
    return files
