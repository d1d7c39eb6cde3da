"""The states of a job, and the one table of allowed changes."""

from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """The public states. Clients never see another value; the stages of a run are in ``stages``."""

    QUEUED = "queued"  # accepted and stored; waits for a worker (again, after a crash)
    RUNNING = "running"  # a worker holds the lease
    CANCELLING = "cancelling"  # a cancel is stored; the worker has not stopped the runner yet
    SUCCEEDED = "succeeded"  # the manifest is published
    FAILED = "failed"  # ended by a problem, which is in ``error``
    CANCELLED = "cancelled"  # ended by a request; nothing was published

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over: only a requested retry changes it."""
        return self in TERMINAL


_S = JobStatus

TRANSITIONS: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLING, _S.QUEUED}),  # queued: after a crash or a drain
    _S.CANCELLING: frozenset({_S.CANCELLED}),  # a stored cancel is never taken back
    _S.SUCCEEDED: frozenset(),  # final: others may have downloaded the files by their manifest
    _S.FAILED: frozenset({_S.QUEUED}),  # by a retry
    _S.CANCELLED: frozenset({_S.QUEUED}),  # by a retry
}

HELD: Final = frozenset({_S.RUNNING, _S.CANCELLING})
"""States in which a worker holds the lease, so that its fenced writes still count."""

RETRIABLE: Final = frozenset({_S.FAILED, _S.CANCELLED})
"""States from which a retry is possible. Nothing leaves ``succeeded``."""

TERMINAL: Final = frozenset({_S.SUCCEEDED}) | RETRIABLE


def sources(target: JobStatus) -> frozenset[JobStatus]:
    """Return the states from which ``target`` may be reached: the UPDATE that sets it has them in its WHERE."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)


class StageStatus(StrEnum):
    """The state of one stage of a run."""

    RUNNING = "running"  # started, not finished
    SUCCEEDED = "succeeded"  # finished in this attempt
    REUSED = "reused"  # finished by an earlier attempt, whose files are used
    FAILED = "failed"  # the run ended in this stage


class PublicationStatus(StrEnum):
    """The states of a push of a job's checkpoint to the Hub."""

    QUEUED = "queued"  # waits for a worker (again, after a crash or a Hub that did not answer)
    RUNNING = "running"  # a worker holds the lease
    SUCCEEDED = "succeeded"  # the commit is on the Hub
    FAILED = "failed"  # ended by a problem, which is in ``error``; a retry queues it again

    @property
    def is_terminal(self) -> bool:
        """Whether it is over: only a retry can change it."""
        return self in {PublicationStatus.SUCCEEDED, PublicationStatus.FAILED}


class DeliveryStatus(StrEnum):
    """The states of one message to one webhook endpoint."""

    PENDING = "pending"  # waits for its first or next attempt, or is being sent
    SUCCEEDED = "succeeded"  # the receiver answered with a 2xx status
    FAILED = "failed"  # given up; ``last_error`` has the reason, and a redelivery starts again
