"""The families N1, N2, N3, T1 and T2 of arXiv 2606.09927: the members of each, and how they are ranked.

Members are ranked by their mean E over the selected layers. N1 to N3 are ranked on test tokens, as in the paper. T1 and
T2 are ranked on validation tokens, because trainings are judged there. Every member has both scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from quant_engine.policy import PaperExperiment, Statistic, Transform

Split = Literal["test", "validation"]

EXPLOSION: Final = 2.0
"""A scale policy explodes on a layer where its E exceeds this many times SmoothRot's. The number is ours: the paper
shows a cliff below q ≈ 0.994, where errors grow by an order of magnitude and more."""


@dataclass(frozen=True, kw_only=True, order=True)
class ScalePoint:
    """The scale policy s = Q_q(abs X)^α / max(abs W)^(1−α); q = 1 is the maximum."""

    alpha: float
    q: float

    @property
    def label(self) -> str:
        """The name of the point in file names. Equal points have equal names."""
        # ``repr`` of a float is exact, so different points never share a file.
        return f"alpha-{self.alpha!r}-q-{self.q!r}"

    def transform(self, base: Transform) -> Transform:
        """``base`` with the scale policy of this point."""
        statistic = Statistic(kind="quantile", q=self.q) if self.q < 1.0 else Statistic(kind="absmax")
        return base.model_copy(update={"alpha": self.alpha, "statistic": statistic})

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {"alpha": self.alpha, "q": self.q}


BASELINE_POINT: Final = ScalePoint(alpha=0.5, q=1.0)
"""SmoothRot, arXiv 2506.05413."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Training from the scales of ``start``, or from s = 1 where that is None, at one learning rate."""

    start: ScalePoint | None
    learning_rate: float

    @property
    def label(self) -> str:
        """The name of the configuration in file names. Equal configurations have equal names."""
        return f"{'ones' if self.start is None else self.start.label}.rate-{self.learning_rate!r}"

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {"start": None if self.start is None else self.start.fields(), "learning_rate": self.learning_rate}


@dataclass(frozen=True, kw_only=True)
class Score:
    """E = ‖Y − Ŷ‖_F of one layer on each split's tokens."""

    test: float
    validation: float

    def on(self, split: Split) -> float:
        """E on one split."""
        return self.test if split == "test" else self.validation


Member = TypeVar("Member", ScalePoint, Configuration)


@dataclass(frozen=True, kw_only=True)
class Row(Generic[Member]):
    """A member of a family with its score on every selected layer; ``exploded`` names the layers where it explodes."""

    member: Member
    scores: Mapping[str, Score]
    exploded: tuple[str, ...] = ()

    def mean(self, split: Split) -> float:
        """Mean E over the selected layers."""
        return sum(score.on(split) for score in self.scores.values()) / len(self.scores)


@dataclass(frozen=True, kw_only=True)
class Family(Generic[Member]):
    """The members of a family, in the order in which they were tried.

    Attributes:
        judged_on: the split whose mean E decides.
        fallback: the row that is chosen if every member explodes.
    """

    name: str
    judged_on: Split
    rows: tuple[Row[Member], ...]
    fallback: Row[Member] | None = None

    def ranked(self, split: Split | None = None) -> list[Row[Member]]:
        """The members that may be chosen, the best first, ranked on ``split`` or on the family's own split.

        Equal members are in the order in which they were tried.

        Raises:
            ValueError: no member may be chosen, and there is no fallback.
        """
        safe = [row for row in self.rows if not row.exploded]
        if not safe and self.fallback is not None:
            return [self.fallback]
        if not safe:
            raise ValueError(f"family {self.name} has no member to choose")
        # ``sorted`` is stable, so equal members stay in the order in which they were tried.
        return sorted(safe, key=lambda row: row.mean(split or self.judged_on))

    @property
    def chosen(self) -> Row[Member]:
        """The best member."""
        return self.ranked()[0]


