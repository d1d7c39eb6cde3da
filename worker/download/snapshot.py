"""The files of one commit on this machine: transferred, verified, and put in place by one rename.

Until a snapshot is complete, its files are in ``<name>.partial`` beside it, where the next process continues.
"""

import fcntl
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import httpx
from huggingface_hub import HfApi, get_session
from huggingface_hub.utils._headers import build_hf_headers

from quant_engine.interface.stages import RESOLVE
from worker.download import problems
from worker.download.hub_retry import HubBackoff, retry_with_backoff
from worker.download.transfer import UNFINISHED, Abandoned, HubFile, fetch_file
from worker.subprocesses.messages import EventWriter, Log, StageAdvanced

HUB_SECONDS: Final = 15.0

_PROGRESS_SECONDS: Final = 1.0
_FILES_AT_ONCE: Final = 4
_DISK_RESERVE_BYTES: Final = 64 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit on this machine. ``commit`` is the Hub's, 40 hexadecimal digits."""

    directory: Path
    commit: str


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The requests of one download. Without a ``token`` they are anonymous; waits are reported as log lines."""

    token: str | None
    patience_seconds: float
    events: EventWriter

    def api(self) -> HfApi:
        """Return the client of the Hub, in which no request waits for ever."""
        # Not every method of the client takes a timeout, and its own default is none.
        get_session().timeout = httpx.Timeout(HUB_SECONDS)
        # False, because None would let the client look for a token on this machine.
        return HfApi(token=self.token or False)

    def ask(self, request: Callable[[], Answer]) -> Answer:
        """Repeat a request until the Hub answers it. Raises: httpx.HTTPError."""
        return retry_with_backoff(request, HubBackoff(self.patience_seconds, on_wait=self._say_why))

    def put_in_place(
        self,
        files: Sequence[HubFile],
        directory: Path,
        *,
        restricted: bool,
        begin: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Fetch the files into ``directory``, which exists when all of them are there and verified.

        Args:
            restricted: whether only some tokens may read them; the next job is asked for access of its own.
            begin: may put verified files into the directory where the files arrive.

        Raises:
            problems.Refused: the disk is too small.
            HfHubHTTPError, httpx.HTTPError, OSError: the Hub refused or did not answer, or the disk refused the data.
            DamagedFile: a file is not what the Hub's metadata says.
        """
        total = sum(file.size or 0 for file in files)
        partial = directory.with_name(f"{directory.name}.partial")
        problems.require_space(directory.parent, total - _bytes_in(partial) + _DISK_RESERVE_BYTES)
        partial.mkdir(exist_ok=True)
        begin(partial)
        with _reporting(partial, total, self.events):
            self.transfer(files, partial)
        if restricted:
            # Before the rename: a restricted snapshot must never be visible without its marker.
            _marker(directory).touch()
        partial.rename(directory)
        self.events.send(StageAdvanced(name=RESOLVE.name, done=total, total=total))

    def transfer(self, files: Sequence[HubFile], directory: Path) -> None:
        """Fetch and verify the files that ``directory`` lacks. Raises: what :meth:`put_in_place` raises of the Hub."""
        headers = build_hf_headers(token=self.token or False)
        stop = threading.Event()

        def take(file: HubFile) -> None:
            backoff = HubBackoff(self.patience_seconds, on_wait=self._say_why, sleep=stop.wait)
            fetch_file(file, directory, headers=headers, backoff=backoff, stop=stop)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            transfers = [pool.submit(take, file) for file in files]
            # The first failure stops the other transfers; what they have received stays for the next process.
            wait(transfers, return_when=FIRST_EXCEPTION)
            stop.set()
            pool.shutdown(cancel_futures=True)
        _raise_the_cause(transfers)
        shutil.rmtree(directory / UNFINISHED, ignore_errors=True)

    def _say_why(self, why: str, seconds: float) -> None:
        self.events.send(Log(message=f"Waiting {seconds:.1f} s: {why}."))


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a commit: the only name that becomes the name of a directory."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_open_to_all(directory: Path) -> bool:
    """Return whether the snapshot is here and needs no token; then no request to the Hub is needed."""
    return directory.is_dir() and not _marker(directory).exists()


@contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """Let two jobs that need the same snapshot wait for each other. The kernel releases the lock with the process."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f"{directory.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _marker(directory: Path) -> Path:
    """Return the marker file beside a snapshot, which exists if its repository was private or gated."""
    return directory.with_name(f"{directory.name}.restricted")


def _raise_the_cause(transfers: Sequence[Future[None]]) -> None:
    errors = [error for each in transfers if not each.cancelled() and (error := each.exception()) is not None]
    # Abandoned only follows from the failure of another file, so it is not the cause.
    causes = [error for error in errors if not isinstance(error, Abandoned)]
    if causes:
        raise causes[0]


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
