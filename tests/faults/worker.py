"""The real Celery worker with the harness's runner and fail points: ``celery -A tests.faults.worker worker``."""

import sys
from typing import Final

from jobs.settings import get_settings
from tests.faults.failpoints import install
from worker.attempts.attempt import Programs
from worker.host import Worker
from worker.sweeper.restarter import SweeperRestarter

RUNNER: Final = (sys.executable, "-P", "-m", "tests.faults.runner")
SWEEPER: Final = (sys.executable, "-m", "tests.faults.wrapped", "sweeper", "worker.sweeper")

install("worker", get_settings().data_dir)
host = Worker(get_settings(), programs=Programs(runner=RUNNER))
host.sweeper = SweeperRestarter(host._owner, command=SWEEPER)
app = host.install()
