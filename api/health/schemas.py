"""Liveness and readiness."""

from typing import Literal

from jobs.kit.views import View

CheckStatus = Literal["ok", "down", "not_migrated", "missing", "stalled", "not_configured"]


class Check(View):
    """One thing the service depends on."""

    status: CheckStatus
    detail: str

    @property
    def passes(self) -> bool:
        """Whether the service can do its work as far as this goes."""
        return self.status in ("ok", "not_configured")


class WorkersCheck(Check):
    """Ages in seconds; null where there is nothing to be old."""

    workers: int | None = None
    queued: int | None = None
    running: int | None = None
    oldest_queued_seconds: float | None = None
    oldest_claimable_seconds: float | None = None
    seconds_since_claim: float | None = None


class Checks(View):
    """All of them."""

    database: Check
    broker: Check
    workers: WorkersCheck

    @property
    def failing(self) -> tuple[str, ...]:
        """The names of those that do not pass."""
        return tuple(name for name in type(self).model_fields if not getattr(self, name).passes)


class Ready(View):
    """The answer when everything passes."""

    status: Literal["ready"] = "ready"
    checks: Checks


class Alive(View):
    """The answer of a process that runs."""

    status: Literal["ok"] = "ok"
