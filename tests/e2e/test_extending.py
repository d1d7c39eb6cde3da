"""Every example of ``docs/extending.md`` is applied to a copy of the source. The service runs from that copy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
import torch
from transformers import SmolLM3Config

from quantry import Job, Quantry
from tests import tiny_models
from tests.extending import apply_example, examples
from tests.serving import serving
from tests.source import ROOT, copy_source

pytestmark = pytest.mark.slow

TOUCHED: Final = {  # files that an example edits, and files that it adds
    "A transform": (2, 0),
    "A primitive": (2, 0),
    "An architecture": (1, 0),
    "A number format": (2, 0),
    "An endpoint": (2, 2),
    "A stage": (2, 1),
}
SIZES: Final[dict[str, Any]] = {
    "calibration": {"samples": 8, "sequence_length": 32},
    "evaluation": {"perplexity": {"tokens": 128, "sequence_length": 32}},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with every example applied, one after the other."""
    copy = copy_source(tmp_path_factory.mktemp("source"))
    for example in examples().values():
        apply_example(example, copy)
    return copy


@pytest.fixture(scope="module")
def client(source: Path) -> Iterator[Quantry]:
    """A client of the service that runs from the copy."""
    # Not under tmp_path: see server_data_dir.
    with TemporaryDirectory(prefix="quantry-test-", ignore_cleanup_errors=True) as directory:
        models = Path(directory) / "models"
        tiny_models.write_tiny_model(models / "llama", dtype=torch.bfloat16)
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(tiny_models.ARCHITECTURES, "smollm3", SmolLM3Config)
            tiny_models.write_tiny_model(models / "smollm3", "smollm3", layers=1)
        environment = {"PYTHONPATH": str(source)}
        with (
            serving(Path(directory), "--no-demo-model", cwd=source, environment=environment) as started,
            Quantry(started.url()) as made,
        ):
            yield made


def run(client: Quantry, policy: dict[str, Any], model: str = "llama") -> Job:
    """A job that has succeeded."""
    submitted = client.submit({"model": {"source": "local", "id": model}, "policy": policy, **SIZES})
    job = client.wait(submitted.id, timeout_seconds=240)
    assert job.status == "succeeded", job.error
    return job


def capabilities(client: Quantry) -> dict[str, Any]:
    found: dict[str, Any] = client._json("GET", "/v1/capabilities")
    return found


def test_an_example_touches_as_many_files_as_the_page_says() -> None:
    assert {title: (len(each.edited), len(each.added)) for title, each in examples().items()} == TOUCHED


def test_the_examples_are_as_tidy_as_the_rest(source: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", source)
    for arguments in (["check"], ["format", "--check"]):
        command = [Path(sys.executable).with_name("ruff"), *arguments, "--no-cache", "."]
        told = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=120)
        assert told.returncode == 0, told.stdout


def test_a_transform_of_a_new_primitive_is_used_and_stored(client: Quantry, tmp_path: Path) -> None:
    assert "random_rotation" in capabilities(client)["transforms"]["kinds"]
    four_bits = {"weights": {"format": "int4"}, "activations": {"format": "int4"}}
    job = run(client, {"targets": ["down_proj"], "transform": {"kind": "random_rotation"}, **four_bits})
    assert (job.summary or {})["policy"]["transforms"] == {"random_rotation": 2}
    client.download(job.id, tmp_path)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert '"reflection"' in json.dumps(config)


def test_a_model_of_a_new_architecture_is_quantized(client: Quantry) -> None:
    assert "SmolLM3ForCausalLM" in capabilities(client)["architectures"]
    job = run(client, {"preset": "w8a8"}, model="smollm3")
    assert {layer.block for layer in client.layers(job.id)} == {0}


def test_a_new_number_format_is_quantized_to(client: Quantry) -> None:
    assert "mxfp8" in capabilities(client)["weights"]["formats"]
    none = {"kind": "none"}
    number_format = {"weights": {"format": "mxfp8"}, "activations": {"format": "mxfp8"}}
    job = run(client, {"targets": ["o_proj"], "transform": none, **number_format})
    assert {layer.scheme for layer in client.layers(job.id)} == {"MXFP8"}


def test_a_new_endpoint_answers_the_client_of_the_same_release(client: Quantry, source: Path) -> None:
    program = "import sys; from quantry import Quantry; print(Quantry(sys.argv[1]).workers()[0]['device'])"
    told = subprocess.run(
        [sys.executable, "-c", program, client._transport.base_url],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.stdout.strip() == "cpu", told.stderr


def test_a_new_stage_is_run_and_shown(client: Quantry) -> None:
    job = run(client, {"preset": "rtn-w4a4"})
    names = [stage.name for stage in job.stages]
    assert names.index("load") < names.index("inspect") < names.index("calibrate")
    failed = client.submit({"model": {"source": "local", "id": "llama"}, "policy": {"preset": "rtn-w4a4"}, **SIZES})
    client.cancel(failed.id)
    client.wait(failed.id, timeout_seconds=60)
    assert client.wait(client.retry(failed.id, from_stage="inspect").id, timeout_seconds=240).status == "succeeded"
