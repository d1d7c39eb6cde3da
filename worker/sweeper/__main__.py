"""The sweeper process: ``python -m worker.sweeper --owner NAME --parent-pid PID``.

Every few seconds it repairs what dead workers left, sends nudges for jobs that wait, removes work files of jobs that
are over, and records that this worker is alive. The interval has jitter, so that many workers do not sweep at the same
time. Once an hour one of the sweepers also collects the garbage of the artifact store. Webhook messages are sent from
this process too.
"""

import argparse
import signal
import sys
import threading
from functools import partial

from jobs.kit.errors import InstallationError
from jobs.observability.logs import configure_logging
from jobs.repository.database import Database
from jobs.settings import get_settings
from worker.claims.measured import MeasuredJobLeases
from worker.nudge import CeleryNudger, make_celery
from worker.subprocesses.parent_death import die_with_parent
from worker.sweeper.garbage import BackgroundCollector
from worker.sweeper.sweeper import Sweeper
from worker.telemetry.measurements import NudgeFailed
from worker.telemetry.metrics import join_metrics
from worker.webhooks.deliverer import delivering


def main(arguments: list[str] | None = None) -> int:
    """Sweep until SIGTERM, or until the worker's main process dies."""
    parser = argparse.ArgumentParser(prog="worker.sweeper", description="Repairs what dead workers leave behind.")
    parser.add_argument("--owner", required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent_pid)
    configure_logging()
    settings = get_settings()
    if settings.database_url is None:
        raise InstallationError("QUANTRY_DATABASE_URL is not set; the sweeper needs the service's database.")
    measure = join_metrics()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    # Ctrl-C in a terminal reaches the whole process group; the worker decides when the sweeper stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    database_url = settings.database_url.get_secret_value()
    database = Database(database_url, pool_size=1)
    # It opens a database of its own: a long collection must not hold up the sweep's one connection.
    collector = BackgroundCollector(database_url, settings)
    sweeper = Sweeper(
        MeasuredJobLeases(database, settings, measure),
        CeleryNudger(make_celery(settings), on_failure=partial(measure, NudgeFailed())),
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
