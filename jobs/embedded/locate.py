"""Which database a command works on: the one it is told of, or the embedded one of a service that runs."""

import contextlib
from pathlib import Path
from typing import Final

import psutil

from jobs.embedded.postgres import url_at
from jobs.kit.errors import InstallationError
from jobs.settings import Settings

_SOCKET_DIRECTORY_LINE: Final = 4  # of postmaster.pid, counted from 0


def database_url(settings: Settings) -> str:
    """QUANTRY_DATABASE_URL, or where the embedded server of QUANTRY_DATA_DIR listens now.

    Raises:
        InstallationError: neither is there.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    running = embedded_url(settings.data_dir)
    if running is None:
        raise InstallationError(
            f"QUANTRY_DATABASE_URL is not set, and no 'quantry serve' runs on {settings.data_dir}. Set the one, start "
            "the other, or name the data directory of the service that runs (QUANTRY_DATA_DIR, or --data-dir)."
        )
    return running


def embedded_url(data_dir: Path) -> str | None:
    """Where the embedded server of ``data_dir`` listens; None when it does not run."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
        lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        if psutil.Process(int(lines[0])).name() == "postgres":
            return url_at(Path(lines[_SOCKET_DIRECTORY_LINE]))
    return None
