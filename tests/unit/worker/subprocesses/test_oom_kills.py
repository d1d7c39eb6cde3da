"""What the kernel counts, read from files as it writes them."""

from pathlib import Path

import pytest

from worker.subprocesses.oom_kills import offer_to_oom_killer, oom_kills

EVENTS = "low 0\nhigh 2\nmax 9\noom 4\noom_kill 3\noom_group_kill 1\n"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine that has killed eleven processes in all."""
    write(tmp_path / "proc/vmstat", "pgfault 5\noom_kill 11\nswap_ra 0\n")
    return tmp_path


def test_the_group_counts_for_itself(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/system.slice/quantry.service\n")
    write(machine / "sys/fs/cgroup/system.slice/quantry.service/memory.events", EVENTS)
    assert oom_kills(machine) == 3


def test_in_a_container_the_group_is_the_first_one(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/\n")
    write(machine / "sys/fs/cgroup/memory.events", EVENTS)
    assert oom_kills(machine) == 3


@pytest.mark.parametrize("groups", ["0::/\n", "4:memory:/docker/1\n0::/gone\n", ""])
def test_without_a_count_of_the_group_the_machines_counts(machine: Path, groups: str) -> None:
    write(machine / "proc/self/cgroup", groups)
    assert oom_kills(machine) == 11


def test_where_nobody_counts_it_is_not_known(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None


def test_the_kernel_may_forbid_to_be_told(tmp_path: Path) -> None:
    offer_to_oom_killer(tmp_path / "missing" / "oom_score_adj")
    offer_to_oom_killer(tmp_path / "oom_score_adj")
    assert 0 < int((tmp_path / "oom_score_adj").read_text()) <= 1000
