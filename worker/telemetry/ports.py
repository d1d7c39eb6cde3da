"""The telemetry of attempts for the operator: measurements and spans, each of which may be switched off.

The runner itself is offline and has no secrets. Its messages about stages become spans in the supervisor.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from jobs.job.lease import Claim
from jobs.observability.tracing import NoTracing, Span, Tracing
from worker.outcomes import Outcome
from worker.telemetry.measurements import AttemptEnded, Measure, MemoryKind, PeakMemory, StageEnded, discard

MEMORY_METRICS: Final[dict[str, MemoryKind]] = {"memory.cpu_peak_bytes": "cpu", "memory.cuda_peak_bytes": "cuda"}
"""Metrics of a runner that are for the operator: they are measured here, and not added to the job's events."""

_GOOD: Final = frozenset({Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.DRAINED})


@dataclass
class AttemptTelemetry:
    """The telemetry of one attempt: its span, the spans of its stages, and its measurements. Used by one thread."""

    measure: Measure
    tracing: Tracing
    span: Span
    began: float = field(default_factory=time.monotonic)
    _stages: dict[str, Span] = field(default_factory=dict)
    _peaks: dict[MemoryKind, float] = field(default_factory=dict)

    def stage_started(self, name: str) -> None:
        """Open the span of a stage."""
        self._stages[name] = self._stage_span(name)

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """End the span of a stage; a reused stage may never have begun."""
        span = self._stages.pop(name, None) or self._stage_span(name, seconds)
        span.set({"quantry.stage.reused": reused})
        span.end()
        self.measure(StageEnded(name, seconds, reused))

    def stage_failed(self, name: str) -> None:
        """End the span of the stage in which the attempt ends."""
        span = self._stages.pop(name, None)
        if span is not None:
            span.fail("attempt_ended")
            span.end()

    def memory(self, kind: MemoryKind, peak_bytes: float) -> None:
        """Note the runner's peak memory until now."""
        self._peaks[kind] = max(self._peaks.get(kind, 0.0), peak_bytes)

    def ended(self, outcome: Outcome) -> None:
        """Record the outcome of the attempt, which is stored by now."""
        self.span.set({"quantry.attempt.outcome": outcome.value})
        self.span.set({f"quantry.runner.{kind}_peak_bytes": round(peak) for kind, peak in self._peaks.items()})
        if outcome not in _GOOD:
            self.span.fail(outcome)
        self.measure(AttemptEnded(outcome, time.monotonic() - self.began))
        for kind, peak in self._peaks.items():
            self.measure(PeakMemory(kind, peak))

    def close(self) -> None:
        """End all spans that are still open."""
        for name in list(self._stages):
            self.stage_failed(name)
        self.span.end()

    def _stage_span(self, name: str, seconds_ago: float = 0.0) -> Span:
        return self.tracing.span(
            f"stage {name}",
            parent=self.span.traceparent,
            attributes={"quantry.stage.name": name},
            began_seconds_ago=seconds_ago,
        )


@dataclass(frozen=True)
class Telemetry:
    """The measurements and traces of one worker process; by default there are none."""

    measure: Measure = discard
    tracing: Tracing = field(default_factory=NoTracing)

    @contextmanager
    def attempt(self, claim: Claim) -> Iterator[AttemptTelemetry]:
        """Open the telemetry of one attempt: a span in the trace of the request that queued the job."""
        span = self.tracing.span(
            "job attempt",
            kind="consumer",
            parent=claim.traceparent,
            attributes={
                "quantry.job.id": claim.job_id,
                "quantry.job.attempt": claim.attempt,
                "quantry.job.fence": claim.fence,
                "quantry.request.id": claim.request_id or "",
            },
        )
        telemetry = AttemptTelemetry(self.measure, self.tracing, span)
        try:
            yield telemetry
        # SystemExit too: the span has to show why it ended.
        except BaseException as error:
            span.fail(type(error).__name__)
            raise
        finally:
            telemetry.close()
