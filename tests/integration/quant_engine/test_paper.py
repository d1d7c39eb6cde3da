"""The paper's experiment as a stage on tiny models: its errors, its guard, its files, and that kills change nothing."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.artifacts import LocalStore
from quant_engine.calibration import SiteRecord
from quant_engine.errors import UnsupportedPolicy
from quant_engine.hadamard import hadamard_matrix
from quant_engine.policy import PaperExperiment, Policy, resolve_policy
from quant_engine.stages.calibrate import RECORDS, calibrate_stage
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.paper.stage import paper_figures, paper_report, paper_stage
from quant_engine.stages.plan_files import read_plan
from quant_engine.stages.stage import run_stage
from tests.integration.quant_engine.helpers import RecordingObserver, open_run
from tests.tiny_models import write_tiny_model

SEARCH: dict[str, Any] = {
    "kind": "paper",
    "alpha": [0.4, 0.5, 0.6],
    "q": [0.9, 0.99, 1.0],
    "top": 2,
    "learning_rates": [0.01, 0.02],
    "steps": 20,
    "patience": 10,
    "batch_tokens": 64,
    "layers": {"critical": 1, "normal": 1},
}


@dataclass(frozen=True)
class Bench:
    """A calibrated run and what the stage made of it."""

    run: Run
    records: Path
    directory: Path
    report: dict[str, Any]


def _policy(**fields: Any) -> Policy:
    return resolve_policy(Policy.model_validate({"preset": "paper-2606.09927", "search": SEARCH} | fields))


def _calibrated(model_dir: Path, policy: Policy, work_dir: Path) -> tuple[Run, Path]:
    work_dir.mkdir(parents=True, exist_ok=True)
    run = open_run(model_dir, policy, work_dir)
    return run, run_stage(calibrate_stage(run, "-"), work_dir, RecordingObserver()) / RECORDS


def _search(run: Run, records: Path, observer: RecordingObserver | None = None) -> Path:
    experiment = run.spec.policy.search
    assert isinstance(experiment, PaperExperiment)
    return run_stage(paper_stage(run, experiment, records, "-"), run.work_dir, observer or RecordingObserver())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=3, outliers=True)


@pytest.fixture(scope="module")
def finished(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """An uninterrupted experiment."""
    run, records = _calibrated(model_dir, _policy(), tmp_path_factory.mktemp("finished"))
    directory = _search(run, records)
    return Bench(run=run, records=records, directory=directory, report=paper_report(directory))


def _fake_quantized(rows: Tensor) -> Tensor:
    """Four bits, symmetric, scale = absmax / 7, codes in [−8, 7]."""
    scale = rows.abs().amax(dim=1, keepdim=True) / 7
    return (rows / scale).round().clamp(-8, 7) * scale


def _dense_error(record: SiteRecord, w_OD: Tensor, alpha: float, q: float) -> float:
    """‖Y − Q(X Λ⁻¹ Hᵀ) Q(W Λ Hᵀ)ᵀ‖_F on test tokens, every matrix written out, in double precision."""
    x_ED, w_OD = record.test_ED.double(), w_OD.double()
    peak_D = record.statistics.absmax_D if q == 1.0 else record.statistics.quantiles[q]
    scales_D = peak_D.double() ** alpha / w_OD.abs().amax(dim=0) ** (1 - alpha)
    rotation_DD = hadamard_matrix(x_ED.shape[1]).double()
    x_ED_ = _fake_quantized(x_ED @ torch.diag(1 / scales_D) @ rotation_DD.T)
    w_OD_ = _fake_quantized(w_OD @ torch.diag(scales_D) @ rotation_DD.T)
    return float(torch.linalg.matrix_norm(x_ED @ w_OD.T - x_ED_ @ w_OD_.T))


def test_every_scale_policy_has_the_error_of_the_dense_definition(finished: Bench) -> None:
    sites = {site.name: site for site in finished.run.sites}
    rows = [row for name in ("N1", "N2", "N3") for row in finished.report["families"][name]["rows"]]
    assert len(rows) == 3 + 3 + 4
    for row in rows:
        for name, error in row["errors"].items():
            opened = OpenSite(finished.run, sites[name], finished.records)
            expected = _dense_error(opened.record, opened.rows, row["alpha"], row["q"])
            assert error == pytest.approx(expected, rel=2e-2)  # single precision rounds a few codes the other way


def test_layers_are_ranked_by_the_baseline_on_test_tokens(finished: Bench) -> None:
    rows = sorted(finished.report["T3"]["rows"], key=lambda row: row["baseline_error"], reverse=True)
    chosen = finished.report["layers"]
    assert [row["group"] for row in chosen] == ["critical", "normal"]
    assert chosen[0]["layer"] == rows[0]["layer"]
    assert [row["layer"] for row in rows if row["group"] is not None] == [row["layer"] for row in chosen]


def test_t3_replays_one_trial_of_t1_or_t2_on_every_layer(finished: Bench) -> None:
    replay, families = finished.report["T3"], finished.report["families"]
    rows = families["T1"]["rows"] + families["T2"]["rows"]
    same = [row for row in rows if row["start"] == replay["configuration"]["start"]]
    (row,) = [row for row in same if row["learning_rate"] == replay["configuration"]["learning_rate"]]
    assert row["mean_validation_error"] == min(each["mean_validation_error"] for each in rows)
    replayed = {each["layer"]: each["error"] for each in replay["rows"]}
    assert set(replayed) == {site.name for site in finished.run.sites}
    assert row["errors"] == {name: replayed[name] for name in row["errors"]}


def test_training_never_ends_worse_than_its_start_on_validation_tokens(finished: Bench) -> None:
    families = finished.report["families"]
    starts = {(row["alpha"], row["q"]): row["mean_validation_error"] for row in families["N3"]["rows"]}
    for row in families["T2"]["rows"]:
        start = starts[row["start"]["alpha"], row["start"]["q"]]
        assert row["mean_validation_error"] <= start * (1 + 1e-9)


def test_a_site_keeps_its_training_only_where_it_is_no_worse_than_smoothrot(finished: Bench) -> None:
    rows = {row["layer"]: row for row in finished.report["T3"]["rows"]}
    for site in finished.run.sites:
        plan = read_plan(finished.directory, site)
        (error,) = OpenSite(finished.run, site, finished.records).validation_errors([plan])
        row = rows[site.name]
        assert error == min(row["validation_error"], row["baseline_validation_error"])
        assert row["kept"] == (plan.label != "absmax")


def test_a_diverging_training_is_guarded(model_dir: Path, tmp_path: Path) -> None:
    """One step from s = 1 leaves the layers with massive activations far above SmoothRot."""
    search = SEARCH | {"alpha": [0.5], "q": [1.0], "steps": 1, "learning_rates": [0.001], "top": 1}
    run, records = _calibrated(model_dir, _policy(search=search), tmp_path)
    directory = _search(run, records)
    t1 = paper_report(directory)["families"]["T1"]["rows"][0]
    assert t1["gain_percent"] < -50.0
    replay = paper_report(directory)["T3"]
    assert replay["configuration"]["start"] == {"alpha": 0.5, "q": 1.0}
    assert replay["guarded_mean_error"] == pytest.approx(replay["baseline_mean_error"], rel=0.05)


def test_figures_are_published_as_images(finished: Bench, tmp_path: Path) -> None:
    figures = paper_figures(finished.directory)
    assert len(figures) == 6
    output = tmp_path / "output"
    (output / "figures").mkdir(parents=True)
    for path in figures:
        (output / "figures" / path.name).write_bytes(path.read_bytes())
    entries = LocalStore(tmp_path / "store").put(output)
    assert [entry.path for entry in entries] == [f"figures/{path.name}" for path in figures]
    assert {entry.media_type for entry in entries} == {"image/png"}


class _Killed(BaseException):
    """What a kill looks like from inside."""


class _Killer(RecordingObserver):
    """Dies when the stage reaches a unit."""

    def __init__(self, done: int) -> None:
        super().__init__()
        self._done = done

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        super().stage_advanced(name, done, total)
        if done == self._done:
            raise _Killed


def _hashes(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _written(directory: Path) -> dict[Path, int]:
    return {path.relative_to(directory): path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_kills_change_no_byte_and_nothing_is_computed_twice(model_dir: Path, finished: Bench, tmp_path: Path) -> None:
    run, records = _calibrated(model_dir, _policy(), tmp_path)
    total = finished_total(run, records)
    for done in (2, 12, 20, 26, total - 1):
        with pytest.raises(_Killed):
            _search(run, records, _Killer(done))
    before = _written(tmp_path / "search.partial")
    assert any("trials" in path.parts for path in before)
    observer = RecordingObserver()
    directory = _search(run, records, observer)
    after = _written(directory)
    work = [path for path in before if path.parts[0] in ("scores", "trials")]
    assert [path for path in work if before[path] != after[path]] == []
    assert _hashes(directory) == _hashes(finished.directory)
    reached = [event[2] for event in observer.events if event[0] == "advanced"]
    assert reached == sorted(reached)
    assert reached[-1] == total


def finished_total(run: Run, records: Path) -> int:
    """The units that the stage announces."""
    experiment = run.spec.policy.search
    assert isinstance(experiment, PaperExperiment)
    return paper_stage(run, experiment, records, "-").total


def test_tied_heads_keep_the_scales_that_they_start_with(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model", layers=2)
    run, records = _calibrated(directory, _policy(targets=["o_proj"]), tmp_path / "work")
    search = _search(run, records)
    best = [json.loads(path.read_text())["best_step"] for path in (search / "trials").rglob("*.json")]
    assert best
    assert set(best) == {0}


def test_a_policy_without_scales_has_no_experiment(model_dir: Path, tmp_path: Path) -> None:
    policy = _policy(overrides=[{"match": "down_proj", "transform": {"kind": "rotation"}}])
    run, records = _calibrated(model_dir, policy, tmp_path)
    with pytest.raises(UnsupportedPolicy, match="scales none") as caught:
        _search(run, records)
    assert caught.value.hint
