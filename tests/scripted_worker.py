"""The real Celery worker with the scripted runner: ``celery -A tests.scripted_worker worker``."""

import sys
from pathlib import Path

from jobs.settings import get_settings
from worker.attempts.attempt import Programs
from worker.host import Worker

SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted_runner.py")))
PASSING = (sys.executable, str(Path(__file__).with_name("scripted_check.py")))

app = Worker(get_settings(), programs=Programs(runner=SCRIPTED, check=PASSING)).install()
