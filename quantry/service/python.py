"""How this machine's Python is started for the service: never with the current directory on its path.

A folder ``api`` or ``torch`` in the directory that a person happens to be in must not be imported in place of ours.
"""

import os
import sys
from collections.abc import Mapping
from typing import Final

PYTHON: Final = (sys.executable, "-P")
"""The interpreter; ``-P`` (Python 3.11) leaves the current directory out of ``sys.path``."""


def safe_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``environment`` with ``-P`` for every Python process further down the tree."""
    return {**environment, "PYTHONSAFEPATH": "1"}
