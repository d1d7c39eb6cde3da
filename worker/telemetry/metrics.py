"""What Prometheus scrapes of a worker: one address for all of its processes.

The processes of a worker (Celery's main process, its pool, the sweeper) count in memory-mapped files of their own, in a
directory that the main process makes and serves: prometheus_client's multiprocess mode. What a process counted stays
when it dies. The library chooses its storage as it is imported, by an environment variable: so it is imported here
late, and only where metrics are served.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil
import structlog

from jobs.settings import Settings
from worker.telemetry.measurements import Measure, discard

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX: Final = "quantry-worker-metrics-"

logger = structlog.get_logger(__name__)


class MetricsServer(Protocol):
    """Of the main process."""

    def start(self) -> None:
        """Listen. A port that is taken is logged: jobs matter more than metrics."""
        ...

    def leave(self) -> None:
        """In a forked child: let go of the socket that the parent listens on."""
        ...

    def stop(self) -> None:
        """Listen no more, and forget what was counted."""
        ...


@dataclass(frozen=True)
class Metrics:
    """Of the main process: what its processes measure with, and what serves that; None where metrics are off."""

    measure: Measure = discard
    server: MetricsServer | None = None


def open_metrics(settings: Settings) -> Metrics:
    """For the main process, before it forks."""
    port = settings.worker_metrics_port
    if port is None:
        return Metrics()
    _remove_abandoned()
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    os.environ[_VARIABLE] = str(directory)
    from worker.telemetry.prometheus import PrometheusMeasure, PrometheusServer  # noqa: PLC0415 — see the module's docstring

    return Metrics(PrometheusMeasure(), PrometheusServer(directory, settings.worker_metrics_host, port))


def join_metrics() -> Measure:
    """For a process that the main process started: counts beside it, if it counts."""
    if not Path(os.environ.get(_VARIABLE) or "/nowhere").is_dir():
        return discard
    from worker.telemetry.prometheus import PrometheusMeasure  # noqa: PLC0415 — see the module's docstring

    return PrometheusMeasure()


def _remove_abandoned() -> None:
    """Directories of workers that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(directory, ignore_errors=True)
