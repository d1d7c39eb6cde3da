"""Storing a run's output in the artifact store. This last long step waits while the store does not answer."""

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
    """Store the files of ``directory``; try again for as long as the store does not answer.

    ``on_progress`` is called often, with the bytes that are done. It and ``wait`` (seconds) raise an exception to end
    the attempt. Files that are stored by then stay, and a later attempt does not send them again.

    Raises:
        UnsafeArtifactError, OSError: the output may not be published, or can not be read.
        StoreRefused: the store answers, and refuses the files.
    """
    seconds = _FIRST_WAIT_SECONDS
    while True:
        try:
            return store.put(directory, on_bytes=_Sum(on_progress))
        except StoreRefused:
            raise
        # Hours of computing may be in these files, so an outage of the store does not end the attempt.
        except StoreUnavailable:
            logger.warning("store_put_failed", next_try_seconds=seconds)
        wait(seconds)
        # Doubled, so that a store that is down is not asked all the time.
        seconds = min(2 * seconds, _LONGEST_WAIT_SECONDS)


def store_refused() -> JobProblem:
    """Return the problem of a job whose files the operator's store refuses."""
    return JobProblem(
        code="store_refused",
        category="platform",
        title="The artifact store refused the result",
        detail="The run is done, but the artifact store refuses to take its files.",
        hint="The operator must look at QUANTRY_ARTIFACTS_URL and the keys of the store; then submit the job again.",
    )


class _Sum:
    """Adds up the bytes of all calls, and reports the sum."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self._on_progress = on_progress
        self._done = 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._on_progress(self._done)
