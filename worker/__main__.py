"""``python -P -m worker [OPTION…]``: ``celery -A worker.app worker [OPTION…]``, safe in any current directory.

Celery imports an application by its name, and searches the current directory first. That directory may hold an
unrelated folder ``jobs`` or ``worker``. Here the application is imported before Celery searches for it, and ``-P``
keeps Python itself from searching the current directory.
"""

import sys

from celery.bin.celery import celery

import worker.app


def main() -> None:
    """Run Celery's command line, which ends this process."""
    celery(["--app", worker.app.__name__, "worker", *sys.argv[1:]], auto_envvar_prefix="CELERY")


if __name__ == "__main__":
    main()
