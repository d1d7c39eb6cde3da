"""Backup and restore by the documented commands, on both flavors of server and both stores; and what they refuse."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from jobs.artifacts import open_store
from jobs.backup.layout import Layout
from jobs.backup.making import Backup, Made, require_database
from jobs.backup.restoring import Restore
from jobs.credentials import CredentialService, Vault
from jobs.embedded import embedded_database, embedded_services
from jobs.embedded.postgres import embedded_programs
from jobs.job.commands import JobCommands
from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.job.queries import JobQueries
from jobs.kit.errors import ArtifactsExpired, InstallationError, Unavailable
from jobs.kit.states import JobStatus
from jobs.publications.lease import PublicationLeases
from jobs.publications.service import PublicationService
from jobs.repository import blobs, migrate
from jobs.repository.database import Database
from jobs.retention.collector import Collector
from jobs.retention.expiry import Expiry
from jobs.settings import Settings
from quant_engine.policy.request import HubTarget
from tests.faults.servers import POSTGRES, DebianPostgres
from tests.integration.jobs.conftest import TENANT, CountingNudger, House, layer
from tests.s3_server import S3Server
from tests.sound_model import write_sound_model

TOKEN = "hf_hunter2"  # noqa: S105 — opens nothing
ROOT = Path(__file__).resolve().parents[3]
EAGER = {"gc_grace_seconds": -60.0}


@contextmanager
def house_on(url: str, settings: Settings) -> Iterator[House]:
    """The jobs room on another database."""
    database, store, nudger = Database(url), open_store(settings), CountingNudger()
    commands, queries = JobCommands(database, settings, store, nudger), JobQueries(database, settings, store)
    try:
        yield House(database, settings, store, nudger, commands, queries, JobLeases(database, settings))
    finally:
        database.close()


def publish(house: House, claim: Claim, **files: str) -> None:
    output = house.settings.work_dir / claim.job_id
    (output / "checkpoint").mkdir(parents=True)
    for name, content in {"config": "{}", **files}.items():
        (output / "checkpoint" / name).write_text(content)
    artifacts = house.store.put(output)
    assert house.leases.publish(
        claim, Manifest(summary={"a": 1}, report={"b": 2}, layers=[layer()], artifacts=artifacts)
    )


def succeeded(house: House, **files: str) -> str:
    job = house.submit()
    publish(house, house.claim(), **files)
    return job


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Filled:
    """A service in the middle of its work."""

    done: tuple[str, str]
    expired: str
    queued: str
    running: Claim
    publication: str
    credential: str
    seen: dict[str, Any]


def fill(house: House) -> Filled:
    """Jobs in every state, a publication, a credential; the clock of one job's files ran out."""
    expired = succeeded(house, weights="long ago")
    house.shift(expired, "finished_at", -1e6)
    kept = house.settings.model_copy(update={"retention_artifacts_seconds": 86_400.0})
    Expiry(database=house.database, settings=kept).run()
    done = succeeded(house, weights="one"), succeeded(house, weights="two" * 100_000)
    failed = house.submit()
    house.commands.cancel_job(failed, tenant=TENANT)
    house.submit()
    running, queued = house.claim(), house.submit()
    publications = PublicationService(house.database, house.settings)
    publication = publications.create(done[0], HubTarget(repo="somebody/model"), tenant=TENANT)
    credentials = CredentialService(house.database, Vault.open(house.settings))
    credential = credentials.create(tenant=TENANT, name="mine", token=SecretStr(TOKEN))
    seen = {job: shown(house, job) for job in (*done, expired, failed)}
    return Filled(done, expired, queued, running, publication.id, credential.id, seen)


def shown(house: House, job: str) -> Any:
    """All that the service says of a job."""
    queries = house.queries
    log = queries.list_events(job, tenant=TENANT, limit=1000)
    return [
        queries.get_job(job, tenant=TENANT),
        log,
        queries.list_layers(job, tenant=TENANT),
        queries.list_artifacts(job, tenant=TENANT),
    ]


def assert_whole(house: House, before: Filled, stale: list[Claim]) -> None:
    """What was true of the service when it was backed up is true of this one."""
    assert {job: shown(house, job) for job in before.seen} == before.seen
    for job in before.done:
        for file in house.queries.archive_files(job, tenant=TENANT):
            content = b"".join(file.read())
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.view.bytes, file.view.sha256)
    with pytest.raises(ArtifactsExpired):
        house.queries.archive_files(before.expired, tenant=TENANT)
    credentials = CredentialService(house.database, Vault.open(house.settings))
    assert credentials.hub_token(before.credential, tenant=TENANT) == TOKEN
    publication = PublicationLeases(house.database, house.settings).claim("w9")
    assert publication is not None
    assert publication.publication_id == before.publication
    assert_goes_on(house, before, stale)


