"""How attempts of jobs and of publications end. The values appear in logs, metrics and traces."""

from enum import StrEnum


class Outcome(StrEnum):
    """How an attempt ends."""

    SUCCEEDED = "succeeded"  # the result is published
    FAILED = "failed"  # a problem ended the job or publication for good
    CANCELLED = "cancelled"  # stopped by request; the job is over
    STARVED = "starved"  # ran out of memory for the first time; another attempt resumes with smaller batches
    POSTPONED = "postponed"  # the Hub or the store refused for now; another attempt follows later
    CRASHED = "crashed"  # the subprocess died; another attempt resumes, while there are any left
    DRAINED = "drained"  # this worker is being stopped; another one resumes, and the attempt does not count
    LOST = "lost"  # the claim is another worker's, or that is not known; nothing may be written
