"""Stage ``select``: choose every site's final transform on validation tokens, and measure its rows on test tokens.

If the policy has a selection, the chooser of its kind compares the candidates of each site. Every chooser gives the
same kind of report, and none chooses a candidate whose error on validation tokens is not finite.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quant_engine.checkpoint import stored_bytes
from quant_engine.evaluation.layer_errors import LayerErrors
from quant_engine.evaluation.report import LayerMeasurement, layer_row
from quant_engine.interface.layers import LayerGroup, LayerRow
from quant_engine.models import Site
from quant_engine.policy import AnySelection, Differentiable
from quant_engine.selection import (
    CandidateMeasurements,
    Mixture,
    Tails,
    Verdict,
    choose_candidate,
    differentiable,
    finite_or_infinite,
    relative_cost,
)
from quant_engine.stages.candidates import Candidate, built_candidate, choice_path, distinct_candidates, site_tails
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import BASELINE, NO_TRANSFORM, OpenSite, site_error
from quant_engine.stages.plan_files import PlanReader, read_plan, write_plan
from quant_engine.stages.search import selected_layers
from quant_engine.stages.stage import Stage, StageProgress, read_json, read_rows, write_json, write_rows
from quant_engine.transforms import SitePlan


@dataclass(frozen=True)
class Selection:
    """The result of ``select``: a plan by site name, the rows in forward order, and the choice report of each site."""

    plans: dict[str, SitePlan]
    rows: list[LayerRow]
    choices: dict[str, dict[str, Any]]


def select_stage(run: Run, records: Path, found: PlanReader, upstream: str, *, learned: Path | None = None) -> Stage:
    """The stage that writes ``<site>.safetensors`` (the plan) and ``<site>.rows.json``, and reports the rows.

    With a selection it also writes ``<site>.selection.json``. This file holds the name of the chosen candidate, and for
    each candidate its name, its E on validation tokens (null where the candidate can not be used, with the reason), its
    E on test tokens (not used for the choice) and its online cost. Lowest error adds the scores, kurtosis adds κ and z,
    differentiable adds the weights.

    Critical and normal layers are ranked here by the baseline on test tokens, as the paper reports them. The search has
    its own ranking on validation tokens. One unit per site for its baseline, and one for its rows.

    Args:
        found: the plan that earlier stages found, for the sites that they changed.
        learned: the directory of a training that made the selection itself. Its plans and choices are taken over.
    """

    def produce(directory: Path, progress: StageProgress) -> None:
        baselines = _test_baselines(run, records, directory, progress)
        selected = selected_layers(run, {name: site_error(errors) for name, errors in baselines.items()})
        tails = site_tails(run, directory) if learned is None else {}
        for site in run.sites:
            # The rows are written last, so a site that has them is complete.
            if not _rows_path(directory, site).is_file():
                opened = OpenSite(run, site, records)
                if learned is None:
                    plan, choice = _chosen(opened, found(site), tails.get(site.name))
                else:
                    plan, choice = read_plan(learned, site), read_json(choice_path(learned, site.name))
                plan = opened.with_peak(plan)
                if choice is not None:
                    write_json(choice_path(directory, site.name), choice)
                write_plan(directory, site, plan)
                rows = _measured_rows(opened, plan, baselines[site.name], selected.get(site.name))
                write_rows(_rows_path(directory, site), rows)
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


def _test_baselines(
    run: Run, records: Path, directory: Path, progress: StageProgress
) -> dict[str, tuple[LayerErrors, ...]]:
    """The errors of each linear under SmoothRot(0.5, max) on test tokens, by site name; one file each."""
    found = {}
    for site in run.sites:
        path = directory / f"{site.name}.baseline.json"
        if not path.is_file():
            opened = OpenSite(run, site, records)
            # A bare plan, because the paper's baseline has no clip.
            errors = opened.baseline_errors(opened.record.test_ED, opened.bare_plan(BASELINE))
            write_json(path, [asdict(each) for each in errors])
        found[site.name] = tuple(LayerErrors(**each) for each in read_json(path))
        progress.advance()
    return found


def read_selection(run: Run, directory: Path) -> Selection:
    """Read the files of the stage."""
    rows = [row for site in run.sites for row in read_rows(_rows_path(directory, site))]
    chosen = [site for site in run.sites if choice_path(directory, site.name).is_file()]
    return Selection(
        plans={site.name: read_plan(directory, site) for site in run.sites},
        rows=rows,
        choices={site.name: read_json(choice_path(directory, site.name)) for site in chosen},
    )


def _tell(run: Run, directory: Path, site: Site) -> None:
    for row in read_rows(_rows_path(directory, site)):
        run.observer.layer_completed(row)


def _rows_path(directory: Path, site: Site) -> Path:
    return directory / f"{site.name}.rows.json"


def _chosen(opened: OpenSite, found: SitePlan | None, tails: Tails | None) -> tuple[SitePlan, dict[str, Any] | None]:
    """Return the plan of a site, and the report of the choice where the policy has a selection."""
    selection = opened.run.spec.policy.selection
    if selection is None:
        return (opened.plan(opened.settings.transform) if found is None else opened.clipped(found)), None
    apart, places = distinct_candidates(opened, selection, found)
    candidates = _measured(opened, [built_candidate(opened, each, found) for each in apart])

    def mixture(settings: Differentiable, usable: Sequence[int]) -> Mixture:
        plans = [plan for index in usable if (plan := candidates[index].plan) is not None]
        return _mixture(opened, plans, settings)

    verdict = choose_candidate(
        selection,
        CandidateMeasurements(
            errors=[each.error for each in candidates],
            costs=[each.cost or 0.0 for each in candidates],
            places=places,
            mixture=mixture,
            tails=tails,
        ),
    )
    plan = candidates[verdict.index].plan
    assert plan is not None  # noqa: S101 -- a finite error was measured on it
    return plan, _choice(selection, candidates, verdict)


def _measured(opened: OpenSite, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with their errors and costs.

    Raises:
        NumericalInstability, UnsupportedPolicy: the error of the first candidate, where none has a plan.
    """
    plans = [each.plan for each in candidates if each.plan is not None]
    refused = [each.refused for each in candidates if each.refused is not None]
    if not plans:
        raise refused[0]
    # The errors on test tokens are only for the report; no chooser receives them.
    pairs = zip(
        finite_or_infinite(opened.validation_errors, plans), finite_or_infinite(opened.test_errors, plans), strict=True
    )
    return [each if each.plan is None else _with_errors(each, opened, *next(pairs)) for each in candidates]


