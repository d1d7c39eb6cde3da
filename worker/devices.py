"""What this machine computes with, found without loading torch: Celery forks, and CUDA does not survive that."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Device:
    """Where a runner computes. ``gpu`` is the index or UUID that it may see, ``threads`` its share of the cores."""

    name: Literal["cpu", "cuda"]
    gpu: str | None
    threads: int


def devices(choice: Literal["cpu", "auto"]) -> tuple[Device, ...]:
    """One device for each job that may run at a time: every visible GPU, or the CPU once."""
    gpus = visible_gpus() if choice == "auto" else ()
    if not gpus:
        return (Device(name="cpu", gpu=None, threads=_threads(share=1)),)
    return tuple(Device(name="cuda", gpu=gpu, threads=_threads(share=len(gpus))) for gpu in gpus)


def visible_gpus(nodes: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` names, or every NVIDIA device node."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(int(path.name[6:]) for path in nodes.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if not found or chosen is None:
        return tuple(str(index) for index in found)
    return tuple(name.strip() for name in chosen.split(",") if name.strip() not in {"", "-1"})


def cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, or less where a container's quota says so."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(available, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return available  # no cgroup v2 here, or "max": no quota


def _threads(share: int) -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else max(1, cores() // share)
