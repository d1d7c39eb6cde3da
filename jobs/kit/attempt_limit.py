"""Whether a job or a publication gets another attempt after one that failed."""

from typing import Protocol


class CountedAttempts(Protocol):
    """A row or a claim that counts attempts. A user's retry raises ``max_attempts``, so ``attempt`` never restarts."""

    @property
    def attempt(self) -> int:
        """The number of the present attempt, from 1."""
        ...

    @property
    def max_attempts(self) -> int:
        """The number of the last attempt that is allowed."""
        ...


def is_last_attempt(counted: CountedAttempts) -> bool:
    """Return whether no attempt may follow: after a crash the job ends as ``crash_loop``, else it is queued again."""
    return counted.attempt >= counted.max_attempts
