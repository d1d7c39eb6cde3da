"""The Celery application of this installation: ``celery -A worker.app worker``."""

from typing import Final

from celery import Celery

from jobs.settings import get_settings
from worker.host import Worker

app: Final[Celery] = Worker(get_settings()).install()
