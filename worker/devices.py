"""The devices of this machine, found without loading torch.

Celery forks its pool, and CUDA does not survive a fork.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Device:
    """A device for one runner. ``gpu`` is the index or UUID that it may see, ``threads`` its share of the cores."""

    name: Literal["cpu", "cuda"]
    gpu: str | None
    threads: int


def devices(choice: Literal["cpu", "auto"]) -> tuple[Device, ...]:
    """Return one device for each job that may run at a time: every visible GPU, or the CPU once."""
    gpus = visible_gpus() if choice == "auto" else ()
    if not gpus:
        return (Device(name="cpu", gpu=None, threads=_threads(share=1)),)
    return tuple(Device(name="cuda", gpu=gpu, threads=_threads(share=len(gpus))) for gpu in gpus)


def visible_gpus(nodes: Path = Path("/dev")) -> tuple[str, ...]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` names, or every NVIDIA device node."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(int(path.name[6:]) for path in nodes.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if not found or chosen is None:
        return tuple(str(index) for index in found)
    # "-1" is the usual way to hide every GPU.
    return tuple(name.strip() for name in chosen.split(",") if name.strip() not in {"", "-1"})


def cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use: its affinity, or less if a container's quota is lower."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(available, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return available  # no cgroup v2 here, or "max": no quota


def _threads(share: int) -> int:
    # The operator's own choice is taken as it is, for each job.
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else max(1, cores() // share)
