"""What only the local store has: links, the disk, and files that a person can damage."""

import os
import stat
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.artifacts import DamagedBlob, LocalStore
from tests.integration.artifacts.test_contract import BIG, sha, write

LONG_AGO = datetime.now(UTC) - timedelta(days=2)


def test_a_file_is_linked_not_copied_and_can_not_be_written_through(local: LocalStore, tmp_path: Path) -> None:
    output = write(tmp_path / "output", {"model.safetensors": BIG})
    local.put(output)
    blob = local.path(sha(BIG))
    assert blob.samefile(output / "model.safetensors")
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    target = tmp_path / "fetched"
    local.fetch(sha(BIG), target)
    assert target.samefile(blob)


def test_from_another_disk_it_is_copied(local: LocalStore, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is only one disk")
        local.put(write(Path(other), {"model.safetensors": BIG}))
        target = Path(other) / "fetched"
        local.fetch(sha(BIG), target)
        assert target.read_bytes() == BIG
    assert local.path(sha(BIG)).read_bytes() == BIG
    assert list((local.root / "incoming").iterdir()) == []


def test_a_blob_that_the_disk_damaged_is_found_out(local: LocalStore, tmp_path: Path) -> None:
    output = write(tmp_path / "output", {"model.safetensors": BIG})
    local.put(output)
    blob = local.path(sha(BIG))
    blob.unlink()
    blob.write_bytes(BIG[:-1] + b"?")
    with pytest.raises(DamagedBlob):
        local.fetch(sha(BIG), tmp_path / "target")
    assert not (tmp_path / "target").exists()
    blob.write_bytes(BIG[:-1])
    local.put(output)
    assert blob.read_bytes() == BIG, "one of another size is replaced"


def test_what_a_cut_copy_left_goes_once_it_is_old(local: LocalStore) -> None:
    incoming = local.root / "incoming"
    incoming.mkdir(parents=True)
    for name, moment in (("old", LONG_AGO), ("new", datetime.now(UTC))):
        (incoming / name).write_bytes(b"half")
        os.utime(incoming / name, (moment.timestamp(), moment.timestamp()))
    before = datetime.now(UTC) - timedelta(days=1)
    assert local.discard_incomplete(before, dry_run=True) == 1
    assert local.discard_incomplete(before) == 1
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_a_blob_is_young_when_it_was_put_however_old_its_file_is(local: LocalStore, tmp_path: Path) -> None:
    output = write(tmp_path / "output", {"model.safetensors": BIG})
    os.utime(output / "model.safetensors", (0, 0))
    local.put(output)
    assert not local.delete(sha(BIG), unless_since=datetime.now(UTC) - timedelta(minutes=5))
