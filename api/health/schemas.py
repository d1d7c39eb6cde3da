"""The responses of liveness and readiness."""

from typing import Literal

from jobs.kit.views import View

CheckStatus = Literal["ok", "down", "not_migrated", "missing", "stalled", "not_configured"]


class Check(View):
    """The state of one thing that the service depends on."""

    status: CheckStatus
    detail: str

    @property
    def passes(self) -> bool:
        """Whether this check does not prevent the service from working."""
        return self.status in ("ok", "not_configured")


class WorkersCheck(Check):
    """The state of workers and queue. Ages are in seconds; null where no job or worker has that age."""

    workers: int | None = None
    queued: int | None = None
    running: int | None = None
    oldest_queued_seconds: float | None = None
    oldest_claimable_seconds: float | None = None
    seconds_since_claim: float | None = None


class Checks(View):
    """All checks."""

    database: Check
    broker: Check
    workers: WorkersCheck

    @property
    def failing(self) -> tuple[str, ...]:
        """The names of the checks that do not pass."""
        return tuple(name for name in type(self).model_fields if not getattr(self, name).passes)


class Ready(View):
    """The response when all checks pass."""

    status: Literal["ready"] = "ready"
    checks: Checks


class Alive(View):
    """The response of a running process."""

    status: Literal["ok"] = "ok"
