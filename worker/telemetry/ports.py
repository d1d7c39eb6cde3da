"""What a worker tells of its attempts to whoever operates it: measurements and spans, each of them perhaps to nobody.

The runner itself stays offline and without secrets: what it says of its stages over the pipe becomes spans here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from jobs.job.lease import Claim, Swept
from jobs.observability.tracing import NoTracing, Span, Tracing
from worker.outcomes import Outcome

MemoryKind = Literal["cpu", "cuda"]

MEMORY_METRICS: Final[dict[str, MemoryKind]] = {"memory.cpu_peak_bytes": "cpu", "memory.cuda_peak_bytes": "cuda"}
"""Metrics of a runner that are the operator's: they go here, not into the job's events."""

_GOOD: Final = frozenset({Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.DRAINED})


class Meters(Protocol):
    """What is counted and timed. Every call returns at once."""

    def claimed(self, waited_seconds: float) -> None:
        """A job was claimed, so long after it could have been."""
        ...

    def attempt_ended(self, outcome: str, seconds: float) -> None:
        """An attempt of a job is over."""
        ...

    def stage_ended(self, stage: str, seconds: float, *, reused: bool) -> None:
        """A stage of an attempt is over; ``reused``: an earlier attempt's files were whole."""
        ...

    def peak_memory(self, kind: MemoryKind, peak_bytes: float) -> None:
        """The most that one runner used, told when it is over."""
        ...

    def beat_missed(self) -> None:
        """A heartbeat could not be written; it is tried again."""
        ...

    def claim_lost(self) -> None:
        """A heartbeat found that the claim is somebody else's."""
        ...

    def swept(self, swept: Swept) -> None:
        """A sweep repaired this."""
        ...

    def nudge_failed(self) -> None:
        """The broker did not take a nudge."""
        ...


class NoMeters:
    """Nobody asks."""

    def claimed(self, waited_seconds: float) -> None:
        """Nobody asks."""

    def attempt_ended(self, outcome: str, seconds: float) -> None:
        """Nobody asks."""

    def stage_ended(self, stage: str, seconds: float, *, reused: bool) -> None:
        """Nobody asks."""

    def peak_memory(self, kind: MemoryKind, peak_bytes: float) -> None:
        """Nobody asks."""

    def beat_missed(self) -> None:
        """Nobody asks."""

    def claim_lost(self) -> None:
        """Nobody asks."""

    def swept(self, swept: Swept) -> None:
        """Nobody asks."""

    def nudge_failed(self) -> None:
        """Nobody asks."""


@dataclass
class Watch:
    """Follows one attempt: its span, those of its stages, and its measurements. Used by one thread."""

    meters: Meters
    tracing: Tracing
    span: Span
    began: float = field(default_factory=time.monotonic)
    _stages: dict[str, Span] = field(default_factory=dict)
    _peaks: dict[MemoryKind, float] = field(default_factory=dict)

    def stage_started(self, name: str) -> None:
        """A stage begins."""
        self._stages[name] = self._stage_span(name)

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """A stage is over. One that was found whole may never have begun."""
        span = self._stages.pop(name, None) or self._stage_span(name, seconds)
        span.set({"quantry.stage.reused": reused})
        span.end()
        self.meters.stage_ended(name, seconds, reused=reused)

    def stage_failed(self, name: str) -> None:
        """The attempt ends inside this stage."""
        span = self._stages.pop(name, None)
        if span is not None:
            span.fail("attempt_ended")
            span.end()

    def memory(self, kind: MemoryKind, peak_bytes: float) -> None:
        """The most that the runner has used until now."""
        self._peaks[kind] = max(self._peaks.get(kind, 0.0), peak_bytes)

    def ended(self, outcome: Outcome) -> None:
        """The attempt is over and settled."""
        word = outcome.name.lower()
        self.span.set({"quantry.attempt.outcome": word})
        self.span.set({f"quantry.runner.{kind}_peak_bytes": round(peak) for kind, peak in self._peaks.items()})
        if outcome not in _GOOD:
            self.span.fail(word)
        self.meters.attempt_ended(word, time.monotonic() - self.began)
        for kind, peak in self._peaks.items():
            self.meters.peak_memory(kind, peak)

    def close(self) -> None:
        """End whatever span is still open."""
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
    """Where one worker process measures and traces to; by default nowhere."""

    meters: Meters = field(default_factory=NoMeters)
    tracing: Tracing = field(default_factory=NoTracing)

    @contextmanager
    def attempt(self, claim: Claim) -> Iterator[Watch]:
        """Follow one attempt: a span in the trace of the request that queued the job."""
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
        watch = Watch(self.meters, self.tracing, span)
        try:
            yield watch
        except BaseException as error:
            span.fail(type(error).__name__)
            raise
        finally:
            watch.close()

    @staticmethod
    def unwatched() -> Watch:
        """Of an attempt that nobody follows."""
        tracing = NoTracing()
        return Watch(NoMeters(), tracing, tracing.span("job attempt"))
