"""The download of one model: pinned to a commit, filtered, transferred, verified, and put in place by one rename.

Only files on an allow-list are fetched (safetensors, JSON, tokenizer files, chat templates; never pickles or code).
Each is checked against the Hub's metadata. The snapshot is ``models-cache/<id>/<commit>``. Until it is complete, its
files are in ``<commit>.partial``, where the next process continues.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._paths import filter_repo_objects

from worker.download import problems
from worker.download.preview import WEIGHTS, write_header
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

        Without ``request.weights`` only a preview is fetched, to ``request.preview_dir``: everything but the weights,
        and weight files that hold nothing but their headers (:mod:`worker.download.preview`). A snapshot that is here
        already is used instead of a preview.

        Raises:
            problems.Refused: the model may not be fetched: it has no safetensors, or is too large.
            HfHubHTTPError, httpx.HTTPError, OSError: the Hub refused or did not answer, or the disk refused the data.
            DamagedFile: a file is not what the Hub's metadata says.
            InvalidModel: a weight file is no safetensors file.
        """
        home, revision = self.request.cache_dir / self.request.model_id, self.request.revision
        if is_commit(revision) and is_open_to_all(home / revision):
            return Snapshot(home / revision, revision)
        api = self.connection.api()
        info, commit = self._resolve(api)
        restricted = bool(info.private or info.gated)
        directory = home / commit
        with one_at_a_time(directory):
            if directory.is_dir():
                if restricted:  # another job's token fetched it; this job needs access of its own
                    self.connection.ask(lambda: api.auth_check(self.request.model_id))
            elif self.request.weights:
                files = self._files_within_quota(info)
                listed = [self._hub_file(file, commit) for file in files]
                begin = partial(self._reuse_preview, files)
                self.connection.put_in_place(listed, directory, restricted=restricted, begin=begin)
            else:
                return Snapshot(self._fetch_preview(api, info, commit), commit)
        return Snapshot(directory, commit)

    def _fetch_preview(self, api: HfApi, info: ModelInfo, commit: str) -> Path:
        files = self._files_within_quota(info)
        directory = self.request.preview_dir
        directory.mkdir(parents=True, exist_ok=True)
        weights = [file for file in files if file.rfilename.endswith(WEIGHTS)]
        self.connection.transfer([self._hub_file(file, commit) for file in files if file not in weights], directory)
        for file in weights:
            self.connection.ask(partial(write_header, api, self.request.model_id, commit, file.rfilename, directory))
        return directory

    def _files_within_quota(self, info: ModelInfo) -> list[RepoSibling]:
        files = _wanted(info)
        problems.require_within_quota(sum(file.size or 0 for file in files), self.request.max_bytes)
        return files

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

    def _reuse_preview(self, files: Sequence[RepoSibling], target: Path) -> None:
        """Take over the small files of this job's preview, which were verified when they arrived."""
        for name in (file.rfilename for file in files if not file.rfilename.endswith(WEIGHTS)):
            fetched = self.request.preview_dir / name
            if fetched.is_file() and not (target / name).exists():
                shutil.copyfile(fetched, target / f"{name}.copied")
                (target / f"{name}.copied").rename(target / name)

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