def assert_goes_on(house: House, before: Filled, stale: list[Claim]) -> None:
    """Queued and running jobs resume, and nobody of before the restore has a say in it."""
    for claim in stale:
        assert not house.leases.heartbeat(claim).ok
        assert not house.leases.append_event(claim, "log", {"message": "from beyond"})
    house.expire(before.running.job_id)
    assert house.leases.sweep().requeued == 1
    claims = {claim.job_id: claim for claim in (house.claim("w8"), house.claim("w8"))}
    assert claims.keys() == {before.running.job_id, before.queued}
    assert claims[before.running.job_id].fence > max((before.running, *stale), key=lambda claim: claim.fence).fence
    publish(house, claims[before.queued], weights="three")
    assert house.status(before.queued) == JobStatus.SUCCEEDED
    collected = Collector.of(house.database, house.settings).run()
    assert collected is not None
    assert collected.missing == ()


def quantry(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command as an operator gives it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")}
    return subprocess.run(
        [sys.executable, "-m", "quantry", *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*arguments: str, **environment: str) -> str:
    done = quantry(*arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settings_of(data_dir: Path, **fields: Any) -> Settings:
    write_sound_model(data_dir / "models" / "tiny")
    return Settings(data_dir=data_dir, retry_delay_seconds=0, **fields)


def time_goes_on(house: House, before: Filled) -> list[Claim]:
    """After the backup: the running job is given to another worker. The claims that then go stale."""
    house.expire(before.running.job_id)
    house.leases.sweep()
    later = house.claim("w2")
    assert (later.job_id, later.fence) == (before.running.job_id, before.running.fence + 1)
    return [before.running, later]


def test_the_embedded_service_of_a_data_directory(server_data_dir: Path) -> None:
    old, new = server_data_dir / "old", server_data_dir / "new"
    settings, directory = settings_of(old), str(server_data_dir / "backup")
    with running(settings) as house:
        before = fill(house)
        said = succeed("backup", directory, "--data-dir", str(old))
        assert "3 files, 300005 bytes" in said, "of six jobs; one's files expired, others have none or equal ones"
        assert "expired jobs" in succeed("gc", "--dry-run", "--data-dir", str(old))
        stale = time_goes_on(house, before)
        with pytest.raises(InstallationError, match="already runs on"), embedded_database(settings):
            pass  # what a restore works in
    assert "0 of them new" in succeed("backup", directory, "--data-dir", str(old)), "of a service that does not run"
    assert "restored 6 jobs and 3 files" in succeed("restore", directory, "--data-dir", str(new))
    with running(settings_of(new)) as house:
        assert_whole(house, replace(before, running=stale[-1]), stale)


@contextmanager
def running(settings: Settings) -> Iterator[House]:
    """The embedded service of a data directory, without its broker."""
    without_broker = settings.model_copy(update={"broker_url": SecretStr("redis://none")})
    with embedded_services(without_broker) as urls, house_on(urls.database_url, settings) as house:
        yield house


@pytest.fixture
def debian(server_data_dir: Path) -> Iterator[str]:
    """The URL of Debian's PostgreSQL, with the databases ``old``, which is migrated, and ``new``."""
    sockets = server_data_dir / "run"
    sockets.mkdir()
    server = DebianPostgres(server_data_dir, sockets)
    server.start()
    url = f"postgresql://quantry@/postgres?host={sockets / 'pg15'}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE old")
        connection.execute("CREATE DATABASE new")
    database = Database(url.replace("/postgres?", "/old?"))
    migrate.upgrade(database)
    database.close()
    yield url
    server.stop()


@pytest.mark.skipif(not (POSTGRES / "pg_dump").exists(), reason="Debian's postgresql-15 is not installed")
def test_a_service_on_debians_postgresql_and_s3(
    debian: str, server_data_dir: Path, server: S3Server, bucket: str, s3_settings: dict[str, str]
) -> None:
    bucket_of_new = server.make_bucket(f"{bucket}-new")
    old = settings_of(server_data_dir / "old", **s3_settings)
    new = settings_of(server_data_dir / "new", **{**s3_settings, "artifacts_url": f"s3://{bucket_of_new}"})
    url_of_old, url_of_new = (debian.replace("/postgres?", f"/{name}?") for name in ("old", "new"))
    directory = str(server_data_dir / "backup")
    with house_on(url_of_old, old) as house:
        before = fill(house)
        succeed("backup", directory, **environment_of(old, url_of_old))
        stale = time_goes_on(house, before)
    succeed("restore", directory, **environment_of(new, url_of_new))
    with house_on(url_of_new, new) as house:
        assert_whole(house, before, stale)


def environment_of(settings: Settings, url: str) -> dict[str, str]:
    """The variables of a service on a server and an S3 store."""
    return {
        "QUANTRY_DATABASE_URL": url,
        "QUANTRY_DATA_DIR": str(settings.data_dir),
        "QUANTRY_ARTIFACTS_URL": str(settings.artifacts_url),
        "QUANTRY_S3_ENDPOINT_URL": str(settings.s3_endpoint_url),
    }


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "backup")


@pytest.fixture
def empty(house: House, database_url: str, tmp_path: Path) -> Iterator[House]:
    """A second service on the same server, without tables and without a store."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
        with house_on(database_url.replace("/postgres?", "/restored?"), settings_of(tmp_path / "new")) as empty:
            assert empty.settings.data_dir != house.settings.data_dir
            yield empty
        connection.execute("DROP DATABASE restored WITH (FORCE)")


def make(house: House, layout: Layout, **options: Any) -> Made:
    return Backup(database=house.database, settings=house.settings, layout=layout, **options).make()


def restore(house: House, layout: Layout) -> Any:
    return Restore(database=house.database, settings=house.settings, layout=layout).make()


BY_HAND = """
pg_dump --format=custom --no-owner --file=backup/quantry.dump "$OLD"
cp -a var/artifacts var/secret.key backup/

cp -a backup/artifacts backup/secret.key new/
pg_restore --no-owner --single-transaction --exit-on-error --dbname="$QUANTRY_DATABASE_URL" backup/quantry.dump
alembic upgrade head
"""


def test_by_hand(house: House, empty: House, tmp_path: Path) -> None:
    before = fill(house)
    (tmp_path / "backup").mkdir()
    path = f"{max(embedded_programs().items())[1]}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    urls = {
        name: each.database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        for name, each in (("OLD", house), ("QUANTRY_DATABASE_URL", empty))
    }
    shell = ["bash", "-euc", f"cd {tmp_path}\n{BY_HAND.replace('alembic', f'cd {ROOT}; alembic')}"]
    done = subprocess.run(shell, env={**os.environ, **urls, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_whole(empty, before, [])


def test_the_page_for_operators_has_the_commands_that_are_tested() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert BY_HAND.replace("$OLD", "$QUANTRY_DATABASE_URL").strip() in page
    assert "quantry backup DIR" in page
    assert "quantry restore DIR" in page
    for field in Settings.model_fields:
        if "retention" in field or field in {"gc_grace_seconds", "idempotency_seconds"}:
            assert f"| `QUANTRY_{field.upper()}` |" in page


def test_a_backup_has_its_files_though_jobs_go_meanwhile(house: House, empty: House, layout: Layout) -> None:
    job = succeeded(house, weights="one")
    asked: list[str] = []

    def go_meanwhile(what: str) -> None:
        """Between the dump and the files: the job is deleted, and a worker wants to collect what it had."""
        asked.append(what)
        if what.startswith("copying"):
            house.commands.delete_job(job, tenant=TENANT)
            collector = Collector.of(house.database, house.settings.model_copy(update=EAGER))
            assert collector.run() is None, "the backup keeps it out"

    made = make(house, layout, say=go_meanwhile)
    assert asked[-1] == "copying 2 files"
    assert (made.description.files, made.fetched, made.missing) == (2, 2, ())
    collected = Collector.of(house.database, house.settings.model_copy(update=EAGER)).run()
    assert collected is not None
    assert collected.blobs == 2, "afterwards it goes on"
    restored = restore(empty, layout)
    assert (restored.jobs, restored.files, restored.missing) == (1, 2, ())
    assert [b"".join(file.read()) for file in empty.queries.archive_files(job, tenant=TENANT)] == [b"{}", b"one"]


def test_again_into_the_same_directory(house: House, empty: House, layout: Layout) -> None:
    first, second = succeeded(house, weights="one"), succeeded(house, weights="two")
    assert make(house, layout).fetched == 3
    house.commands.delete_job(first, tenant=TENANT)
    succeeded(house, weights="three")
    assert make(house, layout).fetched == 1
    assert {blob.sha256 for blob in layout.store.blobs()} == {digest(each) for each in ("{}", "two", "three")}
    assert restore(empty, layout).jobs == 2
    assert len(empty.queries.archive_files(second, tenant=TENANT)) == 2


def test_what_the_first_release_published_is_restored_as_a_blob(house: House, empty: House, layout: Layout) -> None:
    job = succeeded(house, weights="one")
    house.store.delete(digest("one"))
    old = house.settings.artifacts_dir / job / "1" / "checkpoint" / "weights"
    old.parent.mkdir(parents=True)
    old.write_text("one")
    assert make(house, layout).missing == ()
    restore(empty, layout)
    assert b"".join(empty.queries.archive_files(job, tenant=TENANT)[1].read()) == b"one"


def test_files_that_are_gone_or_damaged_are_told(house: House, empty: House, layout: Layout) -> None:
    succeeded(house, lost="one", damaged="two")
    house.store.delete(digest("one"))
    damaged = house.settings.artifacts_dir / "blobs" / digest("two")[:2] / digest("two")
    damaged.chmod(0o644)
    damaged.write_text("owt")
    made = make(house, layout)
    assert {file.path for file in made.missing} == {"checkpoint/lost", "checkpoint/damaged"}
    assert made.description.files == 1
    restored = restore(empty, layout)
    assert {file.path for file in restored.missing} == {"checkpoint/lost", "checkpoint/damaged"}


def test_without_files_the_store_is_somebody_elses_care(house: House, empty: House, layout: Layout) -> None:
    job = succeeded(house, weights="one")
    made = make(house, layout, with_files=False)
    assert made.description.files is None
    assert not layout.blobs.exists()
    same_store = replace(empty, settings=house.settings)
    assert restore(same_store, layout).missing == ()
    assert empty.status(job) == JobStatus.SUCCEEDED


def test_the_key_is_the_owners_alone_and_never_overwrites_another(house: House, empty: House, layout: Layout) -> None:
    Vault.open(house.settings)
    assert make(house, layout).description.has_key
    assert layout.key.stat().st_mode & 0o777 == 0o600
    assert layout.root.stat().st_mode & 0o077 == 0
    Vault.open(empty.settings)
    with pytest.raises(InstallationError, match="another key"):
        restore(empty, layout)
    (empty.settings.data_dir / "secret.key").unlink()
    restore(empty, layout)
    assert (empty.settings.data_dir / "secret.key").read_bytes() == layout.key.read_bytes()
    held = house.settings.model_copy(update={"secret_key": SecretStr("elsewhere")})
    assert not make(replace(house, settings=held), layout).description.has_key
    assert not layout.key.exists()


def test_a_service_with_jobs_is_not_overwritten(house: House, empty: House, layout: Layout) -> None:
    succeeded(house, weights="one")
    make(house, layout)
    migrate.upgrade(empty.database)
    mine = empty.submit()
    with pytest.raises(InstallationError, match="jobs has rows"):
        restore(empty, layout)
    assert empty.status(mine) == JobStatus.QUEUED


def test_a_dump_that_breaks_leaves_the_service_empty_and_a_repetition_whole(
    house: House, empty: House, layout: Layout
) -> None:
    succeeded(house, weights="one")
    make(house, layout)
    whole = layout.dump.read_bytes()
    layout.dump.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InstallationError, match="pg_restore failed"):
        restore(empty, layout)
    layout.dump.write_bytes(whole)
    assert restore(empty, layout).jobs == 1


def test_an_interrupted_backup_is_none(house: House, empty: House, layout: Layout) -> None:
    def interrupt(what: str) -> None:
        if what.startswith("copying"):
            raise KeyboardInterrupt

    succeeded(house, weights="one")
    with pytest.raises(KeyboardInterrupt):
        make(house, layout, say=interrupt)
    with pytest.raises(InstallationError, match="no complete backup"):
        restore(empty, layout)
    assert make(house, layout).description.files == 2


def test_a_database_of_no_release(empty: House, layout: Layout) -> None:
    with pytest.raises(InstallationError, match="not those of this release"):
        make(empty, layout)
    assert not layout.description.exists()


def test_a_backup_waits_for_a_collection_and_gives_up(house: House, layout: Layout) -> None:
    with blobs.collecting_alone(house.database.engine), pytest.raises(Unavailable, match="collects garbage"):
        make(house, layout, patience_seconds=0)


@pytest.mark.parametrize("broken", ["", "{", '{"format": 1}', '{"format": 2}'])
def test_a_directory_that_is_no_backup(empty: House, layout: Layout, broken: str) -> None:
    layout.root.mkdir()
    if broken:
        layout.description.write_text(broken)
    with pytest.raises(InstallationError, match=r"no complete backup|reads 1"):
        restore(empty, layout)


def test_no_service_at_all(tmp_path: Path) -> None:
    done = quantry("gc", "--data-dir", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "QUANTRY_DATABASE_URL is not set, and no 'quantry serve' runs on" in done.stderr
    with pytest.raises(InstallationError, match="has no database"):
        require_database(Settings(data_dir=tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
