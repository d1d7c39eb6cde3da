"""What a worker measures: one frozen type for each thing that can be measured.

Whoever measures calls a :data:`Measure` with one of them; what becomes of it is that function's business. Each call
returns at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jobs.job.lease import Swept

MemoryKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class JobClaimed:
    """A job was claimed, so many seconds after it could have been."""

    waited_seconds: float


@dataclass(frozen=True)
class AttemptEnded:
    """An attempt of a job is over. ``outcome`` is a :class:`worker.outcomes.Outcome`'s word."""

    outcome: str
    seconds: float


@dataclass(frozen=True)
class StageEnded:
    """A stage of an attempt is over. ``reused``: an earlier attempt's files were whole."""

    stage: str
    seconds: float
    reused: bool


@dataclass(frozen=True)
class PeakMemory:
    """The most bytes that one runner used, known when it is over."""

    kind: MemoryKind
    peak_bytes: float


@dataclass(frozen=True)
class HeartbeatMissed:
    """A heartbeat could not be written; it is tried again."""


@dataclass(frozen=True)
class ClaimLost:
    """A heartbeat found that the claim is somebody else's."""


@dataclass(frozen=True)
class SweepDone:
    """A sweep repaired this."""

    swept: Swept


@dataclass(frozen=True)
class NudgeFailed:
    """The broker did not take a nudge."""


Measurement = (
    JobClaimed | AttemptEnded | StageEnded | PeakMemory | HeartbeatMissed | ClaimLost | SweepDone | NudgeFailed
)
Measure = Callable[[Measurement], None]


def discard(_: Measurement) -> None:
    """The :data:`Measure` of a worker whose metrics are off."""
