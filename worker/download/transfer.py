"""The transfer of one file from the Hub to the disk: it is continued after an interruption, and verified.

huggingface_hub's own download deletes its partial file when it gives up, and a killed one leaves a file that is never
used again. Here an unfinished file always has the name ``.unfinished/<name>``, so a later request, also of another
process, asks only for the rest of it (``Range``). The files of a commit never change, so bytes that have arrived stay
valid. The hash of the whole file decides at the end.
"""

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import httpx
from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from worker.download.hub_retry import HubBackoff

UNFINISHED: Final = ".unfinished"

_SECONDS_WITHOUT_A_BYTE: Final = 15.0
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of one commit, with the Hub's metadata: ``sha256`` of LFS files, git's ``blob_id`` of others."""

    name: str
    url: str
    size: int | None
    sha256: str | None
    blob_id: str | None


class DamagedFile(Exception):
    """The received file does not match the Hub's metadata."""

    def __init__(self, file: HubFile) -> None:
        super().__init__(file.name)
        self.file = file


class Abandoned(Exception):
    """Another file of the same download has failed for good."""


def fetch_file(
    file: HubFile, directory: Path, *, headers: dict[str, str], backoff: HubBackoff, stop: threading.Event
) -> None:
    """Put the complete, verified file at ``directory/name``; a file that is there already was verified before.

    Raises:
        DamagedFile: a fresh copy does not match the Hub's metadata either.
        httpx.HTTPError: the Hub refuses, or the backoff is used up; the received bytes stay for the next process.
        Abandoned: ``stop`` was set.
    """
    target, unfinished = directory / file.name, directory / UNFINISHED / file.name
    if target.is_file():
        return
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    began_anew = False
    while not stop.is_set():
        had = _usable_bytes(file, unfinished)
        try:
            if had != file.size or not unfinished.exists():
                _receive(file, unfinished, had, headers, stop)
        except httpx.HTTPError as error:
            if _bytes(unfinished) > had:
                backoff.progressed()
            # Status 416: there is nothing to fetch after these bytes, so the file is checked as it is.
            if not (_is_unsatisfiable(error) and had):
                backoff.wait(error)
                continue
        if _is_whole(file, unfinished):
            unfinished.rename(target)
            return
        unfinished.unlink()
        if began_anew or not had:
            raise DamagedFile(file)
        began_anew = True  # the bytes of an earlier connection may be wrong, so fetch the file once more from its start
    raise Abandoned


def _receive(file: HubFile, unfinished: Path, had: int, headers: dict[str, str], stop: threading.Event) -> None:
    # Without compression, so that offsets and sizes are those of the file itself.
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={had}-"} if had else {})}
    with get_session().stream("GET", file.url, headers=asked, timeout=_SECONDS_WITHOUT_A_BYTE) as response:
        hf_raise_for_status(response)
        # A server may ignore Range and send the whole file; then the file is written from its start.
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {had}-")
        with unfinished.open("ab" if continued else "wb") as out:
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise Abandoned
                out.write(chunk)
                if file.size is not None and out.tell() > file.size:
                    return  # more than the metadata says, and more than the disk was checked for


def _usable_bytes(file: HubFile, unfinished: Path) -> int:
    """Return how many bytes of the file are here; remove a part that is too long, or of a file of unknown size."""
    have = _bytes(unfinished)
    if have and (file.size is None or have > file.size):
        unfinished.unlink()
        return 0
    return have


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_unsatisfiable(error: httpx.HTTPError) -> bool:
    return (
        isinstance(error, HfHubHTTPError) and error.response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
    )


def _is_whole(file: HubFile, path: Path) -> bool:
    with path.open("rb") as content:
        size = os.fstat(content.fileno()).st_size
        if file.size is not None and size != file.size:
            return False
        if file.sha256 is not None:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        return file.blob_id is None or _git_blob_id(content, size) == file.blob_id


def _git_blob_id(content: BinaryIO, size: int) -> str:
    # git's own id of a file's content; not used for security.
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while block := content.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
