"""Garbage collection by reference, on a real database and both stores."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from jobs.artifacts import ArtifactStore, LegacyFiles
from jobs.job.lease import Manifest
from jobs.repository import blobs
from jobs.retention.__main__ import main
from jobs.retention.collector import Collected, Collector, MissingFile
from jobs.retention.expiry import Expiry
from jobs.retention.housekeeping import Housekeeping
from jobs.settings import Settings
from tests.integration.jobs.conftest import TENANT, House

DAY = 86_400.0
OLD = -60.0  # a grace that even what was put just now has outlived, by a clock of whole seconds too


@pytest.fixture(params=["local", "s3"])
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The settings of every other test, on each store in turn."""
    if request.param == "local":
        return settings
    return settings.model_copy(update=request.getfixturevalue("s3_settings"))


@pytest.fixture
def store(house: House) -> ArtifactStore:
    """The store."""
    return house.store


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def put(store: ArtifactStore, directory: Path, **files: str) -> tuple[Any, ...]:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).unlink(missing_ok=True)
        (directory / name).write_text(content)
    return store.put(directory)


def publish(house: House, store: ArtifactStore, **files: str) -> str:
    """A job that has published these files."""
    job = house.submit()
    claim = house.claim()
    assert house.leases.publish(claim, manifest(put(store, house.settings.work_dir / job, **files)))
    return job


def manifest(artifacts: tuple[Any, ...]) -> Manifest:
    return Manifest(summary={}, report={}, layers=[], artifacts=artifacts)


def collector_of(house: House, kind: type[Collector] = Collector, **options: Any) -> Collector:
    legacy = LegacyFiles(house.settings.artifacts_dir)
    return kind(**{"database": house.database, "store": house.store, "legacy": legacy, "grace_seconds": OLD} | options)


def collect(house: House, *, grace_seconds: float, **options: Any) -> Collected:
    collected = collector_of(house, grace_seconds=grace_seconds, **options).run()
    assert collected is not None
    return collected


def grow_old(house: House, *contents: str) -> None:
    """Let blobs of the local store have been put long ago."""
    for content in contents:
        os.utime(house.settings.artifacts_dir / "blobs" / sha(content)[:2] / sha(content), (0, 0))


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    """The command's table: what, and its numbers."""
    cells = [re.split(r"\s{2,}", line) for line in lines]
    return {name: numbers for name, *numbers in cells}


def stored(store: ArtifactStore) -> set[str]:
    return {blob.sha256 for blob in store.blobs()}


def test_only_what_no_row_names_goes_and_only_when_it_is_old(
    house: House, store: ArtifactStore, tmp_path: Path
) -> None:
    publish(house, store, config="kept", weights="shared")
    put(store, tmp_path / "orphan", weights="shared", report="nobody's")
    assert collect(house, grace_seconds=DAY) == Collected(blobs=0, bytes=0, incomplete=0, missing=())
    told = Collected(blobs=1, bytes=len("nobody's"), incomplete=0, missing=())
    assert collect(house, grace_seconds=OLD, dry_run=True) == told
    assert sha("nobody's") in stored(store)
    assert collect(house, grace_seconds=OLD) == told
    assert stored(store) == {sha("kept"), sha("shared")}


def test_bytes_of_a_deleted_job_follow_unless_another_job_has_them(house: House, store: ArtifactStore) -> None:
    gone, stays = publish(house, store, own="one", shared="both"), publish(house, store, own="two", shared="both")
    house.commands.delete_job(gone, tenant=TENANT)
    assert stored(store) == {sha("one"), sha("two"), sha("both")}
    assert collect(house, grace_seconds=OLD).blobs == 1
    assert stored(store) == {sha("two"), sha("both")}
    house.commands.delete_job(stays, tenant=TENANT)
    assert collect(house, grace_seconds=OLD).blobs == 2
    assert stored(store) == set()


class Publishing(Collector):
    """A collector beside which somebody publishes what it has just found to be named by no row."""

    def _delete(self, candidates: Any, before: Any) -> Any:
        vars(self)["beside"]()
        return super()._delete(candidates, before)


def test_a_publication_beside_a_collection_loses_nothing(house: House, store: ArtifactStore, tmp_path: Path) -> None:
    put(store, tmp_path / "earlier", weights="equal", report="left over")
    job, claim = house.submit(), house.claim()

    def publish_now() -> None:
        assert house.leases.publish(claim, manifest(put(store, tmp_path / "now", weights="equal")))

    collector = collector_of(house, Publishing)
    vars(collector)["beside"] = publish_now
    collected = collector.run()
    assert collected is not None
    assert collected.blobs == 1
    assert stored(store) == {sha("equal")}
    [artifact] = house.queries.list_artifacts(job, tenant=TENANT).data
    assert b"".join(house.queries.open_artifact(artifact.id, tenant=TENANT).read()) == b"equal"


