"""Putting a run's output into the artifact store: the last long step, and one that waits for a store that is away."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from jobs.artifacts import ArtifactStore, ManifestEntry
from jobs.kit.errors import JobProblem, StoreRefused, StoreUnavailable

_FIRST_WAIT_SECONDS: Final = 1.0
_LONGEST_WAIT_SECONDS: Final = 30.0

logger = structlog.get_logger(__name__)


def store_output(
    store: ArtifactStore, directory: Path, *, on_progress: Callable[[int], None], wait: Callable[[float], None]
) -> tuple[ManifestEntry, ...]:
    """Put ``directory``, again and again while the store does not answer: hours of work hang on it.

    ``on_progress`` is called often, with the bytes that are done. It and ``wait`` (seconds) raise what is to end the
    attempt; what has been stored by then stays, and a later attempt goes on with it.

    Raises:
        UnsafeArtifactError, OSError: the output is not fit to be published, or not readable.
        StoreRefused: the store answers, and will not take it.
    """
    seconds = _FIRST_WAIT_SECONDS
    while True:
        try:
            return store.put(directory, on_bytes=_Sum(on_progress))
        except StoreRefused:
            raise
        except StoreUnavailable:
            logger.warning("store_put_failed", next_try_seconds=seconds)
        wait(seconds)
        seconds = min(2 * seconds, _LONGEST_WAIT_SECONDS)


def store_refused() -> JobProblem:
    """The operator's store does not take what the service made."""
    return JobProblem(
        code="store_refused",
        category="platform",
        title="The artifact store refused the result",
        detail="The run is done, but the artifact store refuses to take its files.",
        hint="The operator must look at QUANTRY_ARTIFACTS_URL and the keys of the store; then submit the job again.",
    )


class _Sum:
    """From bytes since the last call to bytes in all."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self._on_progress = on_progress
        self._done = 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._on_progress(self._done)
