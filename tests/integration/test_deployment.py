"""Dockerfile and docker-compose.yml without a Docker engine: their shape, and that every command in them exists."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.doors.hosts import HostRule
from api.http_protocol import BoundedHttp
from jobs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OURS = ("migrate", "api", "worker", "worker-gpu")
KEY = {"QUANTRY_API_KEY": "k" * 40}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def interpolated(text: str, environment: dict[str, str]) -> str:
    """Compose's ``${NAME}``, ``${NAME:-default}``, ``${NAME:+alternative}`` and ``${NAME:?message}``."""

    def value(match: re.Match[str]) -> str:
        name, operator, word = match.groups()
        found = environment.get(name, "")
        if operator == ":?" and not found:
            raise LookupError(word)
        if operator == ":+":
            return str(word) if found else ""
        return found or (word if operator == ":-" else "")

    return re.sub(r"\$\{(\w+)(?:(:[-+?])([^}]*))?\}", value, text)


def settings_of(service: dict[str, Any], environment: dict[str, str]) -> dict[str, str]:
    return {name: interpolated(str(value), environment) for name, value in service["environment"].items()}


def test_the_service_is_whole(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"postgres", "redis", *OURS}
    for name, service in compose["services"].items():
        for dependency, rule in service.get("depends_on", {}).items():
            assert dependency in compose["services"], name
            assert rule["condition"] in CONDITIONS
            if rule["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][dependency]
        for volume in service.get("volumes", ()):
            source = interpolated(volume, {}).split(":")[0]
            assert source in compose["volumes"], f"{name}: {volume}"


def test_nothing_starts_before_the_database_is_migrated(compose: dict[str, Any]) -> None:
    for name in ("api", "worker", "worker-gpu"):
        assert compose["services"][name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert compose["services"]["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_ports_are_published_to_this_machine_only(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])
    for name in ("worker", "worker-gpu"):
        metrics = str(compose["services"][name]["environment"]["QUANTRY_WORKER_METRICS_PORT"])
        assert compose["services"][name]["expose"] == [metrics], "inside the network only"


def test_workers_can_be_scaled_and_hand_their_jobs_back(compose: dict[str, Any]) -> None:
    for name in ("worker", "worker-gpu"):
        service = compose["services"][name]
        assert "container_name" not in service
        assert service["stop_signal"] == "SIGQUIT"
    gpu = compose["services"]["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert gpu["environment"]["QUANTRY_DEVICE"] == "auto"


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "environment",
    [KEY, KEY | {"QUANTRY_DATASETS_DIR": "/srv/text", "POSTGRES_PASSWORD": "s3cret", "QUANTRY_ALLOWED_HOSTS": "a.b"}],
)
def test_the_settings_are_accepted(
    compose: dict[str, Any], name: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("QUANTRY_")]:
        monkeypatch.delenv(variable)
    given = settings_of(compose["services"][name], environment)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    known = {f"QUANTRY_{field.upper()}" for field in Settings.model_fields}
    assert {variable for variable in given if variable.startswith("QUANTRY_")} <= known
    settings = Settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value().endswith("@postgres:5432/quantry")
    assert str(settings.models_dir) == "/models"
    assert (settings.datasets_dir is None) == ("QUANTRY_DATASETS_DIR" not in environment)
    if name == "api":
        assert settings.api_key is not None
        assert not settings.allow_anonymous
        rule = HostRule.of(settings)
        assert rule.allows("api")
        assert rule.allows("localhost")
        assert rule.allows("a.b") == ("QUANTRY_ALLOWED_HOSTS" in environment)
        assert not rule.allows("evil.example")


@pytest.mark.parametrize("environment", [{}, {"QUANTRY_API_KEY": ""}])
def test_without_a_key_nothing_starts_and_the_sentence_says_where_to_put_one(
    compose: dict[str, Any], environment: dict[str, str]
) -> None:
    with pytest.raises(LookupError, match=r"needs a key.*\.env.*QUANTRY_API_KEY="):
        settings_of(compose["services"]["api"], environment)
    # Nothing else in the file lets the API run without one.
    assert "QUANTRY_ALLOW_ANONYMOUS" not in (ROOT / "docker-compose.yml").read_text()


def test_the_commands_of_our_services_exist(compose: dict[str, Any], tmp_path: Path) -> None:
    """Console scripts by their package's entry point, modules by importing them where importing starts nothing."""
    scripts = {"alembic": "alembic.config", "uvicorn": "uvicorn", "celery": "celery"}
    for name in OURS:
        command = compose["services"][name].get("command") or dockerfile_json("CMD", -1)
        program = next(word for word in command if word != "env" and "=" not in word)
        importlib.import_module(scripts[program])
        assert (Path(sys.executable).parent / program).exists(), command
    for test in (compose["services"][name]["healthcheck"].get("test") for name in ("worker", "worker-gpu")):
        assert test == ["CMD", "python3", "-m", "worker.health"]
    done = subprocess.run(
        [sys.executable, "-m", "worker.health"],
        env={**os.environ, "QUANTRY_DATABASE_URL": "", "QUANTRY_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, "QUANTRY_DATABASE_URL is not set\n")


def test_alembic_upgrades_by_the_command_of_the_migrate_service(compose: dict[str, Any], database_url: str) -> None:
    """The database is migrated already: the command must find alembic.ini, connect, and have nothing left to do."""
    command = compose["services"]["migrate"]["command"]
    for arguments in (command, [command[0], "check"]):
        done = subprocess.run(
            [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]],
            cwd=ROOT,
            env={**os.environ, "QUANTRY_DATABASE_URL": database_url},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr


def dockerfile_json(instruction: str, which: int) -> list[str]:
    """The JSON form of an instruction of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    found: list[str] = json.loads(re.findall(rf"\b{instruction} (\[.*\])", text)[which])
    return found


def test_the_image_runs_as_nobody_special_and_tells_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text.rsplit("\nFROM ", 1)[1]
    assert "\nUSER quantry\n" in final
    check, run = dockerfile_json("CMD", 0), dockerfile_json("CMD", 1)
    assert "/healthz" in check[-1]
    compile(check[-1], "healthcheck", "exec")
    # The host rule of the settings must know what the socket does.
    listens = run[run.index("--host") + 1]
    assert run[:4] == ["env", f"QUANTRY_HOST={listens}", "uvicorn", "api.main:app"]
    module, _, name = run[run.index("--http") + 1].partition(":")
    assert getattr(importlib.import_module(module), name) is BoundedHttp


def test_the_image_gets_every_room_and_nothing_else() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for word in shlex.split(line)[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert rooms | {"alembic.ini"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed


def test_the_shell_of_the_dockerfile_parses() -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    for script in re.findall(r"^RUN (.*)$", text, re.M):
        subprocess.run([shell, "-n", "-c", script], check=True, timeout=10)
