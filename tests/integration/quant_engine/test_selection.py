"""The stage that selects, on a tiny model: what each kind of selection leaves, and that it resumes to the same bits."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant_engine.models import Site
from quant_engine.policy import BlockTraining, Policy, Statistic, Transform, TransformKind
from quant_engine.selection import ROLE_GROUPS, grouped_z, weight_kurtosis
from quant_engine.stages.calibrate import RECORDS, calibrate_stage
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.plan_files import PlanReader, plan_reader
from quant_engine.stages.select import Selection, read_selection, select_stage
from quant_engine.stages.stage import read_json, run_stage
from quant_engine.stages.train.blocks import train_blocks_stage
from quant_engine.transforms import SitePlan
from tests.integration.quant_engine.helpers import ALL_LINEARS, RecordingObserver, open_run
from tests.tiny_models import write_tiny_model

CANDIDATES = ["none", "rotation", "cat", {"kind": "smooth_rotation", "statistic": {"kind": "l2"}}]
L2_NAME = "smooth_rotation(l2, α 0.5)"
SELECTIONS: list[dict[str, Any]] = [
    {"kind": "lowest_error", "candidates": CANDIDATES, "online_cost": 0.05},
    {"kind": "kurtosis", "outlying": "rotation", "typical": "none", "beta": 0.0},
    {"kind": "differentiable", "candidates": CANDIDATES},
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), outliers=True)


@pytest.fixture(scope="module")
def records(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of every site; no selection changes them."""
    run = open_run(model_dir, Policy(targets=ALL_LINEARS), tmp_path_factory.mktemp("records"))
    return run_stage(calibrate_stage(run, ""), run.work_dir, RecordingObserver()) / RECORDS


def _nothing(_: Site) -> SitePlan | None:
    return None


def _policy(selection: dict[str, Any], **fields: Any) -> Policy:
    return Policy.model_validate({"targets": ALL_LINEARS, "selection": selection} | fields)


def _select(
    model_dir: Path,
    records: Path,
    out: Path,
    policy: Policy,
    *,
    found: PlanReader = _nothing,
    observer: RecordingObserver | None = None,
) -> tuple[Run, Selection]:
    run = replace(open_run(model_dir, policy, out), observer=observer or RecordingObserver())
    directory = run_stage(select_stage(run, records, found, ""), out, run.observer)
    return run, read_selection(run, directory)


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda each: each["kind"])
def test_every_selection_reports_the_same_way(
    selection: dict[str, Any], model_dir: Path, records: Path, tmp_path: Path
) -> None:
    run, selected = _select(model_dir, records, tmp_path, _policy(selection))
    assert list(selected.choices) == [site.name for site in run.sites] == list(selected.plans)
    for site in run.sites:
        choice, plan = selected.choices[site.name], selected.plans[site.name]
        assert choice["kind"] == selection["kind"]
        named = {row["name"]: row for row in choice["candidates"]}
        assert len(named) == len(choice["candidates"])
        assert choice["chosen"].startswith(plan.kind.value)
        opened = OpenSite(run, site, records)
        (error,) = opened.validation_errors([plan])
        assert error == pytest.approx(named[choice["chosen"]]["error"])
        assert named["none"]["online_cost"] == 0.0 < named["rotation"]["online_cost"]


def test_lowest_error_weighs_cost(model_dir: Path, records: Path, tmp_path: Path) -> None:
    _, selected = _select(model_dir, records, tmp_path, _policy(SELECTIONS[0]))
    for choice in selected.choices.values():
        scores = {row["name"]: row["error"] * (1 + 0.05 * row["online_cost"]) for row in choice["candidates"]}
        assert scores == pytest.approx({row["name"]: row["score"] for row in choice["candidates"]})
        assert choice["chosen"] == min(scores, key=scores.__getitem__)
    assert {choice["chosen"] for choice in selected.choices.values()} > {"cat"}


