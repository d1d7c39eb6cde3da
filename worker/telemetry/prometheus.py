"""A worker's metrics and their server, with prometheus_client. Only :mod:`worker.telemetry.metrics` imports this."""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from wsgiref.simple_server import WSGIServer

import psutil
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from jobs.job.lease import Swept
from quant_engine.interface.stages import STAGE_NAMES
from worker.telemetry.measurements import (
    AttemptEnded,
    ClaimLost,
    HeartbeatMissed,
    JobClaimed,
    Measurement,
    NudgeFailed,
    PeakMemory,
    StageEnded,
    SweepDone,
)

_OTHER: Final = "other"
_WAITS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 28_800)
_WORK: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
_BYTES: Final = tuple(float(1 << power) for power in range(28, 39))  # 256 MiB to 256 GiB
# The module's name on a process's command line shows its role.
_PROGRAMS: Final = re.compile(r"\bworker\.(runner|download|publishing|sweeper)\b")
_ROLES: Final = {"publishing": "publish"}  # the label keeps its value when the module gets another name

logger = structlog.get_logger(__name__)


class PrometheusMeasure:
    """The metrics of one process. No label takes an id, or another open set of values."""

    def __init__(self) -> None:
        registry = CollectorRegistry()  # only keeps the default registry empty: the server reads the files, not this
        self._wait = Histogram(
            "quantry_claim_wait_seconds",
            "From when a job could be taken until a worker took it.",
            buckets=_WAITS,
            registry=registry,
        )
        self._attempts = Counter("quantry_attempts", "Attempts of jobs that ended.", ("outcome",), registry=registry)
        self._attempt_seconds = Histogram(
            "quantry_attempt_seconds", "How long attempts took.", ("outcome",), buckets=_WORK, registry=registry
        )
        self._stage_seconds = Histogram(
            "quantry_stage_seconds",
            "How long stages took; reused ones were found whole.",
            ("stage", "reused"),
            buckets=_WORK,
            registry=registry,
        )
        self._peaks = Histogram(
            "quantry_runner_peak_memory_bytes",
            "The most that a runner used: resident (cpu), or allocated by torch (cuda).",
            ("device",),
            buckets=_BYTES,
            registry=registry,
        )
        self._beats_missed = Counter("quantry_heartbeats_missed", "Heartbeats that failed.", registry=registry)
        self._claims_lost = Counter("quantry_claims_lost", "Claims found to be somebody else's.", registry=registry)
        self._swept = Counter(
            "quantry_swept_jobs",
            "Jobs that sweeps repaired: dead processes, leases and deadlines.",
            ("outcome",),
            registry=registry,
        )
        self._swept_publications = Counter(
            "quantry_swept_publications", "Publications whose process died or whose lease ran out.", registry=registry
        )
        self._nudge_failures = Counter(
            "quantry_nudge_failures", "Nudges that the broker did not take; sweeps make them good.", registry=registry
        )

    def __call__(self, measurement: Measurement) -> None:
        """Count or time ``measurement``."""
        match measurement:
            case JobClaimed(waited_seconds):
                self._wait.observe(max(waited_seconds, 0.0))
            case AttemptEnded(outcome, seconds):
                self._attempts.labels(outcome).inc()
                self._attempt_seconds.labels(outcome).observe(seconds)
            case StageEnded(stage, seconds, reused):
                # A runner is not trusted: a name that it sends must not create a new time series.
                known = stage if stage in STAGE_NAMES else _OTHER
                self._stage_seconds.labels(known, str(reused).lower()).observe(seconds)
            case PeakMemory(kind, peak_bytes):
                self._peaks.labels(kind).observe(peak_bytes)
            case HeartbeatMissed():
                self._beats_missed.inc()
            case ClaimLost():
                self._claims_lost.inc()
            case SweepDone(swept):
                self._count_swept(swept)
            case NudgeFailed():
                self._nudge_failures.inc()

    def _count_swept(self, swept: Swept) -> None:
        for outcome, count in (("requeued", swept.requeued), ("failed", swept.failed), ("cancelled", swept.cancelled)):
            self._swept.labels(outcome).inc(count)
        self._swept_publications.inc(swept.publications)


class PrometheusServer:
    """Serves the counts of all processes of this worker, and their present use of resources."""

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self._directory = directory
        self._host = host
        self._port = port
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. A port in use is only logged, because jobs matter more than metrics."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
        ProcessCollector(registry=registry)
        registry.register(_Family())
        try:
            self._server, self._thread = start_http_server(self._port, addr=self._host, registry=registry)
        except OSError as error:
            logger.error("metrics_not_served", host=self._host, port=self._port, reason=str(error))

    def leave(self) -> None:
        """In a forked child: close the socket that the parent listens on."""
        if self._server is not None:
            self._server.socket.close()

    def stop(self) -> None:
        """Stop listening, and remove the counts."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        shutil.rmtree(self._directory, ignore_errors=True)


class _Family(Collector):
    """The resident memory of this process and of its descendants, by their role."""

    def collect(self) -> Iterator[Metric]:
        used: dict[str, float] = {}
        here = psutil.Process()
        for process in (here, *here.children(recursive=True)):
            try:
                role = "main" if process.pid == os.getpid() else _role(process)
                used[role] = used.get(role, 0.0) + process.memory_info().rss
            except psutil.Error:  # the process has ended meanwhile
                continue
        family = GaugeMetricFamily(
            "quantry_worker_resident_memory_bytes", "Resident memory of this worker's processes.", labels=("process",)
        )
        for role, resident in used.items():
            family.add_metric((role,), resident)
        yield family


def _role(process: psutil.Process) -> str:
    program = _PROGRAMS.search(" ".join(process.cmdline()))
    if program is not None:
        return _ROLES.get(program.group(1), program.group(1))
    return "pool" if process.ppid() == os.getpid() else _OTHER
