"""``python -m tests.faults.wrapped ROLE MODULE …``: a module run as ``python -m`` runs it, with fail points inside."""

import os
import runpy
import sys
from pathlib import Path

from tests.faults.failpoints import EDGES, install


def main() -> None:
    """Install, then be the other program."""
    role, module, *arguments = sys.argv[1:]
    if role not in EDGES:
        raise SystemExit(f"no such role: {role}")
    install(role, Path(os.environ["QUANTRY_DATA_DIR"]))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
