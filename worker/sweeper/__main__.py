"""The sweep as a process of its own: ``python -m worker.sweeper --owner NAME --parent-pid PID``.

Every few seconds, with jitter so that many workers do not sweep at once: repair what dead workers left behind, nudge
for jobs that wait, remove work files of jobs that are over, and say that this worker is alive. Once an hour one of the
sweepers collects the artifact store's garbage, beside its sweeps. Webhook messages are sent from here, too.
"""

import argparse
import signal
import socket
import sys
import threading
from collections.abc import Callable

import structlog

from jobs.job.lease import JobLeases
from jobs.job.nudge import Nudger
from jobs.kit.errors import InstallationError, Unavailable
from jobs.observability.logs import configure_logging
from jobs.repository.database import Database
from jobs.settings import Settings, get_settings
from worker.attempts.workspace import abandoned_jobs, discard, put_aside
from worker.claims.measured import MeasuredJobLeases
from worker.claims.process_lock import claims_of_dead_processes
from worker.devices import devices
from worker.jitter import jittered
from worker.nudge import CeleryNudger, make_celery
from worker.subprocesses.parent_death import die_with_parent
from worker.sweeper.garbage import BackgroundCollector
from worker.telemetry.metrics import join_metrics
from worker.webhooks.deliverer import delivering

logger = structlog.get_logger(__name__)


class Sweeper:
    """One sweep at a time, on behalf of the worker named ``owner``."""

    def __init__(
        self,
        leases: JobLeases,
        nudger: Nudger,
        settings: Settings,
        *,
        owner: str,
        worker_pid: int,
        collect: Callable[[], None] = lambda: None,
    ) -> None:
        self._leases = leases
        self._nudger = nudger
        self._settings = settings
        self._owner = owner
        self._worker_pid = worker_pid
        self._collect = collect
        self._device = devices(settings.device)[0].name

    def run(self, wait: Callable[[float], bool]) -> None:
        """Sweep until ``wait`` (seconds) says that it is time to stop; tried again when the database is down."""
        while True:
            try:
                self.sweep()
            except Unavailable:
                logger.warning("sweep_failed", reason="the database does not answer")
            if wait(jittered(self._settings.sweep_seconds)):
                return

    def sweep(self) -> None:
        """One round. Raises: Unavailable."""
        self._leases.beat_worker(self._owner, hostname=socket.gethostname(), pid=self._worker_pid, device=self._device)
        with claims_of_dead_processes(self._settings.work_dir, self._settings.publishing_dir) as orphans:
            swept = self._leases.sweep(orphans)
        if swept.requeued or swept.failed or swept.cancelled or swept.publications:
            logger.info(
                "swept",
                requeued=swept.requeued,
                failed=swept.failed,
                cancelled=swept.cancelled,
                publications=swept.publications,
            )
        for _ in range(swept.nudges):
            self._nudger.nudge()
        self._discard_leftovers()
        self._collect()

    def _discard_leftovers(self) -> None:
        """Work files of jobs that are over and will not be retried with them."""
        work_dir = self._settings.work_dir
        found = abandoned_jobs(work_dir, older_than_seconds=self._settings.lease_seconds)
        if not found:
            return
        # A rename, while no retry can come between: removing takes longer than a transaction may.
        with self._leases.locking_finished_jobs(found) as finished:
            aside = {job_id: put_aside(work_dir, job_id) for job_id in sorted(finished)}
        for job_id, directory in aside.items():
            if directory is not None:
                logger.info("work_discarded", job_id=job_id)
                discard(directory)


def main(arguments: list[str] | None = None) -> int:
    """Sweep until SIGTERM, or until the worker dies."""
    parser = argparse.ArgumentParser(prog="worker.sweeper", description="Repairs what dead workers leave behind.")
    parser.add_argument("--owner", required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent_pid)
    configure_logging()
    settings = get_settings()
    if settings.database_url is None:
        raise InstallationError("QUANTRY_DATABASE_URL is not set; the sweeper needs the service's database.")
    meters = join_metrics()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group; the worker decides
    database_url = settings.database_url.get_secret_value()
    database = Database(database_url, pool_size=1)
    collector = BackgroundCollector(database_url, settings)
    sweeper = Sweeper(
        MeasuredJobLeases(database, settings, meters),
        CeleryNudger(make_celery(settings), meters.nudge_failed),
        settings,
        owner=options.owner,
        worker_pid=options.parent_pid,
        collect=collector.look,
    )
    with delivering(database_url, settings):
        sweeper.run(stopping.wait)
    collector.stop()
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
