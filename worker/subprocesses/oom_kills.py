"""The kernel's out-of-memory kills: how many there were, and which process should be killed first.

If memory runs out, the kernel ends a process with SIGKILL, which gives no reason. The kernel raises its counter before
it sends the signal. So a counter that rose while a process ran shows that the process may have died for memory.
"""

import re
from pathlib import Path
from typing import Final

_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_CGROUP: Final = re.compile(r"^0::(/.*)$", re.MULTILINE)
_WELCOME: Final = "500"  # of 1000; the other processes of a worker have 0


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes of this control group, else of the machine, were killed for memory; None if unknown.

    The count of the group (cgroup v2) leaves out the kills in other groups. The root group of a machine has no count.
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
    """Make the kernel kill this process before the supervisor, which can then report the kill."""
    try:
        file.write_text(_WELCOME)
    except OSError:
        return  # not Linux, or not permitted: the kernel chooses the process itself


def _found(pattern: re.Pattern[str], file: Path) -> str | None:
    try:
        match = pattern.search(file.read_text())
    except OSError:
        return None
    return None if match is None else match.group(1)
