"""Downloads that were cut off go when nobody went on with them; whole models and running downloads stay."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from jobs.retention.downloads import Discarded, discard_downloads

DAY = 86_400.0
COMMIT = "c" * 40


def partial(cache: Path, model: str, *, days: float, commit: str = COMMIT) -> Path:
    """A download of 300 bytes whose last byte came so long ago."""
    directory = cache / model / f"{commit}.partial"
    (directory / ".unfinished").mkdir(parents=True)
    (directory / "config.json").write_bytes(b"x" * 100)
    (directory / ".unfinished" / "model.safetensors").write_bytes(b"x" * 200)
    directory.with_suffix(".lock").touch()
    when = time.time() - days * DAY
    for path in (*directory.rglob("*"), directory):
        os.utime(path, (when, when))
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one whole model, long here."""
    whole = tmp_path / "owner" / "whole" / COMMIT
    whole.mkdir(parents=True)
    os.utime(whole, (0, 0))
    return tmp_path


def test_only_old_ones_go(cache: Path) -> None:
    old, short, young = (
        partial(cache, "owner/old", days=8),
        partial(cache, "gpt2", days=8),
        partial(cache, "a/b", days=6),
    )
    assert discard_downloads(cache, older_than_seconds=7 * DAY, dry_run=True) == Discarded(2, 600)
    assert old.is_dir()
    assert discard_downloads(cache, older_than_seconds=7 * DAY) == Discarded(2, 600)
    assert [path.exists() for path in (old, short, young)] == [False, False, True]
    assert (cache / "owner" / "whole" / COMMIT).is_dir()


def test_one_byte_makes_a_download_young(cache: Path) -> None:
    directory = partial(cache, "owner/slow", days=8)
    with (directory / ".unfinished" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert discard_downloads(cache, older_than_seconds=7 * DAY) == Discarded()


def test_one_that_a_process_holds_stays(cache: Path) -> None:
    directory = partial(cache, "owner/held", days=8)
    with directory.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert discard_downloads(cache, older_than_seconds=7 * DAY) == Discarded()
    assert discard_downloads(cache, older_than_seconds=7 * DAY).downloads == 1


def test_zero_keeps_them_for_ever_and_no_cache_is_none(cache: Path) -> None:
    partial(cache, "owner/old", days=10_000)
    assert discard_downloads(cache, older_than_seconds=0) == Discarded()
    assert discard_downloads(cache / "missing", older_than_seconds=DAY) == Discarded()
