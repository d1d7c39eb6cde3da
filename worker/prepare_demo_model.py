"""``python -m worker.prepare_demo_model [--models-dir DIR]``: see :mod:`worker.demo.prepare_model`."""

import sys

from worker.demo.prepare_model import main

if __name__ == "__main__":
    sys.exit(main())
