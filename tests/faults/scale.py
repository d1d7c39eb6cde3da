"""The counts of a test run: ``QUANTRY_TEST_SCALE=full`` uses the counts of the promises themselves."""

import os
from typing import Final

FULL: Final = os.environ.get("QUANTRY_TEST_SCALE") == "full"
"""Whether the whole counts are run; otherwise a few of each, so that the suite stays short."""


def scaled(small: int, full: int) -> int:
    """Return the count for this run."""
    return full if FULL else small
