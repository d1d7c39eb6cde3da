"""The candidates of a selection at one site, built as plans, and the kurtosis that a selection may choose by."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from quant_engine.errors import EngineError, NumericalInstability, UnsupportedPolicy
from quant_engine.policy import AnySelection, Kurtosis
from quant_engine.selection import (
    ROLE_GROUPS,
    Tails,
    Wanted,
    by_kurtosis,
    candidate_name,
    candidates_of,
    distinct,
    grouped_z,
    wanted,
    weight_kurtosis,
)
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.stage import read_json, write_json
from quant_engine.transforms import SitePlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A candidate at one site: its plan, or the error that prevents one, and its E, infinite without a plan."""

    name: str
    plan: SitePlan | None = None
    refused: EngineError | None = None
    error: float = math.inf
    test_error: float = math.inf
    cost: float | None = None


def distinct_candidates(
    opened: OpenSite, selection: AnySelection, found: SitePlan | None
) -> tuple[tuple[Wanted, ...], tuple[int, ...]]:
    """The site's distinct candidates, and for each candidate of the selection its place among them.

    ``policy.online`` may reduce different candidates to one transform, which then counts once.
    """
    own = opened.settings.transform
    asked = [wanted(each, own, found) for each in candidates_of(selection)]
    asked = [replace(each, transform=opened.run.allowed(opened.site, each.transform)) for each in asked]
    return distinct(asked, found)


def built_candidate(opened: OpenSite, each: Wanted, found: SitePlan | None) -> Candidate:
    """Build the candidate's plan. A transform that does not fit the site's width or numbers is marked as refused."""
    inherited = found if each.inherits else None
    name = candidate_name(each.transform, inherited)
    if inherited is not None and inherited.kind is each.transform.kind:
        # The found plan itself is the candidate, with all that was searched or learned for it.
        return Candidate(name=name, plan=opened.on_device(inherited))
    try:
        plan = opened.plan(each.transform)
    except (NumericalInstability, UnsupportedPolicy) as error:
        return Candidate(name=name, refused=error)
    if inherited is not None:
        # Another kind than the found plan's: it takes the found scales instead of those of its own policy.
        plan = opened.on_device(replace(plan, scales_D=inherited.scales_D, label=inherited.label))
    return Candidate(name=name, plan=plan)


def choice_path(directory: Path, site: str) -> Path:
    """The path of the report of a site's choice, by the site's name."""
    return directory / f"{site}.selection.json"


def site_tails(run: Run, directory: Path) -> dict[str, Tails]:
    """The kurtosis of every site by name, one file each; empty where the policy does not select by kurtosis."""
    selection = run.spec.policy.selection
    if not isinstance(selection, Kurtosis):
        return {}
    # All sites are measured before any is chosen, because z compares a site with the others of its group.
    kappas: dict[str, float] = {}
    for site in run.sites:
        path = directory / f"{site.name}.kurtosis.json"
        if not path.is_file():
            write_json(path, {"kurtosis": weight_kurtosis(run.site_weights(site))})
        kappas[site.name] = read_json(path)["kurtosis"]
    groups = {site.name: ROLE_GROUPS[site.role] for site in run.sites}
    z = grouped_z(kappas, groups)
    outlying = by_kurtosis(kappas, groups, sign=selection.sign, beta=selection.beta)
    return {name: Tails(kurtosis=kappas[name], z=z[name], outlying=outlying[name]) for name in kappas}