@pytest.mark.parametrize("settings", ["local"], indirect=True)
def test_what_is_put_while_it_is_collected_stays_before_any_row_names_it(
    house: House, store: ArtifactStore, tmp_path: Path
) -> None:
    put(store, tmp_path / "earlier", weights="equal", report="left over")
    grow_old(house, "equal", "left over")
    collector = collector_of(house, Publishing, grace_seconds=DAY)
    vars(collector)["beside"] = lambda: put(store, tmp_path / "now", weights="equal")
    collected = collector.run()
    assert collected is not None
    assert collected.blobs == 1
    assert stored(store) == {sha("equal")}


def test_rows_whose_bytes_are_gone_are_reported_and_kept(house: House, store: ArtifactStore) -> None:
    job = publish(house, store, config="kept", weights="lost")
    store.delete(sha("lost"))
    [lost] = [each for each in house.queries.list_artifacts(job, tenant=TENANT).data if each.path == "weights"]
    assert collect(house, grace_seconds=DAY).missing == (MissingFile(lost.id, job, "weights", sha("lost")),)
    older = house.settings.artifacts_dir / job / "1" / "weights"
    older.parent.mkdir(parents=True)
    older.write_text("lost")
    assert collect(house, grace_seconds=DAY).missing == (), "the first release put it there"
    assert len(house.queries.list_artifacts(job, tenant=TENANT).data) == 2


def test_many_rows_and_blobs_are_told_apart_page_by_page(
    house: House, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.retention.collector._BATCH", 3)
    job = publish(house, store, **{f"file{index}": f"content {index}" for index in range(10)})
    put(store, tmp_path / "orphans", **{f"file{index}": f"orphan {index}" for index in range(8)})
    for index in (0, 4, 9):
        store.delete(sha(f"content {index}"))
    collected = collect(house, grace_seconds=OLD)
    assert collected.blobs == 8
    assert {file.path for file in collected.missing} == {"file0", "file4", "file9"}
    assert {file.job_id for file in collected.missing} == {job}
    assert stored(store) == {sha(f"content {index}") for index in range(10) if index not in (0, 4, 9)}


def test_one_collects_at_a_time_and_at_most_hourly(house: House, store: ArtifactStore, tmp_path: Path) -> None:
    put(store, tmp_path / "orphan", report="nobody's")
    collector = collector_of(house)
    with blobs.collecting_alone(house.database.engine) as alone:
        assert alone
        assert collector.run() is None
    expiry = Expiry(database=house.database, settings=house.settings)
    housekeeping = Housekeeping(database=house.database, expiry=expiry, collector=collector)
    with ThreadPoolExecutor(4) as pool:
        rounds = list(pool.map(lambda _: housekeeping.run_if_due(), range(4)))
    assert [each.collected.blobs for each in rounds if each is not None and each.collected is not None] == [1]
    assert housekeeping.run_if_due() is None
    with house.database.transaction() as session:
        session.execute(text("UPDATE chores SET begun_at = begun_at - interval '61 minutes'"))
    assert housekeeping.run_if_due() is not None


def test_a_collection_can_be_stopped(house: House, store: ArtifactStore, tmp_path: Path) -> None:
    put(store, tmp_path / "orphans", one="1", two="2")
    assert collect(house, grace_seconds=OLD, stopped=lambda: True).blobs == 0
    assert len(stored(store)) == 2


@pytest.mark.parametrize("settings", ["local"], indirect=True)
def test_the_command(
    house: House,
    store: ArtifactStore,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured = house.settings.model_copy(update={"database_url": SecretStr(database_url)})
    monkeypatch.setattr("jobs.retention.__main__.get_settings", lambda: configured)
    job = publish(house, store, config="kept", weights="lost")
    store.delete(sha("lost"))
    put(store, tmp_path / "orphan", report="nobody's")
    grow_old(house, "nobody's")
    assert main(["--dry-run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["would", "remove", "count", "bytes"]
    assert {"expired jobs": ["not deleted (retention 0)"], "unused files": ["1", "8"]}.items() <= rows_of(lines).items()
    assert lines[-1].startswith(f"missing {sha('lost')} of {job}: weights (art_")
    assert sha("nobody's") in stored(store)
    assert main([]) == 1
    assert rows_of(capsys.readouterr().out.splitlines())["unused files"] == ["1", "8"]
    assert stored(store) == {sha("kept")}
    house.commands.delete_job(job, tenant=TENANT)
    assert main([]) == 0
    with blobs.collecting_alone(house.database.engine):
        assert main([]) == os.EX_TEMPFAIL
    assert "another process collects them, or makes a backup" in capsys.readouterr().err
