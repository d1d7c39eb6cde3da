"""The download of one model: pinned to a commit, filtered, transferred, verified, and put in place by one rename.

Only files on an allow-list are fetched (safetensors, JSON, tokenizer files, chat templates; never pickles or code).
Each is checked against the Hub's metadata. The snapshot is ``models-cache/<id>/<commit>``. Until it is complete, its
files are in ``<commit>.partial``, where the next process continues.
"""

import fcntl
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._paths import filter_repo_objects

from quant_engine.interface.stages import RESOLVE
from worker.download import problems
from worker.download.hub_retry import HubBackoff, retry_with_backoff
from worker.download.preview import WEIGHTS, write_header
from worker.download.transfer import UNFINISHED, Abandoned, HubFile, fetch_file
from worker.subprocesses.messages import DownloadFile, EventWriter, Log, Resolved, StageAdvanced

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

_HUB_SECONDS: Final = 15.0
_PROGRESS_SECONDS: Final = 1.0
_FILES_AT_ONCE: Final = 4
_DISK_RESERVE_BYTES: Final = 64 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """A model's files on this machine. ``commit`` is the Hub's, 40 hexadecimal digits."""

    directory: Path
    commit: str


@dataclass(frozen=True)
class Download:
    """The download of one model to this machine. Without a ``token``, requests to the Hub are anonymous."""

    request: DownloadFile
    token: str | None
    events: EventWriter

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
        home = self.request.cache_dir / self.request.model_id
        if _is_open_to_all(home, self.request.revision):
            return Snapshot(home / self.request.revision, self.request.revision)
        # False, because None would let the client look for a token on this machine.
        api = HfApi(token=self.token or False)
        info, commit = self._resolve(api)
        restricted = bool(info.private or info.gated)
        home.mkdir(parents=True, exist_ok=True)
        directory = home / commit
        with _one_at_a_time(home / f"{commit}.lock"):
            if directory.is_dir():
                if restricted:  # another job's token fetched it; this job needs access of its own
                    retry_with_backoff(lambda: api.auth_check(self.request.model_id), self._backoff())
            elif self.request.weights:
                self._fetch_files(info, commit, directory, restricted=restricted)
            else:
                return Snapshot(self._fetch_preview(api, info, commit), commit)
        return Snapshot(directory, commit)

    def _fetch_preview(self, api: HfApi, info: ModelInfo, commit: str) -> Path:
        files = self._files_within_quota(info)
        directory = self.request.preview_dir
        directory.mkdir(parents=True, exist_ok=True)
        weights = [file for file in files if file.rfilename.endswith(WEIGHTS)]
        self._transfer([self._hub_file(file, commit) for file in files if file not in weights], directory)
        shutil.rmtree(directory / UNFINISHED, ignore_errors=True)
        for file in weights:
            wanted = partial(write_header, api, self.request.model_id, commit, file.rfilename, directory)
            retry_with_backoff(wanted, self._backoff())
        return directory

    def _files_within_quota(self, info: ModelInfo) -> list[RepoSibling]:
        files = _wanted(info)
        problems.require_within_quota(sum(file.size or 0 for file in files), self.request.max_bytes)
        return files

    def _resolve(self, api: HfApi) -> tuple[ModelInfo, str]:
        model_id, revision = self.request.model_id, self.request.revision
        info = retry_with_backoff(
            lambda: api.model_info(model_id, revision=revision, files_metadata=True, timeout=_HUB_SECONDS),
            self._backoff(),
        )
        # The commit becomes the name of a directory, so nothing else is accepted.
        if info.sha is None or _COMMIT.fullmatch(info.sha) is None:
            raise problems.Refused(problems.unreachable("The Hub named no commit for the revision."))
        self.events.send(Resolved(revision=info.sha))
        return info, info.sha

    def _fetch_files(self, info: ModelInfo, commit: str, directory: Path, *, restricted: bool) -> None:
        files = self._files_within_quota(info)
        total = sum(file.size or 0 for file in files)
        unfinished = directory.with_name(f"{commit}.partial")
        problems.require_space(directory.parent, total - _bytes_in(unfinished) + _DISK_RESERVE_BYTES)
        unfinished.mkdir(exist_ok=True)
        self._reuse_preview(files, unfinished)
        with _reporting(unfinished, total, self.events):
            self._transfer([self._hub_file(file, commit) for file in files], unfinished)
        shutil.rmtree(unfinished / UNFINISHED, ignore_errors=True)
        if restricted:
            # Before the rename: a restricted snapshot must never be visible without its marker.
            _marker(directory).touch()
        unfinished.rename(directory)
        self.events.send(StageAdvanced(name=RESOLVE.name, done=total, total=total))

    def _reuse_preview(self, files: Sequence[RepoSibling], target: Path) -> None:
        """Take over the small files of this job's preview, which were verified when they arrived."""
        for name in (file.rfilename for file in files if not file.rfilename.endswith(WEIGHTS)):
            fetched = self.request.preview_dir / name
            if fetched.is_file() and not (target / name).exists():
                shutil.copyfile(fetched, target / f"{name}.copied")
                (target / f"{name}.copied").rename(target / name)

    def _transfer(self, files: Sequence[HubFile], partial: Path) -> None:
        headers = build_hf_headers(token=self.token or False)
        stop = threading.Event()

        def take(file: HubFile) -> None:
            backoff = HubBackoff(self.request.patience_seconds, on_wait=self._say_why, sleep=stop.wait)
            fetch_file(file, partial, headers=headers, backoff=backoff, stop=stop)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            transfers = [pool.submit(take, file) for file in files]
            # The first failure stops the other transfers; what they have received stays for the next process.
            wait(transfers, return_when=FIRST_EXCEPTION)
            stop.set()
            pool.shutdown(cancel_futures=True)
        _raise_the_cause(transfers)

    def _hub_file(self, file: RepoSibling, commit: str) -> HubFile:
        lfs = file.lfs
        return HubFile(
            name=file.rfilename,
            url=hf_hub_url(self.request.model_id, file.rfilename, revision=commit),
            size=file.size,
            sha256=None if lfs is None else lfs.sha256,
            blob_id=file.blob_id if lfs is None else None,
        )

    def _backoff(self) -> HubBackoff:
        return HubBackoff(self.request.patience_seconds, on_wait=self._say_why)

    def _say_why(self, why: str, seconds: float) -> None:
        self.events.send(Log(message=f"Waiting {seconds:.1f} s: {why}."))


def _is_open_to_all(home: Path, revision: str) -> bool:
    """Return whether the commit is here and needs no token; then no request to the Hub is needed."""
    directory = home / revision
    return _COMMIT.fullmatch(revision) is not None and directory.is_dir() and not _marker(directory).exists()


def _marker(directory: Path) -> Path:
    """Return the marker file beside a snapshot, which exists if its model was private or gated."""
    return directory.with_name(f"{directory.name}.restricted")


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


def _raise_the_cause(transfers: Sequence[Future[None]]) -> None:
    errors = [error for each in transfers if not each.cancelled() and (error := each.exception()) is not None]
    # Abandoned only follows from the failure of another file, so it is not the cause.
    causes = [error for error in errors if not isinstance(error, Abandoned)]
    if causes:
        raise causes[0]


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Let two jobs that need the same snapshot wait for each other. The kernel releases the lock with the process."""
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _reporting(directory: Path, total: int, events: EventWriter) -> Iterator[None]:
    """Report the bytes that have arrived in ``directory`` about once a second, for the block."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_PROGRESS_SECONDS):
            events.send(StageAdvanced(name=RESOLVE.name, done=min(_bytes_in(directory), total), total=total))

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # an unfinished file that was renamed meanwhile
    return total
