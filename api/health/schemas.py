"""The responses of liveness and readiness."""

from typing import Annotated, Literal

from pydantic import Field

from jobs.kit.views import View

CheckStatus = Literal["ok", "down", "not_migrated", "missing", "stalled", "not_configured"]


class Check(View):
    """The state of one thing that the service depends on."""

    status: CheckStatus
    """Its state."""
    detail: Annotated[str, Field(examples=["It answers."])]
    """The state in words, with a remedy where it does not work."""

    @property
    def passes(self) -> bool:
        """Whether this check does not prevent the service from working."""
        return self.status in ("ok", "not_configured")


class WorkersCheck(Check):
    """The state of workers and queue. Ages are in seconds; null where no job or worker has that age."""

    workers: Annotated[int | None, Field(examples=[1])] = None
    """The workers that reported recently."""
    queued: Annotated[int | None, Field(examples=[0])] = None
    """The queued jobs."""
    running: Annotated[int | None, Field(examples=[1])] = None
    """The running jobs."""
    oldest_queued_seconds: Annotated[float | None, Field(examples=[1.5])] = None
    """The age of the oldest queued job."""
    oldest_claimable_seconds: Annotated[float | None, Field(examples=[1.5])] = None
    """The same, without jobs that wait for their next attempt."""
    seconds_since_claim: Annotated[float | None, Field(examples=[12.0])] = None
    """The time since a worker last took a job."""


class Checks(View):
    """All checks."""

    database: Check
    """The database."""
    broker: Check
    """The broker, which carries nudges."""
    workers: WorkersCheck
    """The workers and the queue."""

    @property
    def failing(self) -> tuple[str, ...]:
        """The names of the checks that do not pass."""
        return tuple(name for name in type(self).model_fields if not getattr(self, name).passes)


class Ready(View):
    """The response when all checks pass."""

    status: Literal["ready"] = "ready"
    """The service works."""
    checks: Checks
    """All checks."""


class Alive(View):
    """The response of a running process."""

    status: Literal["ok"] = "ok"
    """The process answers."""
