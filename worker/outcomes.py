"""How attempts end, of jobs and of publications."""

from enum import Enum, auto


class Outcome(Enum):
    """How an attempt ends."""

    SUCCEEDED = auto()  # published
    FAILED = auto()  # ended by a problem; the job is over
    CANCELLED = auto()  # stopped by request; the job is over
    STARVED = auto()  # ran out of memory for the first time; another attempt resumes, and runs with less
    CRASHED = auto()  # the subprocess died; another attempt resumes, while there are any left
    DRAINED = auto()  # this worker is being stopped; another one resumes, and the attempt does not count
    LOST = auto()  # the claim went to someone else, or we can not know; nothing may be written
