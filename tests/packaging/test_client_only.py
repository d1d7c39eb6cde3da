"""``pip install quantry``, without extras, into a fresh environment: the client and the policy, and nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.packaging.fresh import FOREIGN, Environment, fresh_environment, write_foreign_packages
from tests.unit.quantry.conftest import ScriptedServer, job_body, json_answer

pytestmark = pytest.mark.slow

ABSENT = {"torch", "sqlalchemy", "celery", "fastapi", "transformers", "numpy", "psutil", "redis", "alembic", "uvicorn"}

OFFLINE = """
import sys
import quantry
from quantry import JobRequest, Quantry, QuantryError
from quant_engine.policy import policy_hash, resolve_policy

body = {"model": {"source": "local", "id": "tiny"}, "policy": {"preset": "trainable-smoothrot-w4a4"}}
request = JobRequest.model_validate(body)
print(quantry.__file__)
print(policy_hash(resolve_policy(request.policy)))
try:
    JobRequest.model_validate(body | {"policy": {"preset": "w4a16", "targets": 1}})
except ValueError as error:
    print(error.errors()[0]["loc"])
with Quantry("http://127.0.0.1:1", retries=0) as client:
    try:
        client.submit(request)
    except QuantryError as error:
        print(error.code)
"""


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Iterator[Environment]:
    with TemporaryDirectory(prefix="quantry-test-") as directory:
        made = fresh_environment(Path(directory) / "venv")
        made.install(str(wheel))
        yield made


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    started = ScriptedServer()
    yield started
    started.close()


def test_torch_sqlalchemy_and_celery_are_not_installed(environment: Environment, foreign_directory: Path) -> None:
    installed = environment.distributions(foreign_directory)
    assert {"quantry", "httpx", "pydantic"} <= installed
    assert installed & ABSENT == set()


def test_it_is_imported_and_a_policy_is_checked_offline(environment: Environment, foreign_directory: Path) -> None:
    done = environment.run(environment.python, "-W", "error", "-c", OFFLINE, cwd=foreign_directory)
    assert done.returncode == 0, done.stderr
    home, digest, wrong, code = done.stdout.splitlines()
    assert Path(home).is_relative_to(environment.directory)
    assert digest
    assert "targets" in wrong
    assert code == "unreachable"


def test_the_commands_of_the_client_work(
    environment: Environment, server: ScriptedServer, foreign_directory: Path
) -> None:
    write_foreign_packages(foreign_directory)
    for program in ((environment.command,), (environment.python, "-P", "-m", "quantry")):
        shown = environment.run(*program, "--help", cwd=foreign_directory)
        assert shown.returncode == 0, shown.stderr
        for name in ("serve", "submit", "watch", "backup", "webhooks"):
            assert name in shown.stdout
        server.answers = [json_answer(job_body("queued"), 202)]
        done = environment.run(
            *program, "submit", "local:tiny", "--preset", "w4a16", cwd=foreign_directory, QUANTRY_URL=server.url
        )
        assert (done.returncode, done.stdout) == (0, "job_1\n"), done.stderr
    assert json.loads(server.received[-1].body)["policy"] == {"preset": "w4a16"}


def test_python_m_leaves_the_current_directory_aside(environment: Environment, foreign_directory: Path) -> None:
    """Python itself finds ``quantry`` in the current directory first; every other name is found where it should be."""
    write_foreign_packages(foreign_directory, names=tuple(name for name in FOREIGN if name != "quantry"))
    done = environment.run(environment.python, "-m", "quantry", "--help", cwd=foreign_directory)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("serve",), ("demo",), ("gc",), ("backup", "there"), ("restore", "there")])
def test_a_command_that_needs_the_extras_says_how_to_get_them(
    environment: Environment, foreign_directory: Path, arguments: tuple[str, ...]
) -> None:
    done = environment.run(environment.command, *arguments, cwd=foreign_directory)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error [extras_missing]: ")
    assert line.endswith("pip install 'quantry[server,worker]'.")
    assert list(foreign_directory.iterdir()) == []


def test_a_type_checker_knows_the_types_of_the_client(environment: Environment, foreign_directory: Path) -> None:
    snippet = foreign_directory / "snippet.py"
    snippet.write_text('from quantry import Quantry\n\nreveal_type(Quantry("http://x").get("job_1").is_terminal)\n')
    command = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={environment.python}", str(snippet)]
    told = subprocess.run(command, cwd=foreign_directory, capture_output=True, text=True, check=False, timeout=120)
    assert 'Revealed type is "bool"' in told.stdout, told.stdout + told.stderr
