"""The measurements of a worker: one frozen type for each kind.

Code that measures something calls a :data:`Measure` with a measurement. That function decides what to do with it, and
returns at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jobs.job.lease import Swept

MemoryKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class JobClaimed:
    """A job was claimed, ``waited_seconds`` after it could have been claimed."""

    waited_seconds: float


@dataclass(frozen=True)
class AttemptEnded:
    """An attempt of a job is over. ``outcome`` is the value of a :class:`worker.outcomes.Outcome`."""

    outcome: str
    seconds: float


@dataclass(frozen=True)
class StageEnded:
    """A stage of an attempt is over. ``reused``: an earlier attempt's files were complete."""

    stage: str
    seconds: float
    reused: bool


@dataclass(frozen=True)
class PeakMemory:
    """The peak memory of one runner in bytes, known when it is over."""

    kind: MemoryKind
    peak_bytes: float


@dataclass(frozen=True)
class HeartbeatMissed:
    """A heartbeat failed; it is tried again."""


@dataclass(frozen=True)
class ClaimLost:
    """A heartbeat found that the claim is not valid any more."""


@dataclass(frozen=True)
class SweepDone:
    """A sweep is done; ``swept`` counts what it repaired."""

    swept: Swept


@dataclass(frozen=True)
class NudgeFailed:
    """The broker did not accept a nudge."""


Measurement = (
    JobClaimed | AttemptEnded | StageEnded | PeakMemory | HeartbeatMissed | ClaimLost | SweepDone | NudgeFailed
)
Measure = Callable[[Measurement], None]


def discard(_: Measurement) -> None:
    """Do nothing: the :data:`Measure` of a worker whose metrics are off."""
