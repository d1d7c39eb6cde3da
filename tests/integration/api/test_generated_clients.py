"""Clients that others generate from /openapi.json send what their caller said, and nothing else."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from api.main import create_app
from quant_engine.policy import PRESETS, policy_hash
from tests.integration.api.conftest import Hands

MODEL = {"source": "local", "id": "tiny"}


def generate(*command: str) -> None:
    # One generator formats what it made with the ruff that it finds on the path; unformatted, `1and` is a warning.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    # One generator only warns of what it can not express, and leaves it out.
    assert "Unable to" not in done.stdout + done.stderr, done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path with ``typed_client`` and ``typed_models``, as their generators make them."""
    folder = tmp_path_factory.mktemp("generated")
    document = folder / "openapi.json"
    document.write_text(json.dumps(create_app().openapi()))
    target = ("--output-path", str(folder / "typed_client"), "--meta", "none")
    generate("openapi_python_client", "generate", "--path", str(document), *target)
    target = ("--output-model-type", "pydantic_v2.BaseModel", "--output", str(folder / "typed_models.py"))
    generate("datamodel_code_generator", "--input", str(document), "--input-file-type", "openapi", *target)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in [name for name in sys.modules if name.startswith(("typed_client", "typed_models"))]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def models(packages: Path) -> ModuleType:
    """What ``datamodel-code-generator`` makes: pydantic models."""
    assert packages.is_dir()
    return importlib.import_module("typed_models")


def whole(name: str) -> dict[str, Any]:
    return PRESETS[name].policy.model_dump(mode="json")


def test_every_preset_survives_pydantic_models(models: ModuleType, client: httpx.Client) -> None:
    model = models.ModelReference(source="local", id="tiny")
    for name in PRESETS:
        named = models.JobRequest(model=model, policy=models.Policy(preset=name))
        spelled = models.JobRequest(model=model, policy=models.Policy.model_validate(whole(name)))
        for request in (named, spelled):
            # A plain dump has a null for everything that was left out.
            for body in (request.model_dump(mode="json"), request.model_dump(mode="json", exclude_unset=True)):
                response = client.post("/v1/jobs", json=body)
                assert response.status_code == 202, response.text
                answer = models.JobView.model_validate_json(response.content)
                assert answer.policy_hash == policy_hash(PRESETS[name].policy), name
                assert answer.policy.preset == name


def test_a_field_of_a_pydantic_model_overrides_and_the_rest_is_the_presets(
    models: ModuleType, client: httpx.Client
) -> None:
    policy = models.Policy(
        preset="best-w4a4",
        training=models.Nothing(kind="none"),
        weights=models.WeightQuantization(format="int8"),
        transform=models.Transform(alpha=0.4, damping=0.02),
    )
    request = models.JobRequest(model=models.ModelReference(**MODEL), policy=policy)
    shown = client.post("/v1/jobs", json=request.model_dump(mode="json")).json()["policy"]
    preset = whole("best-w4a4")
    assert shown == {
        **preset,
        "training": None,
        "weights": {**preset["weights"], "format": "int8"},
        "transform": {**preset["transform"], "alpha": 0.4, "damping": 0.02},
    }


def test_every_preset_survives_the_typed_client(packages: Path, url: str) -> None:
    assert packages.is_dir()
    typed, types = importlib.import_module("typed_client"), importlib.import_module("typed_client.models")
    create = importlib.import_module("typed_client.api.jobs.create_job")
    model = types.ModelReference.from_dict(MODEL)
    with typed.Client(base_url=url) as opened:
        for name in PRESETS:
            for policy in (types.Policy(preset=name), types.Policy.from_dict(whole(name))):
                answer = create.sync(client=opened, body=types.JobRequest(model=model, policy=policy))
                assert isinstance(answer, types.JobView), answer
                assert answer.policy_hash == policy_hash(PRESETS[name].policy), name
                assert answer.policy.to_dict() == whole(name)
        absent = create.sync(client=opened, body=types.JobRequest(model=model, policy=types.Policy()))
        assert (absent.code, absent.errors[0].pointer) == ("policy_required", "/policy")


def test_events_are_told_apart_by_type(models: ModuleType, client: httpx.Client, finished: str, hands: Hands) -> None:
    assert hands
    page = models.PageEventView.model_validate(client.get(f"/v1/jobs/{finished}/events").json())
    kinds = [type(event.root).__name__ for event in page.data]
    assert kinds[0] == "JobStatusEvent"
    assert kinds[-1] == "DoneEvent"
