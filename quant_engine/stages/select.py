"""Stage ``select``: every site's final transform, judged on validation tokens; its rows, measured on test tokens."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quant_engine.evaluation.layer_errors import LayerErrors
from quant_engine.evaluation.report import LayerMeasurement, layer_row
from quant_engine.models import Site
from quant_engine.policy import Transform, TransformKind, WeightQuantization
from quant_engine.selection import LayerGroup
from quant_engine.stages.context import Run
from quant_engine.stages.files import Progress, Stage, read_json, write_json
from quant_engine.stages.measure import BASELINE, NO_TRANSFORM, OpenSite, site_error
from quant_engine.stages.plans import PlanReader, read_plan, write_plan
from quant_engine.stages.search import selected_layers
from quant_engine.transforms import SitePlan


@dataclass(frozen=True)
class Selection:
    """What ``select`` left: a plan per site name, and the rows in forward order."""

    plans: dict[str, SitePlan]
    rows: list[dict[str, Any]]


def select_stage(run: Run, records: Path, found: PlanReader, upstream: str) -> Stage:
    """Writes ``<site>.safetensors`` (the plan) and ``<site>.rows.json``, and tells the rows.

    Which layers are critical and normal is ranked here by the baseline on test tokens, as the paper reports them; the
    search has ranked for itself on validation tokens. One unit per site for its baseline, and one for its rows.

    Args:
        found: the plan of the stages before, for the sites that they looked at.
    """

    def produce(directory: Path, progress: Progress) -> None:
        baselines = _test_baselines(run, records, directory, progress)
        selected = selected_layers(run, {name: site_error(errors) for name, errors in baselines.items()})
        for site in run.sites:
            if not _rows_path(directory, site).is_file():
                opened = OpenSite(run, site, records)
                plan = _chosen_plan(opened, found(site))
                write_plan(directory, site, plan)
                rows = _measured_rows(opened, plan, baselines[site.name], selected.get(site.name))
                write_json(_rows_path(directory, site), rows)
            _tell(run, directory, site)
            progress.advance()

    def retell(directory: Path) -> None:
        for site in run.sites:
            _tell(run, directory, site)

    return Stage(
        name="select",
        unit="layer",
        total=2 * len(run.sites),
        inputs={"upstream": upstream, "policy": run.policy_inputs()},
        produce=produce,
        resumable=True,
        retell=retell,
    )


def _test_baselines(run: Run, records: Path, directory: Path, progress: Progress) -> dict[str, tuple[LayerErrors, ...]]:
    """The errors of each linear under SmoothRot(0.5, max) on test tokens, by site name; one file each."""
    found = {}
    for site in run.sites:
        path = directory / f"{site.name}.baseline.json"
        if not path.is_file():
            opened = OpenSite(run, site, records)
            errors = opened.errors(opened.record.test_ED, opened.plan(BASELINE))
            write_json(path, [asdict(each) for each in errors])
        found[site.name] = tuple(LayerErrors(**each) for each in read_json(path))
        progress.advance()
    return found


def read_selection(run: Run, directory: Path) -> Selection:
    """The stage's outcome."""
    rows = [row for site in run.sites for row in read_json(_rows_path(directory, site))]
    return Selection(plans={site.name: read_plan(directory, site) for site in run.sites}, rows=rows)


def _tell(run: Run, directory: Path, site: Site) -> None:
    for row in read_json(_rows_path(directory, site)):
        run.observer.layer_completed(row)


def _rows_path(directory: Path, site: Site) -> Path:
    return directory / f"{site.name}.rows.json"


def _chosen_plan(opened: OpenSite, found: SitePlan | None) -> SitePlan:
    """The plan that was found or asked for; with a selection, the best of its candidates on validation tokens."""
    transform = opened.settings.transform
    own = found if found is not None else opened.plan(transform)
    selection = opened.run.spec.policy.selection
    if selection is None:
        return own
    plans = [_candidate(opened, own, transform, kind) for kind in selection.candidates]
    errors = opened.validation_errors(plans)
    return plans[min(range(len(plans)), key=errors.__getitem__)]


def _candidate(opened: OpenSite, own: SitePlan, transform: Transform, kind: TransformKind) -> SitePlan:
    """The candidate of one kind: with the scales that were found, where it has scales and these were looked for."""
    if kind is own.kind:
        return own
    built = opened.plan(transform.model_copy(update={"kind": kind}))
    if kind.scales_channels and own.scales_D is not None:
        return replace(own, kind=kind, order=built.order)
    return built


def _measured_rows(
    opened: OpenSite, plan: SitePlan, baseline: tuple[LayerErrors, ...], selected: LayerGroup | None
) -> list[dict[str, Any]]:
    """One row per linear, on test tokens."""
    record, settings = opened.record, opened.settings
    chosen, rtn = (opened.errors(record.test_ED, each) for each in (plan, NO_TRANSFORM))
    rows = []
    for index, (name, w_OD) in enumerate(zip(opened.site.readers, opened.linears, strict=True)):
        rows.append(
            layer_row(
                LayerMeasurement(
                    name=name,
                    block=opened.site.block,
                    role=opened.site.role,
                    weights=settings.weights,
                    activations=settings.activations,
                    plan=plan,
                    errors=chosen[index],
                    baseline=baseline[index],
                    rtn=rtn[index],
                    input_absmax=record.input_absmax,
                    input_kurtosis=record.input_kurtosis,
                    parameters=w_OD.numel(),
                    stored_bytes=stored_bytes(w_OD.shape, settings.weights, opened.run.source.dtype.itemsize),
                    selected=selected,
                )
            )
        )
    return rows


def stored_bytes(shape: torch.Size, weights: WeightQuantization, scale_bytes: int) -> int:
    """Bytes of a linear's packed codes and scales in the checkpoint."""
    rows, columns = shape
    scales = {"channel": rows, "tensor": 1, "group": rows * columns // (weights.group_size or columns)}
    words = -(-columns * (weights.format.bits or 0) // 32)
    return 4 * rows * words + scale_bytes * scales[weights.granularity]
