"""One file from the Hub to the disk: continued where it was cut, by this process or an earlier one, and verified.

huggingface_hub's own download drops what it has when it gives up, and a killed one leaves a file under a name that
nobody looks for again. Here an unfinished file keeps its name, ``.unfinished/<name>``, so whoever comes next asks for
the rest of it (``Range``). A commit's files never change, so what has arrived stays right; the hash has the last word.
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
    """A file of one commit, with what the Hub says of it: ``sha256`` of LFS files, git's ``blob_id`` of others."""

    name: str
    url: str
    size: int | None
    sha256: str | None
    blob_id: str | None


class DamagedFile(Exception):
    """What arrived is not what the Hub's metadata promises."""

    def __init__(self, file: HubFile) -> None:
        super().__init__(file.name)
        self.file = file


class Abandoned(Exception):
    """Another file of the same download has failed for good."""


def fetch_file(
    file: HubFile, directory: Path, *, headers: dict[str, str], backoff: HubBackoff, stop: threading.Event
) -> None:
    """Put the whole, verified file at ``directory/name``; one that is there already is as it should be.

    Raises:
        DamagedFile: even a fresh copy is not what the Hub promises.
        httpx.HTTPError: the Hub refuses, or backoff is exhausted; what has arrived stays for the next one.
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
            if not (_is_unsatisfiable(error) and had):
                backoff.wait(error)
                continue
        if _is_whole(file, unfinished):
            unfinished.rename(target)
            return
        unfinished.unlink()
        if began_anew or not had:
            raise DamagedFile(file)
        began_anew = True  # what an earlier connection left may be at fault
    raise Abandoned


def _receive(file: HubFile, unfinished: Path, had: int, headers: dict[str, str], stop: threading.Event) -> None:
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={had}-"} if had else {})}
    with get_session().stream("GET", file.url, headers=asked, timeout=_SECONDS_WITHOUT_A_BYTE) as response:
        hf_raise_for_status(response)
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {had}-")
        with unfinished.open("ab" if continued else "wb") as out:
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise Abandoned
                out.write(chunk)
                if file.size is not None and out.tell() > file.size:
                    return  # more than was promised, and than the disk was asked for


def _usable_bytes(file: HubFile, unfinished: Path) -> int:
    """How much of the file is there; a rest that can not be of it, or whose end nobody knows, is removed."""
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
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while block := content.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
