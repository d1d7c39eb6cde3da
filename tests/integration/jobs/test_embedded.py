"""The private servers: durable across restarts and kills, one instance per directory, gone with their process."""

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from jobs.embedded import EmbeddedServices, embedded_services
from jobs.job.nudge import redis_url
from jobs.kit.errors import InstallationError
from jobs.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def environment(data_dir: Path, **extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("QUANTRY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "QUANTRY_DATA_DIR": str(data_dir), **extra}


@contextmanager
def holder(data_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """``python -m jobs.embedded`` with a pipe for its standard input, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "jobs.embedded"],
        env=environment(data_dir),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def servers_of(data_dir: Path) -> list[psutil.Process]:
    """Processes of the servers on this directory."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [])  # None for a process that is just ending
        if process.info["name"] in {"postgres", "valkey-server"} and str(data_dir) in command:
            found.append(process)
    return found


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def remember(database_url: str, value: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS remembered (value text)")
        connection.execute("INSERT INTO remembered VALUES (%s)", (value,))


def remembered(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        return [row[0] for row in connection.execute("SELECT value FROM remembered ORDER BY value")]


def test_a_second_instance_on_the_same_directory_is_refused(server_data_dir: Path) -> None:
    settings = Settings(data_dir=server_data_dir)
    with embedded_services(settings) as urls:
        broker = redis.Redis.from_url(redis_url(urls.broker_url))
        assert broker.ping()
        broker.close()
        with (
            pytest.raises(InstallationError, match=rf"process {os.getpid()}.*QUANTRY_DATA_DIR"),
            embedded_services(settings),
        ):
            pass
        remember(urls.database_url, "still here")
    assert not servers_of(server_data_dir)


def test_data_outlives_a_kill_of_everything_and_a_pid_file_that_points_at_somebody_else(server_data_dir: Path) -> None:
    with holder(server_data_dir) as (process, urls):
        remember(urls["database_url"], "before")
        process.send_signal(signal.SIGSTOP)  # or it would start them again
        for server in servers_of(server_data_dir):
            server.kill()
        process.kill()
        process.wait()
    assert eventually(lambda: not servers_of(server_data_dir))
    pid_file = server_data_dir / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with embedded_services(Settings(data_dir=server_data_dir)) as again:
        remember(again.database_url, "later")
        assert remembered(again.database_url) == ["before", "later"]


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_the_servers_die_with_a_killed_holder(server_data_dir: Path) -> None:
    with holder(server_data_dir) as (process, urls):
        remember(urls["database_url"], "durable")
        process.kill()
        process.wait()
        assert eventually(lambda: not servers_of(server_data_dir))
    with embedded_services(Settings(data_dir=server_data_dir)) as again:
        assert remembered(again.database_url) == ["durable"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "closed input"])
def test_the_holder_stops_cleanly_when_told_to(server_data_dir: Path, how: str) -> None:
    with holder(server_data_dir) as (process, _):
        assert process.stdin is not None
        if how == "closed input":
            process.stdin.close()
            process.stdin = None
        else:
            process.send_signal(getattr(signal, how))
        assert process.wait(30) == 0
        assert not servers_of(server_data_dir)
        assert not (server_data_dir / "postgres" / "postmaster.pid").exists()


def test_the_holder_starts_a_dead_server_again_on_the_same_urls(server_data_dir: Path) -> None:
    with holder(server_data_dir) as (_, urls):
        remember(urls["database_url"], "kept")
        postmaster = int((server_data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        valkey = next(server for server in servers_of(server_data_dir) if server.name() == "valkey-server")
        valkey.kill()
        psutil.Process(postmaster).kill()

        def answers() -> bool:
            try:
                client = redis.Redis.from_url(redis_url(urls["broker_url"]))
                client.ping()
                client.close()
                return remembered(urls["database_url"]) == ["kept"]
            except (redis.RedisError, psycopg.OperationalError):
                return False

        assert eventually(answers)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_an_ordinary_user_can_run_them_too(server_data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(server_data_dir, nobody.pw_uid, nobody.pw_gid)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment(server_data_dir),
            input="",
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
        )

    try:
        reachable = run("-c", "import jobs, psycopg").returncode == 0
    except PermissionError:
        reachable = False
    if not reachable:
        pytest.skip("this checkout is closed to other users")
    result = run("-m", "jobs.embedded")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["database_url"].startswith("postgresql://")
    assert (server_data_dir / "postgres").stat().st_uid == nobody.pw_uid
    assert not servers_of(server_data_dir)


def test_a_broken_cluster_is_reported_with_the_end_of_its_log(server_data_dir: Path) -> None:
    (server_data_dir / "postgres").mkdir()
    (server_data_dir / "postgres" / "PG_VERSION").write_text("18\n")
    with pytest.raises(InstallationError, match=r"PostgreSQL ended with code[\s\S]*postgresql\.conf"):
        EmbeddedServices(Settings(data_dir=server_data_dir)).start()
    assert not servers_of(server_data_dir)


def test_a_cluster_of_another_version_is_not_touched(server_data_dir: Path) -> None:
    (server_data_dir / "postgres").mkdir()
    (server_data_dir / "postgres" / "PG_VERSION").write_text("11\n")
    with pytest.raises(InstallationError, match="made by PostgreSQL 11"):
        EmbeddedServices(Settings(data_dir=server_data_dir)).start()


def test_a_long_data_directory_gets_its_sockets_elsewhere(server_data_dir: Path) -> None:
    with embedded_services(Settings(data_dir=server_data_dir / ("d" * 60) / ("e" * 60))) as urls:
        sockets = Path(urls.broker_url.removeprefix("redis+socket://")).parent
        assert len(urls.broker_url) < 100
        remember(urls.database_url, "x")
    assert not sockets.exists()


def test_given_servers_are_used_and_only_migrated(database_url: str, server_data_dir: Path) -> None:
    settings = Settings.model_validate(
        {"data_dir": server_data_dir, "database_url": database_url, "broker_url": "redis://127.0.0.1:1/0"}
    )
    with embedded_services(settings) as urls:
        assert (urls.database_url, urls.broker_url) == (database_url, "redis://127.0.0.1:1/0")
        assert list(server_data_dir.iterdir()) == []


def test_bad_settings_end_the_holder_with_a_message(server_data_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jobs.embedded"],
        env=environment(server_data_dir, QUANTRY_HOST="0.0.0.0"),  # noqa: S104 — refusing it is the point
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 2
    assert "QUANTRY_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr
