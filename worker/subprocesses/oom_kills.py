"""Whether the kernel kills processes for memory, and which one it should take.

The kernel ends a process that needs more memory than there is with SIGKILL, which tells nothing. It counts before it
sends the signal, so a count that rose while a process ran tells that death from others.
"""

import re
from pathlib import Path
from typing import Final

_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_CGROUP: Final = re.compile(r"^0::(/.*)$", re.MULTILINE)
_WELCOME: Final = "500"  # of 1000; a worker that is not touched has 0


def oom_kills(root: Path = Path("/")) -> int | None:
    """Processes that the kernel has killed for memory: of this control group, else of the machine; None: unknown.

    The group's count (cgroup v2) leaves out what happens to others, but a machine's first group has none.
    """
    group = _found(_CGROUP, root / "proc/self/cgroup")
    for file in (
        *([] if group is None else [root / "sys/fs/cgroup" / group.lstrip("/") / "memory.events"]),
        root / "proc/vmstat",
    ):
        count = _found(_KILLS, file)
        if count is not None:
            return int(count)
    return None


def offer_to_oom_killer(file: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Have the kernel take this process first, before the supervisor that would tell of it."""
    try:
        file.write_text(_WELCOME)
    except OSError:
        return  # not Linux, or not allowed: the kernel chooses on its own


def _found(pattern: re.Pattern[str], file: Path) -> str | None:
    try:
        match = pattern.search(file.read_text())
    except OSError:
        return None
    return None if match is None else match.group(1)
