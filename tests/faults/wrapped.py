"""``python -m tests.faults.wrapped ROLE MODULE …``: run a module as ``python -m`` does, with fail points."""

import os
import runpy
import sys
from pathlib import Path

from tests.faults.failpoints import EDGES, install


def main() -> None:
    """Install the fail points, then run the module."""
    role, module, *arguments = sys.argv[1:]
    if role not in EDGES:
        raise SystemExit(f"no such role: {role}")
    install(role, Path(os.environ["QUANTRY_DATA_DIR"]))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
