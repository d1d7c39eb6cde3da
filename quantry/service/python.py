"""The Python command of the service's processes: never with the current directory on the import path.

A folder ``api`` or ``torch`` in the user's current directory must not be imported instead of the real package.
"""

import os
import sys
from collections.abc import Mapping
from typing import Final

PYTHON: Final = (sys.executable, "-P")
"""The interpreter; ``-P`` (Python 3.11) leaves the current directory out of ``sys.path``."""


def safe_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return ``environment`` with the variable that gives all descendant Python processes the effect of ``-P``."""
    return {**environment, "PYTHONSAFEPATH": "1"}