def _with_errors(each: Candidate, opened: OpenSite, error: float, test_error: float) -> Candidate:
    assert each.plan is not None  # noqa: S101 -- only those are measured
    return replace(each, error=error, test_error=test_error, cost=relative_cost(each.plan, opened.linears))


def _mixture(opened: OpenSite, plans: Sequence[SitePlan], settings: Differentiable) -> Mixture:
    x_FD = opened.record.fit_FD.to(opened.run.model.device)
    own = opened.settings
    return differentiable(x_FD, opened.linears, plans, own.weights, own.activations, settings)


def _choice(selection: AnySelection, candidates: Sequence[Candidate], verdict: Verdict) -> dict[str, Any]:
    """The content of ``<site>.selection.json``. JSON has no infinity, so a number that is not finite becomes null."""
    rows: list[dict[str, Any]] = []
    for index, each in enumerate(candidates):
        row = {"name": each.name, "error": _finite(each.error), "online_cost": each.cost}
        row["test_error"] = _finite(each.test_error)
        row |= {column: _finite(values[index]) for column, values in verdict.columns.items()}
        if each.refused is not None:
            row["refused"] = each.refused.detail
        rows.append(row)
    return {"kind": selection.kind, "chosen": candidates[verdict.index].name, "candidates": rows} | verdict.facts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _measured_rows(
    opened: OpenSite, plan: SitePlan, baseline: tuple[LayerErrors, ...], selected: LayerGroup | None
) -> list[LayerRow]:
    """One row per linear, on test tokens."""
    record, settings = opened.record, opened.settings
    chosen = opened.errors(record.test_ED, plan)
    # With the paper's quantizer, like the baseline.
    rtn = opened.baseline_errors(record.test_ED, NO_TRANSFORM)
    rows = []
    exported = opened.run.quantized_linears(opened.site, plan)
    for index, (linear, w_OD) in enumerate(zip(exported, opened.linears, strict=True)):
        rows.append(
            layer_row(
                LayerMeasurement(
                    name=linear.name,
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
                    stored_bytes=stored_bytes(linear, w_OD.shape, opened.run.source.dtype.itemsize),
                    selected=selected,
                )
            )
        )
    return rows
