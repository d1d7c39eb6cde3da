"""The peak memory of this process, which the runner reports."""

import re
import sys
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_HIGH_WATER: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak_bytes() -> dict[str, float]:
    """Return the peaks in bytes, by the names in ``MEMORY_METRICS``: resident, and allocated by torch on its GPU."""
    peaks: dict[str, float] = {}
    # Not getrusage: its maximum includes the process that forked this one.
    found = _HIGH_WATER.search(_STATUS.read_text()) if _STATUS.exists() else None
    if found is not None:
        peaks["memory.cpu_peak_bytes"] = 1024.0 * int(found.group(1))
    torch = sys.modules.get("torch")  # not imported for this: without torch, nothing is allocated on a GPU
    if torch is not None and torch.cuda.is_initialized():
        peaks["memory.cuda_peak_bytes"] = float(torch.cuda.max_memory_allocated())
    return peaks
