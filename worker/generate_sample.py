"""``python -m worker.generate_sample DIR``: see :mod:`worker.demo.generate_sample`."""

import sys

from worker.demo.generate_sample import main

if __name__ == "__main__":
    sys.exit(main())
