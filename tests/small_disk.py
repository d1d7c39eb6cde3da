"""A small disk that can be filled: a tmpfs of a few kilobytes, mounted where a test needs it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_disk(directory: Path, size: str) -> Iterator[None]:
    """Make ``directory`` on a disk of its own of ``size`` (in mount's form) for the block."""
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a disk")
    yield
    subprocess.run(["umount", "--lazy", str(directory)], check=True)
