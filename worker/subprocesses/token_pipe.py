"""A Hub token on its way to the one subprocess that needs it: over an inherited pipe, never by argument, file or log.

The subprocess is told the pipe's number (``--token-fd N``), reads it once and closes it. Its environment holds no token
either: other processes of the same user can read ``/proc/<pid>/environ`` for as long as it runs.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TOKEN_OPTION: Final = "--token-fd"  # noqa: S105 — the option's name
MAX_TOKEN_BYTES: Final = 4096
"""A pipe takes this much without a reader, so that handing a token over never blocks."""


@contextmanager
def handed_over(token: str | None) -> Iterator[tuple[int, ...]]:
    """The descriptors to pass on (``pass_fds``) while the subprocess is started: a pipe that holds ``token``, or none.

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
            os.close(writer)  # the subprocess reads to the end of the pipe: nobody may hold it open
        yield (reader,)
    finally:
        os.close(reader)


def token_arguments(descriptors: tuple[int, ...]) -> list[str]:
    """What tells the subprocess where to read the token."""
    return [part for descriptor in descriptors for part in (TOKEN_OPTION, str(descriptor))]


def read_token(descriptor: int | None) -> str | None:
    """The token from an inherited pipe, which is closed then; None without one.

    Raises:
        OSError: the descriptor is not open.
    """
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read(MAX_TOKEN_BYTES).decode() or None


def operator_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The operator's own Hub token: ``HF_TOKEN``, or the content of the file that ``HF_TOKEN_PATH`` names.

    Raises:
        OSError: there is no such file, or it can not be read.
    """
    token = environment.get("HF_TOKEN", "").strip()
    if not token and environment.get("HF_TOKEN_PATH"):
        token = Path(environment["HF_TOKEN_PATH"]).expanduser().read_text().strip()
    return token or None
