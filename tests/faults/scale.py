"""How much a fault test does: ``QUANTRY_TEST_SCALE=full`` gives the counts that the promises name, else a small one."""

import os


def at_scale(*, small: int, full: int) -> int:
    """The count to use in this run of pytest."""
    return full if os.environ.get("QUANTRY_TEST_SCALE") == "full" else small
