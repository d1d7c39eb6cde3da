"""The metrics of a worker for Prometheus, at one address for all its processes.

Each process of a worker (Celery's main process, its pool, the sweeper) counts in memory-mapped files of its own. The
files are in a directory that the main process makes and serves. This is the multiprocess mode of prometheus_client, and
the counts of a process stay when it dies. The library chooses its storage by an environment variable at import. So it
is imported late here, and only if metrics are served.
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
    """The metrics server of a worker's main process."""

    def start(self) -> None:
        """Listen. A port in use is only logged, because jobs matter more than metrics."""
        ...

    def leave(self) -> None:
        """In a forked child: close the socket that the parent listens on."""
        ...

    def stop(self) -> None:
        """Stop listening, and remove the counts."""
        ...


@dataclass(frozen=True)
class Metrics:
    """The metrics of a worker: the function that measures, and the server; None if metrics are off."""

    measure: Measure = discard
    server: MetricsServer | None = None


def open_metrics(settings: Settings) -> Metrics:
    """Open the metrics in the main process, before it forks."""
    port = settings.worker_metrics_port
    if port is None:
        return Metrics()
    _remove_abandoned()
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    # Child processes inherit the variable, and so find the directory.
    os.environ[_VARIABLE] = str(directory)
    from worker.telemetry.prometheus import PrometheusMeasure, PrometheusServer  # noqa: PLC0415 — see the module's docstring

    return Metrics(PrometheusMeasure(), PrometheusServer(directory, settings.worker_metrics_host, port))


def join_metrics() -> Measure:
    """Return the measuring function of a process that the main process started; it counts only if metrics are on."""
    if not Path(os.environ.get(_VARIABLE) or "/nowhere").is_dir():
        return discard
    from worker.telemetry.prometheus import PrometheusMeasure  # noqa: PLC0415 — see the module's docstring

    return PrometheusMeasure()


def _remove_abandoned() -> None:
    """Remove the directories of workers that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(directory, ignore_errors=True)
