"""The subprocess that fetches a model from the Hub: ``python -m worker.download download.json --events-fd N``.

The only process that may hold a Hub token. It pins the revision to a commit, takes an allow-list of files (safetensors,
JSON, tokenizer files, chat templates; never pickles or code), and puts the whole snapshot in place with one rename:
``models-cache/<id>/<commit>``. Speaks the runner protocol; its ``result`` carries ``path`` and ``revision``.
"""

import argparse
import errno
import fcntl
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._paths import filter_repo_objects

from worker.lifeline import die_with_parent
from worker.messages import DownloadFile, Error, EventWriter, Result, StageAdvanced
from worker.problems import as_error

ALLOWED: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt", "vocab.txt", "LICENSE*")
REFUSED: Final = ("*/*", ".*", "*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "consolidated*")

_STAGE: Final = "resolve"
_HUB_SECONDS: Final = 15.0
_PROGRESS_SECONDS: Final = 1.0
_DISK_RESERVE_BYTES: Final = 64 << 20
_EXIT_FAILED: Final = 1
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


class _RefusedError(Exception):
    """Carries what to tell the supervisor."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.detail)
        self.error = error


def main(arguments: list[str] | None = None) -> int:
    """Fetch one model as ``download.json`` says. Exit 0 after ``result``, 1 after ``error``."""
    parser = argparse.ArgumentParser(prog="worker.download", description="Fetches one model from the Hub.")
    parser.add_argument("download_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    request = DownloadFile.model_validate_json(options.download_file.read_bytes())
    die_with_parent(request.parent_pid)
    events = EventWriter(options.events_fd)
    try:
        directory, revision = fetch(request, events)
    except Exception as error:  # the process's edge: whatever it is, the supervisor must hear of it
        events.send(_as_error(error, request))
        logger.error("the download failed", exc_info=error)
        return _EXIT_FAILED
    events.send(Result(payload={"path": str(directory), "revision": revision}))
    return os.EX_OK


def fetch(request: DownloadFile, events: EventWriter) -> tuple[Path, str]:
    """The snapshot's directory and its commit; what another job has fetched already is taken as it is.

    Raises:
        HfHubHTTPError, httpx.HTTPError, OSError: the Hub refused, did not answer, or the disk did not take it.
    """
    home = request.cache_dir / request.model_id
    if _COMMIT.fullmatch(request.revision) and (home / request.revision).is_dir():
        return home / request.revision, request.revision
    info = HfApi().model_info(request.model_id, revision=request.revision, files_metadata=True, timeout=_HUB_SECONDS)
    if info.sha is None:
        raise _RefusedError(_unreachable("The Hub named no commit for the revision."))
    files = _wanted(info)
    total = sum(file.size or 0 for file in files)
    home.mkdir(parents=True, exist_ok=True)
    directory = home / info.sha
    with _one_at_a_time(home / f"{info.sha}.lock"):
        if not directory.is_dir():
            partial = home / f"{info.sha}.partial"
            _require_space(home, total)
            with _reporting(partial, total, events):
                _download(request.model_id, info.sha, files, partial)
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            partial.rename(directory)
        events.send(StageAdvanced(name=_STAGE, done=total, total=total))
    return directory, info.sha


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
        raise _RefusedError(
            Error(
                code="unsafe_checkpoint",
                category="user",
                detail="The model's repository has no safetensors weights.",
                hint="Other formats can run code when opened. Choose a model, or a revision, with safetensors.",
            )
        )
    return files


def _download(model_id: str, revision: str, files: list[RepoSibling], target: Path) -> None:
    snapshot_download(
        model_id,
        revision=revision,
        local_dir=target,
        allow_patterns=[file.rfilename for file in files],
        etag_timeout=_HUB_SECONDS,
        max_workers=4,
    )


def _require_space(home: Path, total: int) -> None:
    if shutil.disk_usage(home).free < total + _DISK_RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Two jobs that want the same snapshot wait for each other; the kernel drops the lock with the process."""
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _reporting(directory: Path, total: int, events: EventWriter) -> Iterator[None]:
    """Report the bytes that have arrived in ``directory``, about once a second."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_PROGRESS_SECONDS):
            events.send(StageAdvanced(name=_STAGE, done=min(_bytes_in(directory), total), total=total))

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
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # a temporary file that became the real one meanwhile
    return total


def _as_error(error: Exception, request: DownloadFile) -> Error:
    match error:
        case _RefusedError():
            return error.error
        case GatedRepoError():
            return Error(
                code="model_gated",
                category="user",
                detail=f"{request.model_id} is gated: its owner grants access person by person.",
                hint="Ask for access on the model's page; the operator then sets HF_TOKEN of an account that has it.",
            )
        case RevisionNotFoundError():
            return _not_found(f"{request.model_id} has no revision {request.revision!r}.")
        case RepositoryNotFoundError():
            return _not_found(f"The Hub shows no model {request.model_id}; it does not exist, or it is private.")
        case OfflineModeIsEnabled():
            return _unreachable("The worker is told to stay offline (HF_HUB_OFFLINE).")
        case HfHubHTTPError():
            return _unreachable(f"The Hub answered with HTTP status {error.response.status_code}.")
        case httpx.HTTPError() | LocalEntryNotFoundError() | ConnectionError():
            return _unreachable("The Hub did not answer.")
    return as_error(error)


def _not_found(detail: str) -> Error:
    return Error(
        code="model_not_found",
        category="user",
        detail=detail,
        hint="Check model.id and model.revision on the Hub's page; a private model needs the operator's token.",
    )


def _unreachable(detail: str) -> Error:
    return Error(
        code="hub_unreachable",
        category="platform",
        detail=detail,
        hint="Submit the job again later, or put the model under QUANTRY_MODELS_DIR and use model.source 'local'.",
    )


if __name__ == "__main__":
    sys.exit(main())
