"""One worker: Celery's main process, its pool children, and the sweeper process.

There is one Celery task, and it takes no arguments. A nudge starts it, and it claims and runs jobs until none is left.
Each pool child also has a thread that polls for jobs as often as the sweeper sweeps, so no job waits for the broker,
and a thread that publishes checkpoints. This module never imports torch: the pool forks, and CUDA does not survive a
fork.
"""

import os
import signal
import socket
import sys
import threading
from functools import partial
from typing import Final

import billiard
import structlog
from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # newer than its stubs
from celery import Celery, bootsteps, signals
from celery.concurrency.prefork import TaskPool
from celery.worker import state

from jobs.artifacts import open_store
from jobs.credentials import CredentialService, Vault
from jobs.job.nudge import TASK_NAME
from jobs.kit.errors import InstallationError, Unavailable
from jobs.observability.logs import configure_logging
from jobs.observability.opening import open_tracing
from jobs.observability.tracing import NoTracing, Tracing
from jobs.publications.lease import PublicationLeases
from jobs.repository.database import Database
from jobs.settings import Settings
from worker.attempts.attempt import AttemptDependencies, Programs
from worker.attempts.supervisor import Supervisor
from worker.claims.measured import MeasuredJobLeases
from worker.devices import devices
from worker.draining import Draining
from worker.nudge import CeleryNudger, make_celery
from worker.polling import Poller
from worker.publishing.attempt import PublishDependencies
from worker.publishing.publisher import Publisher, hub_tokens
from worker.subprocesses.parent_death import die_with_parent
from worker.sweeper.restarter import SweeperRestarter
from worker.telemetry.measurements import NudgeFailed
from worker.telemetry.metrics import open_metrics
from worker.telemetry.ports import Telemetry

# What the poller gets to hand its job back after the drain time (docs/operations.md).
_HAND_BACK_SECONDS: Final = 15.0
_POOL_STEP: Final = "celery.worker.components:Pool"
_NO_DATABASE: Final = "postgresql://"  # never connected to: the worker refuses to start without an address

logger = structlog.get_logger(__name__)


def _handing_back(draining: Draining) -> type[TaskPool]:
    class Pool(TaskPool):
        """Celery's prefork pool, which also drains the jobs that Celery does not know when it stops cold."""

        def on_stop(self) -> None:
            if state.should_terminate not in (None, False):
                # A cold shutdown terminates the tasks that Celery knows, then waits for the children. Celery does not
                # know a job that a child's poller found, so the child learns of the shutdown here.
                draining.begin(at_once=True)
            super().on_stop()

    return Pool


