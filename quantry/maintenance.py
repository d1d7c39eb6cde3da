"""``quantry gc``, ``backup`` and ``restore``: the operator's commands, run by the service's own room in a process.

They read the service's ``QUANTRY_*`` variables and need no running API: on the database that QUANTRY_DATABASE_URL
names, or the embedded one of the data directory.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from quantry.config import serve_config

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Default QUANTRY_DATA_DIR, or ./var.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The backup's own directory.")]


def gc(
    data_dir: DataDir = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
) -> None:
    """Remove what expired and what no job needs any more; workers do so hourly by themselves."""
    _run("jobs.gc", *(["--dry-run"] if dry_run else []), data_dir=data_dir)


def backup(
    directory: Directory,
    data_dir: DataDir = None,
    *,
    files: Annotated[bool, typer.Option(help="With the files of jobs, or the database and the key alone.")] = True,
) -> None:
    """Back up jobs, files and key into DIR, while the service runs; again into the same DIR copies what is new."""
    _run("jobs.backup", "make", _absolute(directory), *([] if files else ["--no-files"]), data_dir=data_dir)


def restore(directory: Directory, data_dir: DataDir = None) -> None:
    """Make an empty service that of the backup in DIR; it must not run meanwhile."""
    _run("jobs.backup", "restore", _absolute(directory), data_dir=data_dir)


def _run(module: str, *arguments: str, data_dir: Path | None) -> None:
    """Run a module of the service to its end, in front of the person.

    Raises:
        typer.Exit: with its exit code, if that is not 0.
    """
    environment = {**os.environ, "QUANTRY_DATA_DIR": str(serve_config(data_dir=data_dir).data_dir)}
    command = [sys.executable, "-m", module, *arguments]
    code = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - this interpreter, our modules
    if code != 0:
        raise typer.Exit(code if code > 0 else 1)


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())
