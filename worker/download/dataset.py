"""The download of a data set's text for one use: pinned to a commit, and no more files than needed.

The files are those that the data set publishes: Parquet, JSON Lines or text (:mod:`worker.download.dataset_files`). Its
code is never fetched. The snapshot is ``datasets-cache/<id>/<commit>-<selection>``, where the selection is a hash of
what was asked for, so that a later job finds it without the Hub.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from huggingface_hub import DatasetCardData, HfApi, hf_hub_url
from huggingface_hub.hf_api import DatasetInfo, RepoFile

from worker.download import problems
from worker.download.dataset_files import NoSuchFiles, Wanted, choose_files, file_name
from worker.download.dataset_problems import too_large
from worker.download.snapshot import HUB_SECONDS, Connection, Snapshot, is_commit, is_open_to_all, one_at_a_time
from worker.download.transfer import HubFile
from worker.subprocesses.messages import DatasetDownloadFile

_MOST_FILES: Final = 1000
_ASKED_AT_ONCE: Final = 50
_DATASET: Final = "dataset"


@dataclass(frozen=True)
class DatasetDownload:
    """The download of one data set for one use."""

    request: DatasetDownloadFile
    connection: Connection

    def fetch(self) -> Snapshot:
        """Fetch the files, or use those that another job has fetched already.

        Raises:
            NoSuchFiles: the data set has no such configuration, split or files.
            problems.Refused: its first file is too large, or the disk too small.
            HfHubHTTPError, httpx.HTTPError, OSError: the Hub refused or did not answer, or the disk refused the data.
            DamagedFile: a file is not what the Hub's metadata says.
        """
        home, revision = self.request.cache_dir / self.request.dataset_id, self.request.revision
        pinned = home / f"{revision}-{self._selection()}"
        if is_commit(revision) and is_open_to_all(pinned):
            return Snapshot(pinned, revision)
        api = self.connection.api()
        info, commit = self._resolve(api)
        restricted = bool(info.private or info.gated)
        directory = home / f"{commit}-{self._selection()}"
        with one_at_a_time(directory):
            if not directory.is_dir():
                self.connection.put_in_place(self._files(api, info, commit), directory, restricted=restricted)
            elif restricted:  # another job's token fetched it; this job needs access of its own
                self.connection.ask(lambda: api.auth_check(self.request.dataset_id, repo_type=_DATASET))
        return Snapshot(directory, commit)

    def _selection(self) -> str:
        request = self.request
        # The next power of two, so that a job with a few more tokens uses the same files.
        asked = [request.config, request.split, request.purpose.value, request.characters.bit_length()]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def _resolve(self, api: HfApi) -> tuple[DatasetInfo, str]:
        name, revision = self.request.dataset_id, self.request.revision
        # Without the files' metadata, which is large where a data set has ten thousands of files.
        info = self.connection.ask(lambda: api.dataset_info(name, revision=revision, timeout=HUB_SECONDS))
        # The commit becomes the name of a directory, so nothing else is accepted.
        if info.sha is None or not is_commit(info.sha):
            raise problems.Refused(problems.unreachable("The Hub named no commit for the revision."))
        return info, info.sha

    def _files(self, api: HfApi, info: DatasetInfo, commit: str) -> list[HubFile]:
        names = choose_files(
            [file.rfilename for file in info.siblings or []],
            info.card_data.get("configs") if isinstance(info.card_data, DatasetCardData) else None,
            Wanted(self.request.config, self.request.split, self.request.purpose),
        )
        # A character of text is seldom less than a byte of these files, compressed as they are.
        needed, taken = 1 << self.request.characters.bit_length(), 0
        files: list[HubFile] = []
        for file in self._described(api, names[:_MOST_FILES], commit):
            if taken + file.size > self.request.max_bytes:
                if not files:
                    raise problems.Refused(too_large(file.path, file.size, self.request.max_bytes))
                break
            files.append(self._hub_file(file, commit))
            taken += file.size
            if taken >= needed:
                break
        if not files:
            raise NoSuchFiles("The Hub does not describe the files of the data set.", "Submit the job again later.")
        return files

    def _described(self, api: HfApi, names: Sequence[str], commit: str) -> Iterator[RepoFile]:
        name = self.request.dataset_id
        for start in range(0, len(names), _ASKED_AT_ONCE):
            some = list(names[start : start + _ASKED_AT_ONCE])
            ask = partial(api.get_paths_info, name, some, revision=commit, repo_type=_DATASET)
            described = {each.path: each for each in self.connection.ask(ask) if isinstance(each, RepoFile)}
            yield from (described[path] for path in some if path in described)

    def _hub_file(self, file: RepoFile, commit: str) -> HubFile:
        lfs = file.lfs
        return HubFile(
            name=file_name(file.path),
            url=hf_hub_url(self.request.dataset_id, file.path, revision=commit, repo_type=_DATASET),
            size=file.size,
            sha256=None if lfs is None else lfs.sha256,
            blob_id=file.blob_id if lfs is None else None,
        )