class Worker:
    """The state that the processes of one worker share. It is made in the main process, before the pool forks."""

    def __init__(self, settings: Settings, *, programs: Programs | None = None) -> None:
        self._settings = settings
        self._programs = programs or Programs()
        self._devices = devices(settings.device)
        self._main_pid = os.getpid()
        self._owner = f"{socket.gethostname()}:{self._main_pid}"
        # No connection yet: the engine connects on first use, in the pool child.
        self._database = Database(settings.database_url.get_secret_value() if settings.database_url else _NO_DATABASE)
        self._device = self._devices[0]
        self._publisher: Publisher | None = None
        self._poller: Poller | None = None
        self._supervisor: Supervisor | None = None
        self._running = threading.Lock()  # one job at a time, found by a nudge or by polling
        self._tracing: Tracing = NoTracing()  # of the main process; each pool child opens its own after the fork
        self.metrics = open_metrics(settings)
        self.draining = Draining(settings.drain_seconds)
        self.sweeper = SweeperRestarter(self._owner)
        self.celery = make_celery(settings)
        self.celery.conf.update(
            worker_pool=_handing_back(self.draining),
            # One pool child for each device.
            worker_concurrency=len(self._devices),
            worker_hijack_root_logger=False,
            worker_redirect_stdouts=False,
        )

    def install(self) -> Celery:
        """Register the task, the sweeper and the signal handlers; return the application for Celery's command line."""
        self.celery.task(name=TASK_NAME, acks_late=False, ignore_result=True)(self.run_jobs)
        self.celery.steps["worker"].add(self._sweeper_step())
        signals.setup_logging.connect(self._on_setup_logging, weak=False)
        signals.worker_init.connect(self._on_init, weak=False)
        signals.worker_process_init.connect(self._on_process_init, weak=False)
        signals.worker_process_shutdown.connect(self._on_process_shutdown, weak=False)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        signals.worker_shutdown.connect(self._on_shutdown, weak=False)
        return self.celery

    def require_services(self) -> None:
        """Check that the worker has what every job needs, before any job is claimed.

        Raises:
            InstallationError: the settings name no database or no broker, or the key of stored secrets is unusable.
        """
        if self._settings.database_url is None or self._settings.broker_url is None:
            raise InstallationError(
                "The worker needs QUANTRY_DATABASE_URL and QUANTRY_BROKER_URL. Set them, or start the whole service "
                "with 'quantry serve'."
            )
        Vault.open(self._settings)

    def enter_pool_process(self, index: int) -> None:
        """Give a new pool child its own connections and device, and ask for SIGTERM when its parent dies."""
        # Connections and sockets of the parent must not be used from two processes.
        self._database.after_fork()
        if self.metrics.server is not None:
            self.metrics.server.leave()
        self._device = self._devices[index % len(self._devices)]
        # Celery asks for SIGKILL; on SIGTERM the child hands its job back, which is quicker than an expiring lease.
        die_with_parent(self._main_pid, signal.SIGTERM)
        self._tracing = open_tracing(self._settings, "quantry-worker")

    def run_jobs(self) -> None:
        """Run jobs until none is left to claim, or this worker is stopping."""
        with self.draining.yielding_on_sigterm():
            self._poll()
        if self.draining.yields():
            sys.exit()  # this process was told to end; if the worker goes on, the pool starts another

    def _poll(self) -> None:
        # The other thread runs jobs until none is left, so there is nothing to wait for.
        if not self._running.acquire(blocking=False):
            return
        try:
            # Made once: an idle process polls every few seconds, and the client of a store takes long to make.
            self._supervisor = self._supervisor or self._make_supervisor()
            self._run_jobs(self._supervisor)
        finally:
            self._running.release()

    def _run_jobs(self, supervisor: Supervisor) -> None:
        while not self.draining.has_begun():
            try:
                if supervisor.run_next() is None:
                    return
            except Unavailable:
                logger.warning("job_claim_failed", reason="the database does not answer; this process polls again soon")
                return
        self._tracing.stop()  # sends the spans now: this process may be killed before it ends by itself

    def _on_setup_logging(self, **_: object) -> None:
        configure_logging()

    def _on_init(self, **_: object) -> None:
        try:
            self.require_services()
        except InstallationError as error:
            sys.exit(str(error))  # Celery only logs other exceptions of a receiver, and starts anyway

    def _on_process_init(self, **_: object) -> None:
        # billiard numbers the processes of its pool; its type stubs lack the attribute.
        self.enter_pool_process(getattr(billiard.current_process(), "index", 0))
        self._publisher = self._make_publisher()
        self._publisher.start()
        self._poller = Poller(self._poll, every_seconds=self._settings.sweep_seconds)
        self._poller.start()

    def _on_process_shutdown(self, **_: object) -> None:
        """Hand back the job of the poller, if it has one, and stop the threads of this pool child.

        No task runs: the main process asked for this shutdown, was killed, or terminated this child.
        """
        with self.draining.yielding_on_sigterm():
            # billiard replaces any SIGTERM handler that a starting child installs, and its own handler leads here. A
            # second SIGTERM would end the process while it hands the job back, so SIGTERM is caught again above.
            # After a signal, or without a parent, there is no time to finish the job.
            if terminate_handler_fired() or os.getppid() != self._main_pid:
                self.draining.yield_now()
            if self._poller is not None:
                self._poller.stop(self._settings.drain_seconds + _HAND_BACK_SECONDS)
            if self._publisher is not None:
                self._publisher.stop()
            self._tracing.stop()

    def _on_shutting_down(self, **_: object) -> None:
        self.draining.begin()

    def _on_shutdown(self, **_: object) -> None:
        # The pool has ended its last job. Until then the sweeper must report that this worker is alive, and sweep.
        self.sweeper.stop()
        if self.metrics.server is not None:
            self.metrics.server.stop()

    def _make_supervisor(self) -> Supervisor:
        dependencies = AttemptDependencies(
            leases=MeasuredJobLeases(self._database, self._settings, self.metrics.measure),
            store=open_store(self._settings),
            credentials=CredentialService(self._database, Vault.open(self._settings)),
            settings=self._settings,
            device=self._device,
            programs=self._programs,
            must_yield=self.draining.must_yield,
        )
        return Supervisor(
            dependencies=dependencies,
            owner=self._owner,
            nudger=CeleryNudger(self.celery, on_failure=partial(self.metrics.measure, NudgeFailed())),
            telemetry=Telemetry(self.metrics.measure, self._tracing),
        )

    def _make_publisher(self) -> Publisher:
        dependencies = PublishDependencies(
            leases=PublicationLeases(self._database, self._settings),
            store=open_store(self._settings),
            token_for=hub_tokens(CredentialService(self._database, Vault.open(self._settings)), os.environ),
            settings=self._settings,
        )
        return Publisher(dependencies, self._owner, is_draining=self.draining.has_begun)

    def _sweeper_step(self) -> type[bootsteps.StartStopStep]:
        sweeper, server = self.sweeper, self.metrics.server

        class SweeperStep(bootsteps.StartStopStep):
            """The step of Celery's start that starts the sweeper and the metrics server, also without a broker."""

            # The pool forks first: the threads that are started here come after the fork.
            requires = (_POOL_STEP,)

            def start(self, _: object) -> None:
                sweeper.start()
                if server is not None:
                    server.start()

        return SweeperStep
