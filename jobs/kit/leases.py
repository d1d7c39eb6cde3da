"""What claims on jobs and on publications have in common."""

from dataclasses import dataclass

ClaimKey = tuple[str, int]
"""A job's or publication's id, and the fence of the claim."""


@dataclass(frozen=True)
class HeartbeatResult:
    """What a heartbeat learnt. ``ok`` false: the claim is lost, kill the runner and write nothing more.

    ``run_seconds_left``: of the job's time, where it is limited; 0 or less once it is used up.
    """

    ok: bool
    cancel_requested: bool = False
    run_seconds_left: float | None = None
