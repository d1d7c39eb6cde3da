"""A kill inside a stage costs one unit of its work, and the run that takes it up ends with the same bytes.

Every stage that takes samples through the blocks is killed behind each block, in the middle of each, and at each rename
of a file; a run is taken up as often as it is killed. Stages that work site by site are killed behind each site.
"""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.quant_engine.kills import POLICIES, SPEC, cut_batches, die_at_renames, stage_files, watch
from tests.integration.quant_engine.runs import Killed, Killer, run_policy, run_until
from tests.tiny_models import write_tiny_model

LAYERS = 3
UNITS = {"calibrate": LAYERS, "train": LAYERS, "quantize": LAYERS, "evaluate": 2 * 2 * LAYERS}
"""Blocks, in each of two passes with each of two models where they are evaluated."""
THROUGH_BLOCKS = [("blocks", "calibrate"), ("blocks", "train"), ("blocks", "quantize"), ("blocks", "evaluate")]
SITE_BY_SITE = [("scales", "search"), ("scales", "train"), ("scales", "select")]
BY_STEPS = [("rotation", "train")]
_NEXT = {
    "blocks": {"calibrate": "train", "train": "select", "quantize": "evaluate", "evaluate": "export"},
    "rotation": {"train": "calibrate"},
    "scales": {"search": "train", "train": "select", "select": "quantize"},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3", layers=LAYERS, outliers=True)


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where runs without a kill are, by policy; each made once."""

    @cache
    def made(policy: str) -> Path:
        out = tmp_path_factory.mktemp("undisturbed")
        run_until(list(_NEXT[policy].values())[-1], model_dir, POLICIES[policy], out, **SPEC)
        return out

    return made


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_batches(monkeypatch)


class _Stage:
    """One stage of a run whose earlier stages are finished."""

    def __init__(self, policy: str, name: str, model: Path, undisturbed: Path, out: Path) -> None:
        self.policy, self.name, self.out, self._model = policy, name, out, model
        self.partial = out / "work" / f"{name}.partial"
        self._expected = stage_files(undisturbed, name)
        shutil.copytree(undisturbed / "work", out / "work")
        shutil.rmtree(out / "work" / name)
        for later in list(_NEXT[policy])[list(_NEXT[policy]).index(name) + 1 :]:
            shutil.rmtree(out / "work" / later, ignore_errors=True)

    def attempt(self, done: int | None = None) -> None:
        """Run until the stage has ``done`` units, until something kills, or to the stage's end."""
        at = (_NEXT[self.policy][self.name], 0) if done is None else (self.name, done)
        with pytest.raises(Killed):
            run_policy(self._model, POLICIES[self.policy], self.out, Killer(*at), **SPEC)

    def left(self) -> dict[str, int]:
        """When each file was written that an attempt has left of the stage; states come and go."""
        assert not (self.out / "work" / self.name).exists()
        paths = [path for path in self.partial.rglob("*") if path.is_file() and path.suffix not in (".state", ".tmp")]
        return {path.relative_to(self.partial).as_posix(): path.stat().st_mtime_ns for path in paths}

    def finish(self) -> None:
        """The last attempt, and what has to be true of every one."""
        self.attempt()
        directory = self.out / "work" / self.name
        assert stage_files(self.out, self.name) == self._expected
        assert not list(directory.rglob("*.state"))
        assert not any(name.endswith(".state") for name in json.loads((directory / "manifest.json").read_text()))


@pytest.fixture
def stage(request: pytest.FixtureRequest, model_dir: Path, undisturbed: Any, tmp_path: Path) -> _Stage:
    policy, name = request.param
    return _Stage(policy, name, model_dir, undisturbed(policy), tmp_path)


@pytest.mark.parametrize("stage", THROUGH_BLOCKS, ids="-".join, indirect=True)
def test_a_block_that_is_done_is_never_computed_again(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed behind every block in turn, each attempt computes the one block that comes next, and no other."""
    written: dict[str, int] = {}
    for done in range(1, UNITS[stage.name] + 1):
        with monkeypatch.context() as patch:
            work = watch(patch)
            stage.attempt(done)
        assert set(work.forwards) == {(done - 1) % LAYERS}
        assert len(list(stage.partial.glob("*.state"))) <= 2
        assert written.items() <= stage.left().items()
        written = stage.left()
    work = watch(monkeypatch)
    stage.finish()
    assert work.forwards == []


@pytest.mark.parametrize("stage", THROUGH_BLOCKS, ids="-".join, indirect=True)
def test_a_kill_within_a_block_costs_that_block(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of every block in turn, the next attempt begins with that block."""
    for unit in range(UNITS[stage.name]):
        with monkeypatch.context() as patch:
            work = watch(patch)
            work.fatal = 2
            stage.attempt()
            stage.attempt(unit + 1)
        assert set(work.forwards) == {unit % LAYERS}
        assert len(work.forwards) > 2
    stage.finish()


@pytest.mark.parametrize("stage", [*THROUGH_BLOCKS, *BY_STEPS], ids="-".join, indirect=True)
def test_killed_at_every_rename_it_ends_with_the_same_bytes(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt dies at the first rename, the second at its second, ... before it or behind it in turn."""
    with monkeypatch.context() as patch:
        attempts = 0
        for attempt in die_at_renames(patch, stage.partial):
            stage.attempt()
            attempts = attempt
    assert attempts > LAYERS
    stage.finish()


@pytest.mark.parametrize("stage", SITE_BY_SITE, ids="-".join, indirect=True)
def test_what_is_done_of_a_site_is_kept(stage: _Stage) -> None:
    written: dict[str, int] = {}
    for done in range(1, 2 * LAYERS + 1):
        stage.attempt(done)
        assert written.items() <= stage.left().items()
        written = stage.left()
    stage.finish()


@pytest.mark.parametrize("stage", BY_STEPS, ids="-".join, indirect=True)
def test_a_learned_rotation_goes_on_with_the_next_step(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    work = watch(monkeypatch)
    for step in range(1, 4):
        stage.attempt(step)
        assert work.steps == step
    stage.finish()
    assert work.steps == 3


def test_a_run_killed_for_real_ends_with_the_same_bytes(model_dir: Path, undisturbed: Any, tmp_path: Path) -> None:
    """SIGKILL behind a unit of every stage that has states, or files for its sites, and again in the next one."""
    plans = [
        ("blocks", [("calibrate", 1), ("train", 2), ("quantize", 1), ("evaluate", LAYERS + 1), ("export", 0)]),
        ("rotation", [("train", 2), ("calibrate", 0)]),
        ("scales", [("search", 3), ("train", 2), ("select", 1), ("quantize", 0)]),
    ]
    command = [sys.executable, "-m", "tests.integration.quant_engine.kills", str(model_dir), str(tmp_path)]
    command += [str(torch.get_num_threads()), json.dumps(plans)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert json.loads(answer.splitlines()[-1]) == [[-9] * len(deaths) for _, deaths in plans]
    for policy, stages in _NEXT.items():
        for stage in stages:
            assert stage_files(tmp_path / policy, stage) == stage_files(undisturbed(policy), stage)
