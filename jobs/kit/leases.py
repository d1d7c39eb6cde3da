"""The types that claims on jobs and claims on publications share."""

from dataclasses import dataclass

ClaimKey = tuple[str, int]
"""A job's or publication's id, and the fence of the claim."""


@dataclass(frozen=True)
class HeartbeatResult:
    """The result of a heartbeat. ``ok`` false: the claim is lost; kill the runner and write nothing more.

    ``run_seconds_left``: the rest of the job's time, where it is limited; 0 or less once it is used up.
    """

    ok: bool
    cancel_requested: bool = False
    run_seconds_left: float | None = None
