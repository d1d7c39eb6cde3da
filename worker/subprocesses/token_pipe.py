"""Passing a Hub token to the one subprocess that needs it: over an inherited pipe, never by argument, file or log.

The subprocess gets the pipe's number (``--token-fd N``), reads the pipe once and closes it. Its environment holds no
token either, because other processes of the same user can read ``/proc/<pid>/environ`` while it runs.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TOKEN_OPTION: Final = "--token-fd"  # noqa: S105 — the option's name
MAX_TOKEN_BYTES: Final = 4096
"""A pipe holds this many bytes without a reader, so writing a token never blocks."""


@contextmanager
def handed_over(token: str | None) -> Iterator[tuple[int, ...]]:
    """Yield the descriptors for ``pass_fds`` while the subprocess starts: a pipe that holds ``token``, or none.

    Raises:
        ValueError: the token is empty or too long to be one.
    """
    if token is None:
        yield ()
        return
    secret = token.encode()
    if not 0 < len(secret) <= MAX_TOKEN_BYTES:
        raise ValueError(f"A token has 1 to {MAX_TOKEN_BYTES} bytes, this one has {len(secret)}.")
    reader, writer = os.pipe()
    try:
        try:
            os.write(writer, secret)
        finally:
            os.close(writer)  # the subprocess reads to the end, which comes only when all writers are closed
        yield (reader,)
    finally:
        os.close(reader)


def token_arguments(descriptors: tuple[int, ...]) -> list[str]:
    """Return the arguments that name the token's pipe to the subprocess."""
    return [part for descriptor in descriptors for part in (TOKEN_OPTION, str(descriptor))]


def read_token(descriptor: int | None) -> str | None:
    """Read the token from an inherited pipe and close it; return None without one.

    Raises:
        OSError: the descriptor is not open.
    """
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read(MAX_TOKEN_BYTES).decode() or None


def operator_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the operator's own Hub token: ``HF_TOKEN``, or the content of the file that ``HF_TOKEN_PATH`` names.

    Raises:
        OSError: there is no such file, or it can not be read.
    """
    token = environment.get("HF_TOKEN", "").strip()
    if not token and environment.get("HF_TOKEN_PATH"):
        token = Path(environment["HF_TOKEN_PATH"]).expanduser().read_text().strip()
    return token or None