def test_kurtosis_compares_a_role_with_its_own(model_dir: Path, records: Path, tmp_path: Path) -> None:
    run, selected = _select(model_dir, records, tmp_path, _policy(SELECTIONS[1]))
    kappas = {site.name: weight_kurtosis(run.site_weights(site)) for site in run.sites}
    z = grouped_z(kappas, {site.name: ROLE_GROUPS[site.role] for site in run.sites})
    for name, choice in selected.choices.items():
        assert (choice["kurtosis"], choice["z"], choice["outlying"]) == (kappas[name], z[name], z[name] > 0)
        assert choice["chosen"] == ("rotation" if z[name] > 0 else "none")
    assert {choice["chosen"] for choice in selected.choices.values()} == {"rotation", "none"}


def test_a_mixture_is_learned_at_each_site(model_dir: Path, records: Path, tmp_path: Path) -> None:
    _, selected = _select(model_dir, records, tmp_path, _policy(SELECTIONS[2]))
    for choice in selected.choices.values():
        weights = {row["name"]: row["weight"] for row in choice["candidates"]}
        assert sum(weights.values()) == pytest.approx(1.0)
        assert choice["chosen"] == max(weights, key=weights.__getitem__)
        assert 0.0 < choice["mixture_loss"] < 1.0


def test_without_a_selection_nothing_is_chosen(model_dir: Path, records: Path, tmp_path: Path) -> None:
    _, selected = _select(model_dir, records, tmp_path, Policy(targets=ALL_LINEARS))
    assert selected.choices == {}
    assert {plan.kind for plan in selected.plans.values()} == {TransformKind.SMOOTH_ROTATION}


def test_a_candidate_that_does_not_fit_a_site_is_left_out_there(model_dir: Path, records: Path, tmp_path: Path) -> None:
    """Blocks of 48 divide the 96 inputs of down_proj, and no other site's 64."""
    selection = {"kind": "lowest_error", "candidates": [{"kind": "cat", "block_size": 48}, "none"]}
    run, selected = _select(model_dir, records, tmp_path, _policy(selection))
    for site in run.sites:
        row = selected.choices[site.name]["candidates"][0]
        assert row["name"] == "cat(block 48)"
        assert (row["error"] is None) is (site.features == 64)
        assert ("64" in row.get("refused", "")) is (site.features == 64)
    assert any(choice["chosen"] == "cat(block 48)" for choice in selected.choices.values())


def _found_plan(run: Run, records: Path, label: str) -> PlanReader:
    """Scales that a search (label ``l2``) or a training (``learned``) might have left, each site its own."""

    def found(site: Site) -> SitePlan:
        plan = OpenSite(run, site, records).plan(Transform(statistic=Statistic(kind="l2"), alpha=0.6))
        assert plan.scales_D is not None
        return plan if label == "l2" else plan.with_scales(plan.scales_D * 3.0, label)

    return found


@pytest.mark.parametrize("label", ["l2", "learned"])
def test_kinds_take_the_scales_that_were_found(label: str, model_dir: Path, records: Path, tmp_path: Path) -> None:
    selection = {"kind": "lowest_error", "candidates": ["smooth_rotation", "smooth", "kronecker", "duquant"]}
    run = open_run(model_dir, _policy(selection), tmp_path)
    found = _found_plan(run, records, label)
    _, selected = _select(model_dir, records, tmp_path, run.spec.policy, found=found)
    for site in run.sites:
        names = [row["name"] for row in selected.choices[site.name]["candidates"]]
        assert names == [f"{kind}({label}, α 0.6)" for kind in selection["candidates"]]
        plan, expected = selected.plans[site.name], found(site)
        assert plan.scales_D is not None
        assert expected is not None
        assert expected.scales_D is not None
        assert plan.scales_D.equal(expected.scales_D)
        assert (plan.label, plan.alpha) == (label, 0.6)


_LEARNED = ["kronecker", "kronecker_rotation", {"kind": "cat", "block_size": 48}]


