"""The sweep: it repairs what dead workers left, and records that this worker is alive."""

import socket
from collections.abc import Callable

import structlog

from jobs.job.lease import JobLeases
from jobs.job.nudge import Nudger
from jobs.kit.errors import Unavailable
from jobs.settings import Settings
from worker.attempts.workspace import abandoned_jobs, discard, put_aside
from worker.claims.process_lock import claims_of_dead_processes
from worker.devices import devices
from worker.jitter import jittered

logger = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps one after the other, for the worker named ``owner``."""

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
        """Sweep until ``wait`` (seconds) returns True; a sweep that finds the database down is tried again."""
        while True:
            try:
                self.sweep()
            except Unavailable:
                logger.warning("sweep_failed", reason="the database does not answer")
            if wait(jittered(self._settings.sweep_seconds)):
                return

    def sweep(self) -> None:
        """Do one sweep. Raises: Unavailable."""
        self._leases.beat_worker(self._owner, hostname=socket.gethostname(), pid=self._worker_pid, device=self._device)
        # The locks are held during the sweep, so that another sweeper does not judge the same claims.
        with claims_of_dead_processes(self._settings.work_dir, self._settings.publishing_dir) as orphans:
            swept = self._leases.sweep(orphans)
        if swept.requeued or swept.failed or swept.cancelled or swept.publications:
            logger.info(
                "sweep_completed",
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
        """Remove the work files of jobs that are over and that no retry will use."""
        work_dir = self._settings.work_dir
        found = abandoned_jobs(work_dir, older_than_seconds=self._settings.lease_seconds)
        if not found:
            return
        # Only a rename while the rows are locked against a retry: removing files takes longer than a transaction may.
        with self._leases.locking_finished_jobs(found) as finished:
            aside = {job_id: put_aside(work_dir, job_id) for job_id in sorted(finished)}
        for job_id, directory in aside.items():
            if directory is not None:
                logger.info("work_discarded", job_id=job_id)
                discard(directory)
