"""The reporter: it turns the messages of a subprocess into fenced writes, about one of each kind a second."""

import time
from collections.abc import Callable
from typing import Any, Final

from jobs.job.lease import Claim, JobLeases, ProgressReport
from jobs.kit.states import StageStatus
from worker.attempts.progress import ProgressTracker
from worker.claims.heartbeat import ClaimHeartbeat
from worker.subprocesses.messages import (
    LayerCompleted,
    Log,
    Message,
    Metric,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from worker.telemetry.ports import MEMORY_METRICS, AttemptTelemetry

_INTERVAL_SECONDS: Final = 1.0
_LOG_LINES_AN_INTERVAL: Final = 20


class Reporter:
    """Reports one attempt. :meth:`handle` takes each message as it arrives; :meth:`flush` writes what is due."""

    def __init__(
        self,
        leases: JobLeases,
        claim: Claim,
        heartbeat: ClaimHeartbeat,
        tracker: ProgressTracker,
        *,
        telemetry: AttemptTelemetry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._claim = claim
        self._heartbeat = heartbeat
        self._tracker = tracker
        self._telemetry = telemetry
        self._clock = clock
        self._flushed_at = float("-inf")
        self._stage: str | None = None
        self._stage_began = 0.0
        self._stale = False
        self._rows: list[dict[str, Any]] = []
        self._metrics: dict[str, float | None] = {}
        self._logs: list[str] = []
        self._logs_dropped = 0

    def handle(self, message: Message) -> None:
        """Take one message. Results and errors are not handled here, but by the loop that follows the subprocess."""
        match message:
            case StageStarted(name=name):
                self._start(name, message)
            case StageAdvanced(name=name, done=done, total=total):
                self._tracker.advance(name, done, total)
                self._stale = True
            case StageFinished(name=name, seconds=seconds, reused=reused):
                self._tracker.finish(name, reused=reused)
                self._telemetry.stage_ended(name, seconds, reused=reused)
                self._end(name, StageStatus.REUSED if reused else StageStatus.SUCCEEDED, seconds)
            case LayerCompleted(row=row):
                self._rows.append(row)
            case Metric(name=name, value=value) if name in MEMORY_METRICS:
                self._telemetry.memory(MEMORY_METRICS[name], value or 0.0)
            case Metric(name=name, value=value):
                self._metrics[name] = value
            case Log(message=line):
                self._log(line)
            case _:
                pass

    def fail_stage(self) -> None:
        """Record that the run ended inside the running stage, if there is one."""
        if self._stage is not None:
            self._telemetry.stage_failed(self._stage)
            self._end(self._stage, StageStatus.FAILED, self._clock() - self._stage_began)
        self.flush(force=True)

    def flush(self, *, force: bool = False) -> None:
        """Post the collected writes if the interval is over, or at once with ``force``."""
        now = self._clock()
        if not force and now - self._flushed_at < _INTERVAL_SECONDS:
            return
        self._flushed_at = now
        self._flush_rows()
        self._flush_events()
        if self._stale:
            self._flush_progress()

    def _start(self, name: str, message: StageStarted) -> None:
        self._tracker.start(name, message.unit, message.total)
        self._telemetry.stage_started(name)
        self._stage, self._stage_began, self._stale = name, self._clock(), True
        self._heartbeat.post(lambda: self._leases.record_stage(self._claim, name, StageStatus.RUNNING))

    def _end(self, name: str, status: StageStatus, seconds: float) -> None:
        self._flush_rows()
        self._stage, self._stale = None, True
        self._heartbeat.post(lambda: self._leases.record_stage(self._claim, name, status, round(seconds, 3)))

    def _log(self, line: str) -> None:
        # A runner that logs in a loop must not fill the database.
        if len(self._logs) < _LOG_LINES_AN_INTERVAL:
            self._logs.append(line)
        else:
            self._logs_dropped += 1

    def _flush_rows(self) -> None:
        if self._rows:
            # The heartbeat's thread calls the lambda later, so it must hold a list that no longer changes.
            rows, self._rows = self._rows, []
            self._heartbeat.post(lambda: self._leases.record_layers(self._claim, rows))

    def _flush_events(self) -> None:
        events: list[tuple[str, dict[str, Any]]] = [
            ("metric", {"name": name, "value": value}) for name, value in self._metrics.items()
        ]
        if self._logs_dropped:
            self._logs.append(f"… {self._logs_dropped} more lines are left out")
        events += [("log", {"message": line}) for line in self._logs]
        self._metrics, self._logs, self._logs_dropped = {}, [], 0
        for kind, data in events:
            self._post_event(kind, data)

    def _post_event(self, kind: str, data: dict[str, Any]) -> None:
        self._heartbeat.post(lambda: self._leases.append_event(self._claim, kind, data))

    def _flush_progress(self) -> None:
        reading = self._tracker.snapshot()
        if reading.stage is None:
            return  # between two stages; the next one reports at once
        self._stale = False
        progress = ProgressReport(
            fraction=round(reading.fraction, 4),
            stage=reading.stage,
            unit=reading.unit,
            done=reading.done,
            total=reading.total,
            eta_p50=_seconds(reading.eta_p50),
            eta_p90=_seconds(reading.eta_p90),
        )
        self._heartbeat.post(lambda: self._leases.record_progress(self._claim, progress))


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