@pytest.mark.parametrize(
    "selection",
    [
        {"kind": "lowest_error", "candidates": _LEARNED, "online_cost": 0.05},
        {"kind": "kurtosis", "outlying": "kronecker", "typical": "kronecker_rotation", "beta": 0.0},
        {"kind": "differentiable", "candidates": _LEARNED, "steps": 1},
    ],
    ids=lambda each: each["kind"],
)
def test_block_training_chooses_among_learned_transforms(
    selection: dict[str, Any], model_dir: Path, records: Path, tmp_path: Path
) -> None:
    """Every chosen plan is learned, and is what the report says. Blocks of 48 fit no site but down_proj."""
    training = {"kind": "block", "steps": 2, "batch_samples": 2, "inputs": "quantized"}
    run = open_run(model_dir, _policy(selection, training=training), tmp_path)
    policy = run.spec.policy.training
    assert isinstance(policy, BlockTraining)
    trained = run_stage(train_blocks_stage(run, policy, records.parent, _nothing, ""), tmp_path, run.observer)
    stage = select_stage(run, records, plan_reader(trained), "", learned=trained)
    selected = read_selection(run, run_stage(stage, tmp_path, run.observer))
    assert list(selected.choices) == [site.name for site in run.sites]
    for site in run.sites:
        choice, plan = selected.choices[site.name], selected.plans[site.name]
        assert (choice["kind"], choice["learned"]) == (selection["kind"], True)
        assert choice["chosen"].split("(")[0] == plan.kind.value
        assert choice["chosen"] in {row["name"] for row in choice["candidates"]}
        loss = min(row["block_loss"] for row in choice["candidates"])
        assert loss <= read_json(trained / f"{site.block:05d}.curve.json")["start_loss"]
        if selection["kind"] == "kurtosis":
            assert plan.kind is TransformKind(selection["outlying" if choice["outlying"] else "typical"])
        if selection["kind"] == "differentiable":
            assert len(choice["candidates"]) == (3 if site.features == 96 else 2)
            assert sum(row["weight"] for row in choice["candidates"]) == pytest.approx(1.0)
    assert any(plan.label == "learned" for plan in selected.plans.values())


class _Killed(BaseException):
    """What a kill looks like from inside."""


class _Killer(RecordingObserver):
    """Dies after so many advances."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        super().stage_advanced(name, done, total)
        if done == self._after:
            raise _Killed


def _bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("selection", SELECTIONS[1:], ids=lambda each: each["kind"])
def test_a_killed_selection_resumes_to_the_same_bits(
    selection: dict[str, Any], model_dir: Path, records: Path, tmp_path: Path
) -> None:
    policy = _policy(selection)
    _select(model_dir, records, tmp_path / "whole", policy)
    for after in (3, 11):
        with pytest.raises(_Killed):
            _select(model_dir, records, tmp_path / "killed", policy, observer=_Killer(after))
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "select.partial").glob("*.selection.json")}
    assert len(left) == 3
    _select(model_dir, records, tmp_path / "killed", policy)
    for path, written in left.items():
        assert (tmp_path / "killed" / "select" / path.name).stat().st_mtime_ns == written
    # The digest names the same inputs, so the manifests are equal too.
    assert _bytes(tmp_path / "killed" / "select") == _bytes(tmp_path / "whole" / "select")


def test_a_reused_selection_tells_its_rows_again(model_dir: Path, records: Path, tmp_path: Path) -> None:
    first, again = RecordingObserver(), RecordingObserver()
    for observer in (first, again):
        _select(model_dir, records, tmp_path, _policy(SELECTIONS[0]), observer=observer)
    rows = [[event for event in each.events if event[0] == "layer"] for each in (first, again)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 14
    assert ("finished", "select", True) in again.events


def test_choices_are_strict_json(model_dir: Path, records: Path, tmp_path: Path) -> None:
    selection = {"kind": "lowest_error", "candidates": [{"kind": "wush", "block_size": 48}, "none"]}
    _select(model_dir, records, tmp_path, _policy(selection))

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    for path in (tmp_path / "select").glob("*.selection.json"):
        choice = json.loads(path.read_text(), parse_constant=refuse)
        assert all(row["error"] is None or math.isfinite(row["error"]) for row in choice["candidates"])
