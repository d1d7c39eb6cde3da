"""The report of the experiment: the rows of every family, Table I, the replay on all layers, and the published numbers.

It is plain JSON without times or paths, so that a resumed run gives the same bytes. Errors are E in the units of Y.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from quant_engine.paper.families import EXPLOSION, Configuration, Family, Member, Row, ScalePoint, Score
from quant_engine.policy import PaperExperiment

REPORT_VERSION: Final = 1

PUBLISHED: Final[dict[str, Any]] = {
    "source": "arXiv 2606.09927",
    "model": "LLaMA-3.2-1B, W4A4",
    "selected_mean_error": {"SmoothRot": 142.42, "N2": 126.63, "N3": 125.28, "T1": 116.15, "T2": 116.31},
    "gain_percent": {"N2": 11.1, "N3": 12.0, "T1": 18.45, "T2": 18.3},
    "chosen": {"N2": {"alpha": 0.5, "q": 0.994}, "N3": {"alpha": 0.475, "q": 0.994}},
    "table": {
        "SmoothRot": {"15": 306.03, "14": 146.35, "13": 122.81, "7": 71.97, "4": 64.96},
    },
    "T3": {"baseline_mean_error": 97.51, "mean_error": 78.08, "gain_percent": 19.9},
    "cliff": {"below_q": 0.994, "mean_error_at_q_0.95": 3270.0},
}
"""The numbers of the paper, as far as we know them; ``table`` is by block number."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with SmoothRot's score on it; ``group`` is None if it was not selected."""

    name: str
    block: int
    group: Literal["critical", "normal"] | None
    baseline: Score


@dataclass(frozen=True, kw_only=True)
class Replay:
    """T3 on one layer: the score of the best configuration, and whether the guard accepts it there."""

    layer: Layer
    score: Score

    @property
    def kept(self) -> bool:
        """Whether training is no worse than SmoothRot on validation tokens."""
        return self.score.validation <= self.layer.baseline.validation

    @property
    def kept_score(self) -> Score:
        """The score that the layer has after the guard."""
        return self.score if self.kept else self.layer.baseline


def experiment_report(
    experiment: PaperExperiment,
    layers: Sequence[Layer],
    scales: Mapping[str, Family[ScalePoint]],
    trained: Mapping[str, Family[Configuration]],
    configuration: Configuration,
    replays: Sequence[Replay],
) -> dict[str, Any]:
    """Build the whole report.

    Args:
        layers: the selected layers, in the order of the choice.
        scales: the families N1, N2 and N3; ``trained`` holds T1 and T2.
        configuration: the configuration that T3 replays; ``replays`` holds every layer, in forward order.
    """
    baseline = {layer.name: layer.baseline for layer in layers}
    families = {name: _family(family, baseline) for name, family in scales.items()}
    families |= {name: _family(family, baseline) for name, family in trained.items()}
    # Table I has no column for N1, for which PUBLISHED has no numbers.
    chosen = {name: family.chosen.scores for name, family in scales.items() if name != "N1"}
    chosen |= {name: family.chosen.scores for name, family in trained.items()}
    return {
        "version": REPORT_VERSION,
        "settings": experiment.model_dump(mode="json"),
        "method": {
            "error": "E = ‖Y − Q(X')Q(W')ᵀ‖_F of a layer on test tokens; a mean is over the selected layers",
            "baseline": "SmoothRot(0.5, max)",
            "layers": "ranked by the baseline on test tokens, as in the paper",
            "scale_policies": "chosen by mean E on test tokens, as in the paper; what validation chooses beside",
            "training": "steps and configurations are chosen on validation tokens and reported on test tokens",
            "guard": f"a scale policy with more than {EXPLOSION:g} times the baseline's E on a layer is never chosen",
        },
        "layers": [_layer(layer) for layer in layers],
        "baseline": {"mean_error": _mean(baseline), "mean_validation_error": _mean(baseline, "validation")},
        "families": families,
        "exploded": _explosions(scales),
        "table": _table(layers, chosen),
        "T3": _replay(configuration, replays),
        "published": PUBLISHED,
    }


def profile_report(name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """The channel scales of one layer under SmoothRot and after training, each with geometric mean 1."""
    return {"layer": name, "before": list(before), "after": list(after)}


def gain_percent(error: float, baseline: float) -> float:
    """How far ``error`` is below ``baseline``, in percent of it; 0 where both are zero."""
    return 100.0 * (1.0 - error / baseline) if baseline else 0.0


def _mean(scores: Mapping[str, Score], split: Literal["test", "validation"] = "test") -> float:
    return sum(score.on(split) for score in scores.values()) / len(scores)


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "block": layer.block,
        "group": layer.group,
        "baseline_error": layer.baseline.test,
        "baseline_validation_error": layer.baseline.validation,
    }


def _family(family: Family[Member], baseline: Mapping[str, Score]) -> dict[str, Any]:
    """The rows in the order in which they were tried, the choice, and the choice that each split alone would give."""
    return {
        "judged_on": family.judged_on,
        "chosen": _brief(family.chosen, baseline),
        "best_by_test": _brief(family.ranked("test")[0], baseline),
        "best_by_validation": _brief(family.ranked("validation")[0], baseline),
        "rows": [
            _brief(row, baseline)
            | {"errors": {name: score.test for name, score in row.scores.items()}, "exploded": list(row.exploded)}
            for row in family.rows
        ],
    }


def _brief(row: Row[Member], baseline: Mapping[str, Score]) -> dict[str, Any]:
    return row.member.fields() | {
        "mean_error": row.mean("test"),
        "mean_validation_error": row.mean("validation"),
        "gain_percent": gain_percent(row.mean("test"), _mean(baseline)),
    }


def _explosions(scales: Mapping[str, Family[ScalePoint]]) -> list[dict[str, Any]]:
    """Every scale policy that explodes on some layer, once, with the names of these layers."""
    found = {row.member: row.exploded for family in scales.values() for row in family.rows if row.exploded}
    return [point.fields() | {"layers": list(names)} for point, names in sorted(found.items())]


def _table(layers: Sequence[Layer], chosen: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Table I: a row for each selected layer, a column for each family, and their means and gains."""
    columns = {"SmoothRot": {layer.name: layer.baseline for layer in layers}} | dict(chosen)
    means = {name: _mean(scores) for name, scores in columns.items()}
    return {
        "columns": list(columns),
        "rows": [
            {"layer": layer.name, "block": layer.block, "group": layer.group}
            | {name: scores[layer.name].test for name, scores in columns.items()}
            for layer in layers
        ],
        "mean": means,
        "gain_percent": {name: gain_percent(mean, means["SmoothRot"]) for name, mean in means.items()},
    }


def _replay(configuration: Configuration, replays: Sequence[Replay]) -> dict[str, Any]:
    baseline = _mean({each.layer.name: each.layer.baseline for each in replays})
    mean = _mean({each.layer.name: each.score for each in replays})
    guarded = _mean({each.layer.name: each.kept_score for each in replays})
    return {
        "configuration": configuration.fields(),
        "rows": [
            _layer(each.layer)
            | {
                "error": each.score.test,
                "validation_error": each.score.validation,
                "gain_percent": gain_percent(each.score.test, each.layer.baseline.test),
                "kept": each.kept,
            }
            for each in replays
        ],
        "baseline_mean_error": baseline,
        "mean_error": mean,
        "gain_percent": gain_percent(mean, baseline),
        "guarded_mean_error": guarded,
        "guarded_gain_percent": gain_percent(guarded, baseline),
    }
