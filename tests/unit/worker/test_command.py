"""``python -m worker``: Celery's worker, and where it looks for its code."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_it_takes_celerys_options_and_imports_nothing_from_here(tmp_path: Path) -> None:
    for name in ("celery", "jobs", "sqlalchemy", "worker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported from here')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "worker", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "QUANTRY_DATABASE_URL": "", "QUANTRY_BROKER_URL": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    refused = run("--loglevel=INFO")
    assert refused.returncode == 1
    assert "The worker needs QUANTRY_DATABASE_URL and QUANTRY_BROKER_URL." in refused.stderr
    wrong = run("--no-such-option")
    assert wrong.returncode == 2
    assert "--no-such-option" in wrong.stderr
