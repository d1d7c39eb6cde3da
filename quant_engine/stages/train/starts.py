"""What block training starts from: a plan for each site, or the candidates of a selection among learned transforms.

The adaptive paper (arXiv 2511.17809) chooses between learned transforms. Without a selection a block is trained once,
from the policy's transform. With one, the kinds of selection do this:

kurtosis: the rule reads the weights, so it chooses before the training, and the chosen transforms are learned.
lowest error: the block is trained once under each candidate, and the lowest loss on validation samples is taken.
differentiable: the weights of the candidates are learned together with the candidates' own parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from quant_engine.errors import EngineError
from quant_engine.models import Site
from quant_engine.policy import AnySelection, Differentiable, Kurtosis, LowestError
from quant_engine.selection import Tails, candidates_of
from quant_engine.stages.candidates import Candidate, built_candidate, distinct_candidates
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.plan_files import PlanReader
from quant_engine.training import Candidates, Start, TrainedBlock
from quant_engine.transforms import SitePlan
from quant_engine.transforms.composition import online_cost


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One training of a block.

    Attributes:
        starts: by the site's name.
        names: of the candidates of each site, in the order of their weights; empty without a selection.
        facts: of each site for the report.
        penalty: the factor of the loss by which trials are compared, for their online cost.
    """

    starts: dict[str, Start]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    penalty: float = 1.0


Result = tuple[Trial, TrainedBlock]


def best_result(results: Sequence[Result]) -> Result:
    """The trial with the lowest loss on validation samples; of equals, the first."""
    # The loss is a squared error. λ of the selection is defined for the error itself, so the penalty is squared.
    return min(results, key=lambda result: result[1].best_loss * result[0].penalty ** 2)


def choices(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """The report of the choice at each site; empty without a selection.

    E of a learned candidate is not measured. The losses of the block decide, and the weights of a mixture.
    """
    kept, trained = best_result(results)
    report = {}
    for site, names in kept.names.items():
        weights = _weights(trained, site)
        report[site] = {
            "chosen": names[weights.index(max(weights))],
            "learned": True,
            "candidates": [row for result in results for row in _rows(*result, site)],
        } | kept.facts[site]
    return report


def _rows(trial: Trial, trained: TrainedBlock, site: str) -> list[dict[str, Any]]:
    unmeasured = {"error": None, "test_error": None, "online_cost": None}
    pairs = zip(trial.names[site], _weights(trained, site), strict=True)
    return [{"name": name, "weight": each, "block_loss": trained.best_loss} | unmeasured for name, each in pairs]


def _weights(trained: TrainedBlock, site: str) -> tuple[float, ...]:
    return trained.weights.get(site, (1.0,))


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockStarts:
    """Builds the trials of a block.

    Attributes:
        records: the directory of the calibration records.
        found: the plan that a search chose for a site.
        tails: the kurtosis of every site, where the selection reads it.
    """

    run: Run
    records: Path
    found: PlanReader
    tails: Mapping[str, Tails]

    def trials(self, sites: Sequence[Site]) -> list[Trial]:
        """The trainings of a block, one of which is taken.

        Raises:
            NumericalInstability, UnsupportedPolicy: no candidate can be built for a site.
        """
        selection = self.run.spec.policy.selection
        if selection is None:
            return [Trial(starts={site.name: self._own(site) for site in sites})]
        return _TRIALS[type(selection)](self, selection, sites)

    def built(self, site: Site, selection: AnySelection) -> tuple[list[Candidate], tuple[int, ...]]:
        """The distinct candidates of a site, and the place of each candidate of the selection among them."""
        opened, found = OpenSite(self.run, site, self.records), self.found(site)
        apart, places = distinct_candidates(opened, selection, found)
        return [built_candidate(opened, each, found) for each in apart], places

    def block_cost(self, sites: Sequence[Site], candidates: Mapping[str, Candidate]) -> float:
        """Multiply-adds of a block's online transforms, divided by those of the linears behind them."""
        linears = {site.name: sum(w_OI.numel() for w_OI in self.run.site_weights(site)) for site in sites}
        online = sum(online_cost(_plan(candidates[site.name]).online, site.features) for site in sites)
        return online / sum(linears.values())

    def _own(self, site: Site) -> SitePlan:
        found, opened = self.found(site), OpenSite(self.run, site, self.records)
        return opened.plan(opened.settings.transform) if found is None else opened.clipped(found)


def _by_rule(starts: BlockStarts, selection: Kurtosis, sites: Sequence[Site]) -> list[Trial]:
    """One training, from the transform that the kurtosis of each site's weights asks for."""
    trial = Trial(starts={})
    for site in sites:
        tails = starts.tails[site.name]
        candidates, (outlying, typical) = starts.built(site, selection)
        first, second = (outlying, typical) if tails.outlying else (typical, outlying)
        # The other one, where the rule's choice does not fit the site.
        chosen = candidates[first] if candidates[first].plan is not None else candidates[second]
        trial.starts[site.name] = _plan(chosen)
        trial.names[site.name] = (chosen.name,)
        trial.facts[site.name] = {"kind": selection.kind} | asdict(tails)
    return [trial]


def _each_alone(starts: BlockStarts, selection: LowestError, sites: Sequence[Site]) -> list[Trial]:
    """One training for each candidate that fits every site of the block."""
    built = {site.name: starts.built(site, selection) for site in sites}
    trials: dict[tuple[str, ...], Trial] = {}
    refusals: list[EngineError] = []
    for index in range(len(candidates_of(selection))):
        here = {name: candidates[places[index]] for name, (candidates, places) in built.items()}
        refused = [each.refused for each in here.values() if each.refused is not None]
        if refused:
            refusals += refused
            continue
        trial = Trial(
            starts={name: _plan(each) for name, each in here.items()},
            names={name: (each.name,) for name, each in here.items()},
            facts={name: {"kind": selection.kind} for name in here},
            penalty=1.0 + selection.online_cost * starts.block_cost(sites, here),
        )
        # Candidates that are equal at every site of the block are trained once.
        trials.setdefault(tuple(each.name for each in here.values()), trial)
    if not trials:
        raise refusals[0]
    return list(trials.values())


def _mixed(starts: BlockStarts, selection: Differentiable, sites: Sequence[Site]) -> list[Trial]:
    """One training, in which every site has all candidates that fit it."""
    trial = Trial(starts={})
    for site in sites:
        candidates, _ = starts.built(site, selection)
        usable = [each for each in candidates if each.plan is not None] or [candidates[0]]
        trial.starts[site.name] = Candidates(plans=[_plan(each) for each in usable], settings=selection)
        trial.names[site.name] = tuple(each.name for each in usable)
        trial.facts[site.name] = {"kind": selection.kind}
    return [trial]


def _plan(candidate: Candidate) -> SitePlan:
    if candidate.plan is None:
        assert candidate.refused is not None  # noqa: S101 -- a candidate has one of the two
        raise candidate.refused
    return candidate.plan


_TRIALS: Final[dict[type, Callable[[BlockStarts, Any, Sequence[Site]], list[Trial]]]] = {
    Kurtosis: _by_rule,
    LowestError: _each_alone,
    Differentiable: _mixed,
}
