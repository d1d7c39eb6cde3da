"""Fleets that tests share: starting one takes longer than most of what is done to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fleet import FAST, Fleet, running_fleet
from tests.faults.promises.act import MAX_ATTEMPTS, Act, acting
from tests.faults.scale import FULL
from tests.faults.servers import FLAVORS, Flavor, missing

# The short run takes Debian's servers where there are any; the chaos of the short run is on the embedded ones.
_CHOSEN: tuple[Flavor, ...] = FLAVORS if FULL else ("embedded" if missing("debian") else "debian",)


@pytest.fixture(scope="session", params=_CHOSEN)
def flavor(request: pytest.FixtureRequest) -> Flavor:
    """Which servers."""
    chosen: Flavor = request.param
    return chosen


@pytest.fixture(scope="package")
def quick_fleet(flavor: Flavor) -> Iterator[Fleet]:
    """With leases of three seconds."""
    with running_fleet(flavor, settings={**FAST, "max_attempts": MAX_ATTEMPTS}) as fleet:
        yield fleet


@pytest.fixture(scope="package")
def usual_fleet(flavor: Flavor) -> Iterator[Fleet]:
    """With the leases that an operator gets who sets nothing."""
    with running_fleet(flavor, settings={"max_attempts": MAX_ATTEMPTS}) as fleet:
        yield fleet


@pytest.fixture
def quick(quick_fleet: Fleet, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Act]:
    """A test's dealings with the quick one."""
    with acting(quick_fleet, tmp_path / "journal.jsonl", request.node.name) as act:
        yield act


@pytest.fixture
def recovering(tmp_path: Path, flavor: Flavor, request: pytest.FixtureRequest) -> Iterator[Act]:
    """A test's dealings with the one whose recovery is measured: the usual one, in a full run."""
    assert flavor
    fleet: Fleet = request.getfixturevalue("usual_fleet" if FULL else "quick_fleet")
    with acting(fleet, tmp_path / "journal.jsonl", request.node.name) as act:
        yield act
