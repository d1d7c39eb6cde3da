"""Stage ``search``: choose a scale policy for every scaled site from the policy's grid.

Candidates are judged on validation tokens, with the guard of :mod:`quant_engine.search.choice`. With the shared scope,
only the selected layers are scored on the whole grid. The other layers are scored on the one policy that was chosen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from quant_engine.interface.layers import LayerGroup
from quant_engine.models import Site
from quant_engine.policy import GridSearch, LayerChoice, Transform
from quant_engine.search import (
    SharedChoice,
    SiteScores,
    baseline_transform,
    candidate_transforms,
    guarded,
    search_layer,
    search_shared,
)
from quant_engine.selection import choose_layers
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.plan_files import write_plan
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json

CHOICE: Final = "choice.json"


def search_stage(run: Run, search: GridSearch, records: Path, upstream: str) -> Stage:
    """The stage that writes every site's baseline, the scores of all candidates, and a plan for each scaled site.

    One unit per site for its baseline, and one for its policy.
    """

    def produce(directory: Path, progress: StageProgress) -> None:
        baselines = site_baselines(run, records, directory, None, progress.advance)
        scaled = [site for site in run.sites if is_scaled(run, site)]
        grid = _Grid(run, search, records, directory)
        shared = None
        if search.scope == "shared" and scaled:
            judges = selected_sites(run, baselines, scaled)
            shared = search_shared({site.name: grid.table(site) for site in judges}, [site.name for site in judges])
        for site in run.sites:
            if is_scaled(run, site):
                grid.settle(site, shared)
            progress.advance()  # also for sites without scales: the total counts every site twice
        write_json(directory / CHOICE, _description(run, search, shared))

    return Stage(
        name="search",
        unit="layer",
        total=2 * len(run.sites),
        inputs={"upstream": upstream, "policy": run.policy_inputs()},
        produce=produce,
        resumable=True,
    )


def is_scaled(run: Run, site: Site) -> bool:
    """Whether the policy gives this site a diagonal, which a search or a training can improve."""
    return run.settings[site.name].transform.kind.scales_channels


def site_baselines(
    run: Run, records: Path, directory: Path, known: Path | None, advance: Callable[[], None]
) -> dict[str, float]:
    """E of SmoothRot(0.5, max) on validation tokens, by site name.

    Each site has its own file in ``directory``. Where the directory ``known`` of an earlier stage is given, its values
    are copied.
    """
    found = {}
    for site in run.sites:
        path = directory / f"{site.name}.baseline.json"
        if not path.is_file():
            if known is None:
                opened = OpenSite(run, site, records)
                error = opened.baseline_error()
            else:
                error = read_json(known / path.name)["error"]
            write_json(path, {"error": error})
        found[site.name] = read_json(path)["error"]
        advance()
    return found


def selected_layers(run: Run, baselines: dict[str, float]) -> dict[str, LayerGroup]:
    """The group, ``critical`` or ``normal``, of each selected site, ranked by the given baseline errors."""
    search = run.spec.policy.search
    return choose_layers(baselines, search.layers if search is not None else LayerChoice())


def selected_sites(run: Run, baselines: dict[str, float], among: list[Site]) -> list[Site]:
    """The sites of ``among`` on which shared choices are judged; all of them where none is selected."""
    # The ranking covers all sites, so it is possible that no site of ``among`` is in it.
    selected = selected_layers(run, baselines)
    return [site for site in among if site.name in selected] or among


class _Grid:
    """The candidates of the grid, and the scores of each site, stored in files as soon as they are measured."""

    def __init__(self, run: Run, search: GridSearch, records: Path, directory: Path) -> None:
        self._run = run
        self._search = search
        self._records = records
        self._directory = directory

    def table(self, site: Site) -> SiteScores:
        """The site's scores of every candidate."""
        return self._scores(site, self._candidates(site), "table")

    def settle(self, site: Site, shared: SharedChoice | None) -> None:
        """Write the site's plan: the shared or its own best candidate, or its baseline where the guard refuses both."""
        candidates = self._candidates(site)
        if shared is None:
            accepted = search_layer(self.table(site))
        # The shared candidate is the only one in this table, so it has the index 0.
        elif guarded(0, self._scores(site, [candidates[shared.index]], "shared")) is None:
            accepted = None
        else:
            accepted = shared.index
        own = self._run.settings[site.name].transform
        transform = baseline_transform(own) if accepted is None else candidates[accepted]
        write_plan(self._directory, site, OpenSite(self._run, site, self._records).plan(transform))

    def _candidates(self, site: Site) -> tuple[Transform, ...]:
        return candidate_transforms(self._search, self._run.settings[site.name].transform)

    def _scores(self, site: Site, candidates: Sequence[Transform], label: str) -> SiteScores:
        path = self._directory / f"{site.name}.{label}.json"
        if not path.is_file():
            opened = OpenSite(self._run, site, self._records)
            # The baseline is measured in the same call as the candidates: the guard compares their errors.
            wanted = (baseline_transform(opened.settings.transform), *candidates)
            write_json(path, {"errors": opened.validation_errors([opened.plan(each) for each in wanted])})
        baseline, *errors = read_json(path)["errors"]
        return SiteScores(baseline=baseline, errors=tuple(errors))


def _description(run: Run, search: GridSearch, shared: SharedChoice | None) -> dict[str, Any]:
    """What was tried and chosen, for the report."""
    candidates = candidate_transforms(search, run.spec.policy.transform)
    table: list[dict[str, Any]] = [
        {"alpha": each.alpha, "statistic": each.statistic.model_dump(mode="json")} for each in candidates
    ]
    if shared is None:
        return {"scope": search.scope, "candidates": table, "chosen": None}
    for row, mean in zip(table, shared.unguarded_means, strict=True):
        row["mean_validation_error"] = mean
    return {"scope": search.scope, "candidates": table, "chosen": table[shared.index]}
