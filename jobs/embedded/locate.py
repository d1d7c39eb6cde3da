"""Finding the database of a command: the configured one, or the embedded one of a running service."""

import contextlib
from pathlib import Path
from typing import Final

import psutil

from jobs.embedded.postgres import url_at
from jobs.kit.errors import InstallationError
from jobs.settings import Settings

_SOCKET_DIRECTORY_LINE: Final = 4  # of postmaster.pid, counted from 0


def database_url(settings: Settings) -> str:
    """Return QUANTRY_DATABASE_URL, or the URL of the running embedded server of QUANTRY_DATA_DIR.

    Raises:
        InstallationError: there is neither.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    running = embedded_url(settings.data_dir)
    if running is None:
        raise InstallationError(
            f"QUANTRY_DATABASE_URL is not set, and no 'quantry serve' runs on {settings.data_dir}. Set it, start "
            "the service, or name the data directory of a service that runs (QUANTRY_DATA_DIR, or --data-dir)."
        )
    return running


def embedded_url(data_dir: Path) -> str | None:
    """Return the URL of the running embedded server of ``data_dir``; None when it does not run."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
        lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        # After a crash the file remains, and another program may have got the process id.
        if psutil.Process(int(lines[0])).name() == "postgres":
            return url_at(Path(lines[_SOCKET_DIRECTORY_LINE]))
    return None