def scale_family(
    name: str, scored: Mapping[ScalePoint, Mapping[str, Score]], baseline: Mapping[str, Score]
) -> Family[ScalePoint]:
    """Build a family of scale policies, whose fallback is SmoothRot.

    Args:
        scored: the members in order, each with its score by layer.
        baseline: SmoothRot's score on the same layers.
    """
    rows = tuple(
        Row(member=point, scores=scores, exploded=_exploded(scores, baseline)) for point, scores in scored.items()
    )
    fallback = Row(member=BASELINE_POINT, scores=baseline)
    return Family(name=name, judged_on="test", rows=rows, fallback=fallback)


def training_family(name: str, scored: Mapping[Configuration, Mapping[str, Score]]) -> Family[Configuration]:
    """Build a family of trainings. None of them explodes, because a training returns its start if no step is better."""
    rows = tuple(Row(member=configuration, scores=scores) for configuration, scores in scored.items())
    return Family(name=name, judged_on="validation", rows=rows)


def n1_points(experiment: PaperExperiment) -> list[ScalePoint]:
    """N1: q = 1 and every α."""
    return [ScalePoint(alpha=alpha, q=1.0) for alpha in dict.fromkeys(experiment.alpha)]


def n2_points(experiment: PaperExperiment) -> list[ScalePoint]:
    """N2: α = 0.5 and every q."""
    return [ScalePoint(alpha=BASELINE_POINT.alpha, q=q) for q in dict.fromkeys(experiment.q)]


def n3_points(n1: Family[ScalePoint], n2: Family[ScalePoint], top: int) -> list[ScalePoint]:
    """N3: the ``top`` best α of N1 times the ``top`` best q of N2; a missing q = 1 replaces the last q."""
    alphas = [row.member.alpha for row in n1.ranked()[:top]]
    quantiles = [row.member.q for row in n2.ranked()[:top]]
    if 1.0 not in quantiles:
        quantiles = [*quantiles[: max(top - 1, 1)], 1.0]
    return [ScalePoint(alpha=alpha, q=q) for alpha in sorted(alphas) for q in sorted(quantiles)]


def t1_configurations(experiment: PaperExperiment) -> list[Configuration]:
    """T1: from s = 1 at every learning rate."""
    return [Configuration(start=None, learning_rate=rate) for rate in dict.fromkeys(experiment.learning_rates)]


def t2_configurations(
    experiment: PaperExperiment, n3: Family[ScalePoint], t1: Family[Configuration]
) -> list[Configuration]:
    """T2: from the ``top`` best policies of N3, at T1's best rate and at the next smaller one."""
    best = t1.chosen.member.learning_rate
    rates = [best, *sorted((rate for rate in experiment.learning_rates if rate < best), reverse=True)[:1]]
    starts = [row.member for row in n3.ranked()[: experiment.top]]
    return [Configuration(start=start, learning_rate=rate) for start in starts for rate in rates]


def unit_budget(experiment: PaperExperiment, sites: int) -> dict[str, int]:
    """An upper bound of the units of work of every phase, in order. A unit is one layer under one member."""
    # Only a bound, because members that explode do not reach the next family.
    selected = min(sites, experiment.layers.critical + experiment.layers.normal)
    alphas, quantiles = len(n1_points(experiment)), len(n2_points(experiment))
    rates = len(t1_configurations(experiment))
    crossed = min(experiment.top, alphas) * max(2, min(experiment.top, quantiles + 1))
    return {
        "baseline": sites,
        "N1": selected * alphas,
        "N2": selected * quantiles,
        "N3": selected * crossed,
        "T1": selected * rates,
        "T2": selected * min(experiment.top, crossed) * min(2, rates),
        "T3": sites,
        "report": 1,
    }


def _exploded(scores: Mapping[str, Score], baseline: Mapping[str, Score]) -> tuple[str, ...]:
    return tuple(name for name, score in scores.items() if _explodes(score, baseline[name], ("test", "validation")))


def _explodes(score: Score, baseline: Score, splits: Sequence[Split]) -> bool:
    return any(score.on(split) > EXPLOSION * baseline.on(split) for split in splits)
