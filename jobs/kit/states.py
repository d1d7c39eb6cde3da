"""What a job can be, and the one table of how it may change."""

from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """The public states. Clients never see another value; phases of a run live in ``stages``."""

    QUEUED = "queued"  # accepted and durable; waits for a worker (again, after a crash)
    RUNNING = "running"  # a worker holds the lease
    CANCELLING = "cancelling"  # a cancel is durable; the worker has yet to stop the runner
    SUCCEEDED = "succeeded"  # the manifest is published
    FAILED = "failed"  # ended by a problem, which ``error`` tells
    CANCELLED = "cancelled"  # ended by request; nothing was published

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over: it has an end, and only a retry that somebody asks for takes it up again."""
        return self in TERMINAL


_S = JobStatus

TRANSITIONS: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLING, _S.QUEUED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset({_S.QUEUED}),  # by a retry
    _S.CANCELLED: frozenset({_S.QUEUED}),  # by a retry
}

HELD: Final = frozenset({_S.RUNNING, _S.CANCELLING})
"""States in which a worker holds the lease, so that its fenced writes may still land."""

RETRIABLE: Final = frozenset({_S.FAILED, _S.CANCELLED})
"""States that a retry leaves. Nothing leaves ``succeeded``."""

TERMINAL: Final = frozenset({_S.SUCCEEDED}) | RETRIABLE


def sources(target: JobStatus) -> frozenset[JobStatus]:
    """The states from which ``target`` may be reached: what an UPDATE that sets it has in its WHERE."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)


class StageStatus(StrEnum):
    """One phase of a run."""

    RUNNING = "running"  # started, not finished
    SUCCEEDED = "succeeded"  # finished in this attempt
    REUSED = "reused"  # finished by an earlier attempt; its files were taken over
    FAILED = "failed"  # the run ended inside it


class PublicationStatus(StrEnum):
    """A push of one job's checkpoint to the Hub."""

    QUEUED = "queued"  # waits for a worker (again, after a crash or a Hub that did not answer)
    RUNNING = "running"  # a worker holds the lease
    SUCCEEDED = "succeeded"  # the commit is on the Hub
    FAILED = "failed"  # ended by a problem, which ``error`` tells; a retry queues it again

    @property
    def is_terminal(self) -> bool:
        """Whether only a retry moves it."""
        return self in {PublicationStatus.SUCCEEDED, PublicationStatus.FAILED}


class DeliveryStatus(StrEnum):
    """One message to one webhook endpoint."""

    PENDING = "pending"  # waits for its first or next attempt, or is being sent
    SUCCEEDED = "succeeded"  # the receiver answered with a 2xx status
    FAILED = "failed"  # given up; ``last_error`` tells why, and a redelivery begins anew
