"""Downloads of a job's files: resumed after an interruption, checked by digest, renamed when complete."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx

from quantry.errors import QuantryError, error_from_response
from quantry.results import Artifact
from quantry.transport import Transport, backoff_seconds, repeat_after_seconds

OnBytes = Callable[[Artifact, int], None]
"""A function that is called with an artifact and the number of its bytes that have arrived."""


def download_artifact(transport: Transport, artifact: Artifact, directory: Path, on_bytes: OnBytes) -> Path:
    """Download ``artifact`` to its relative path under ``directory``, unless an intact file is there already.

    Raises:
        QuantryError: ``unsafe_path``, ``digest_mismatch``, ``connection_lost``, or the service's problem.
        OSError: the disk refuses.
    """
    target = safe_target(directory, artifact.path)
    if target.is_file() and target.stat().st_size == artifact.bytes and sha256_of(target) == artifact.sha256:
        on_bytes(artifact, artifact.bytes)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # The digest is in the name, so that a partial file of another version is never continued.
    part = target.with_name(f".{target.name}.{artifact.sha256[:16]}.part")
    _fetch(transport, artifact, part, on_bytes)
    if sha256_of(part) != artifact.sha256:
        part.unlink()
        _fetch(transport, artifact, part, on_bytes)
    if sha256_of(part) != artifact.sha256:
        part.unlink()
        raise QuantryError(
            "digest_mismatch",
            f"{artifact.path} arrived twice with another sha-256 than the manifest's.",
            hint="Something between here and the service changes the bytes; try without a proxy.",
        )
    publish(part, target)
    return target


def download_archive(transport: Transport, path: str, target: Path) -> Path:
    """Download one streamed answer to ``target``, which appears only when it is complete.

    Raises:
        QuantryError: ``connection_lost``, or the service's problem.
        OSError: the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with transport.stream(path) as response, part.open("wb") as file:
            if response.is_error:
                raise error_from_response(response)
            for chunk in response.iter_bytes():
                file.write(chunk)
    except httpx.TransportError as error:
        part.unlink(missing_ok=True)
        raise _lost(target.name, error) from error
    publish(part, target)
    return target


def safe_target(directory: Path, path: str) -> Path:
    """Return the path of an artifact under ``directory``.

    Raises:
        QuantryError: ``unsafe_path``, when it would leave the directory.
    """
    parts = PurePosixPath(path).parts
    # The service is not trusted with the choice of paths on this machine.
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts:
        raise QuantryError("unsafe_path", f"The service names a file outside the directory: {path!r}.")
    return directory.joinpath(*parts)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(part: Path, target: Path) -> None:
    """Write a complete file to the disk for certain, then rename it to its final name."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)


def _fetch(transport: Transport, artifact: Artifact, part: Path, on_bytes: OnBytes) -> None:
    """Download into ``part`` until it has the artifact's size; continue after interruptions."""
    failures = 0
    while (before := _size(part)) != artifact.bytes or not part.exists():
        try:
            delay = _transfer(transport, artifact, part, on_bytes, failures)
        except httpx.TransportError as error:
            # Only attempts that brought no bytes count, so that a slow, broken line still completes.
            failures = 0 if _size(part) > before else failures + 1
            if failures > transport.retries:
                raise _lost(artifact.path, error) from error
            delay = backoff_seconds(failures)
        else:
            failures += 1
        if delay:
            transport.sleep(delay)


def _transfer(transport: Transport, artifact: Artifact, part: Path, on_bytes: OnBytes, attempt: int) -> float:
    """Append the bytes of one request. Returns the seconds to wait before the next request; 0 after a success."""
    have = _size(part)
    # More than the file has: these bytes are not a beginning of it.
    if have > artifact.bytes:
        part.unlink()
        have = 0
    # Without compression, so that offsets are those of the file itself.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with transport.stream(artifact.href, headers=headers) as response:
        if response.is_error:
            return _after_refusal(transport, response, part, attempt)
        # The answer 200 to a range request contains the whole file, so the file is written from its start.
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            # Written as they arrive, so that a broken connection loses no bytes.
            for chunk in response.iter_bytes():
                file.write(chunk)
                on_bytes(artifact, file.tell())
    if _size(part) != artifact.bytes and attempt >= transport.retries:
        raise QuantryError(
            "bad_response", f"{artifact.path} has {_size(part)} bytes, not the {artifact.bytes} of the manifest."
        )
    return 0.0


def _after_refusal(transport: Transport, response: httpx.Response, part: Path, attempt: int) -> float:
    # The partial file is not a beginning of the service's file: start again without it.
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and attempt < transport.retries:
        part.unlink(missing_ok=True)
        return 0.0
    delay = repeat_after_seconds(response, attempt)
    if delay is None or attempt >= transport.retries:
        raise error_from_response(response)
    return delay


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _lost(name: str, error: Exception) -> QuantryError:
    return QuantryError(
        "connection_lost",
        f"The connection broke while {name} was arriving ({error or type(error).__name__}).",
        hint="Run the same command again: it continues where it stopped.",
    )
