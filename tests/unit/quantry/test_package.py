"""What importing ``quantry`` gives, and what it leaves unloaded."""

import ast
import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import quantry
from jobs.webhooks.signing import new_secret, signed_headers
from quantry import webhooks
from quantry.cli.main import app
from quantry.errors import FieldError, QuantryError
from quantry.service import extras

ROOT = Path(__file__).resolve().parents[3]
SERVICE_ONLY = ("torch", "transformers", "numpy", "sqlalchemy", "alembic", "celery", "fastapi", "uvicorn", "psutil")
CLIENT = ("httpx", "pydantic", "rich", "typer")


def loaded_by(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of ``names`` a fresh interpreter has loaded after the statement."""
    program = f"import sys\n{statement}\nprint(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.parametrize("statement", ["from quantry import *", "import quantry.cli.main"])
def test_the_client_and_its_commands_load_nothing_of_the_service(statement: str) -> None:
    assert loaded_by(statement, (*SERVICE_ONLY, "pydantic_settings", "structlog", "api", "jobs", "worker")) == []


def test_the_verifier_needs_the_standard_library_alone(tmp_path: Path) -> None:
    assert loaded_by("from quantry.webhooks import verify", (*CLIENT, "quantry.client", *SERVICE_ONLY)) == []
    shutil.copy(str(webhooks.__file__), tmp_path / "copied.py")
    secret, body = new_secret(), b'{"type": "job.succeeded"}'
    headers = signed_headers("msg_1", 1, body, [secret])
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import copied\n"
        f"print(copied.verify({secret!r}, {headers!r}, {body!r}, clock=lambda: 1)['type'])"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "job.succeeded\n"


def test_every_public_name_is_there_and_no_other() -> None:
    for name in quantry.__all__:
        assert getattr(quantry, name).__name__ == name
    assert set(quantry.__all__) <= set(dir(quantry))
    tree = ast.parse(Path(str(quantry.__file__)).read_text())
    (typing_only,) = [each for each in tree.body if isinstance(each, ast.If)]
    imports = [each for each in typing_only.body if isinstance(each, ast.ImportFrom)]
    declared = {(alias.name, each.module) for each in imports for alias in each.names}
    assert declared == set(quantry._MODULE_OF.items()), "what a type checker sees is what an import gives"
    assert sorted(quantry._MODULE_OF) == sorted(quantry.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Quantri'"):
        quantry.Quantri  # type: ignore[attr-defined]  # noqa: B018 - the access is the test


def test_a_missing_extra_is_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_REQUIRED", {"server": ("sys", "no_such_module"), "worker": ("nor_this",)})
    for command in (["serve"], ["demo"], ["gc"], ["backup", "there"], ["restore", "there"]):
        failed = CliRunner().invoke(app, command).exception
        assert isinstance(failed, QuantryError)
        assert failed.code == "extras_missing"
        assert "no_such_module" in failed.detail
        assert "sys" not in failed.detail.split()
        assert failed.hint == "Install them with: pip install 'quantry[server,worker]'."


def test_python_m_leaves_the_current_directory_aside(tmp_path: Path) -> None:
    for name in ("quant_engine", "rich", "typer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported from here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "quantry", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "submit" in done.stdout


def test_an_error_survives_pickle_and_copy() -> None:
    error = QuantryError("code", "detail", (FieldError(pointer="/a", code="c", detail="d"),), status=422, hint="Do.")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert (type(again), str(again), vars(again)) == (QuantryError, "code: detail", vars(error))


def test_a_traceback_shows_the_wrong_fields() -> None:
    field = FieldError(pointer="/calibration/samples", code="greater_than_equal", detail="Must be 4 or more.")
    told = "invalid_request: 1 field does not fit. /calibration/samples: Must be 4 or more."
    assert str(QuantryError("invalid_request", "1 field does not fit.", (field,))) == told
    assert str(QuantryError("code", "Must be 4 or more.", (field,))) == "code: Must be 4 or more."


@pytest.mark.parametrize("package", ["quantry", "quant_engine"])
def test_a_type_checker_may_read_the_package(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
