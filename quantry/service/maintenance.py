"""The operator's maintenance commands; each runs a module of the service in a process of its own."""

import subprocess
from pathlib import Path

from quantry.service.config import serve_config
from quantry.service.python import PYTHON, safe_environment


def run_module(module: str, *arguments: str, data_dir: Path | None) -> int:
    """Run a module of the service with this process's standard streams, and return its exit code.

    It works on the database that QUANTRY_DATABASE_URL names, or on the embedded one of the data directory.
    """
    environment = safe_environment() | {"QUANTRY_DATA_DIR": str(serve_config(data_dir=data_dir).data_dir)}
    command = [*PYTHON, "-m", module, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - this interpreter, our modules
