"""``python -m jobs.gc [--dry-run]``: see :mod:`jobs.retention.__main__`."""

import sys

from jobs.retention.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
