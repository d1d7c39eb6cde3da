"""The real Celery worker with the scripted runner: ``celery -A tests.scripted_worker worker``."""

import sys
from pathlib import Path

from jobs.settings import get_settings
from worker.attempts.attempt import Programs
from worker.host import Worker

SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted_runner.py")))

app = Worker(get_settings(), programs=Programs(runner=SCRIPTED)).install()
