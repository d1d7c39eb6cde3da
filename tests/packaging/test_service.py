"""``pip install 'quantry[server,worker]'`` into a fresh environment: the whole service, from any directory."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quantry import Quantry
from tests.packaging.fresh import LOCK, PIP, Environment, fresh_environment, write_foreign_packages
from tests.serving import STOP_SECONDS, Serving
from tests.tiny_models import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # pip takes minutes for torch and all that goes with it

REQUEST = {
    "model": {"source": "local", "id": "tiny"},
    "policy": {"preset": "smoothrot-w4a4"},
    "calibration": {"samples": 8, "sequence_length": 32},
    "evaluation": {"perplexity": {"tokens": 256, "sequence_length": 64}},
}


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Iterator[Environment]:
    with TemporaryDirectory(prefix="quantry-test-") as directory:
        made = fresh_environment(Path(directory) / "venv")
        # As `make env` does: torch first and by itself, so that the pinned build is taken as it is.
        made.install(*(line for line in LOCK.read_text().splitlines() if line.startswith("torch==")))
        made.install(f"{wheel}[server,worker]")
        yield made


def test_a_job_ends_well_among_folders_of_the_same_names(
    environment: Environment, foreign_directory: Path, server_data_dir: Path
) -> None:
    write_tiny_model(server_data_dir / "models" / "tiny", layers=1)
    write_foreign_packages(foreign_directory)
    found = environment.run(
        environment.python, "-P", "-c", "import quantry; print(quantry.__file__)", cwd=foreign_directory
    )
    assert Path(found.stdout.strip()).is_relative_to(environment.directory)

    service = Serving(
        server_data_dir,
        "--no-demo-model",
        program=(environment.command,),
        cwd=foreign_directory,
        environment={"PYTHONPATH": ""},
    )
    try:
        with Quantry(service.url()) as client:
            job = client.wait(client.submit(REQUEST).id, timeout_seconds=240)
            assert job.status == "succeeded", job.error
            paths = client.download(job.id, server_data_dir / "files")
        service.process.terminate()
        assert service.process.wait(STOP_SECONDS) == 0, service.said
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
    assert (server_data_dir / "files" / "checkpoint" / "model.safetensors") in paths
    assert "ended with" not in service.said, "a process was started again"
    for log in (server_data_dir / "logs").iterdir():
        assert "here was imported" not in log.read_text(), log.name


def test_what_is_installed_fits_together(environment: Environment) -> None:
    """Every requirement is there at a release that it allows."""
    command = [*PIP, f"--python={environment.python}", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
