"""The real worker, with a runner that computes nothing: ``celery -A benchmarks.queue_worker worker``."""

from typing import Final

from celery import Celery

from benchmarks.queue_runner import COMMAND
from jobs.settings import get_settings
from worker.attempts.attempt import Programs
from worker.host import Worker

app: Final[Celery] = Worker(get_settings(), programs=Programs(runner=COMMAND)).install()
