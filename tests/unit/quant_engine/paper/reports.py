"""A small experiment with made-up errors: two layers, and a quantile policy that explodes on one of them."""

from typing import Any

from quant_engine.paper import (
    Configuration,
    Family,
    Layer,
    Replay,
    ScalePoint,
    Score,
    experiment_report,
    n1_points,
    n2_points,
    n3_points,
    scale_family,
    t1_configurations,
    t2_configurations,
    training_family,
)
from quant_engine.policy import PaperExperiment

EXPERIMENT = PaperExperiment(alpha=(0.4, 0.5), q=(0.9, 0.99, 1.0), top=2, learning_rates=(0.01, 0.02))
BASELINE = {"a": Score(test=10.0, validation=8.0), "b": Score(test=4.0, validation=4.0)}


def flat(test: float, validation: float) -> dict[str, Score]:
    """The same score on both layers."""
    return {name: Score(test=test, validation=validation) for name in BASELINE}


def scale_scores(point: ScalePoint) -> dict[str, Score]:
    """α = 0.4 is a tenth better than 0.5; q = 0.99 as much again; q = 0.9 looks best on the whole and explodes on b."""
    factor = (0.9 if point.alpha == 0.4 else 1.0) * (0.9 if point.q == 0.99 else 1.0)
    scores = {
        name: Score(test=factor * each.test, validation=factor * each.validation) for name, each in BASELINE.items()
    }
    if point.q == 0.9:
        return {"a": Score(test=0.1, validation=0.1), "b": Score(test=8.1, validation=4.0)}
    return scores


def small_scales() -> dict[str, Family[ScalePoint]]:
    """N1, N2 and N3."""

    def family(name: str, points: list[ScalePoint]) -> Family[ScalePoint]:
        return scale_family(name, {point: scale_scores(point) for point in points}, BASELINE)

    n1, n2 = family("N1", n1_points(EXPERIMENT)), family("N2", n2_points(EXPERIMENT))
    return {"N1": n1, "N2": n2, "N3": family("N3", n3_points(n1, n2, EXPERIMENT.top))}


def small_trained(scales: dict[str, Family[ScalePoint]]) -> dict[str, Family[Configuration]]:
    """T1, where test and validation tokens disagree, and T2, which is better."""
    first, second = t1_configurations(EXPERIMENT)
    t1 = training_family("T1", {first: flat(5.0, 6.0), second: flat(6.0, 5.0)})
    configurations = t2_configurations(EXPERIMENT, scales["N3"], t1)
    return {
        "T1": t1,
        "T2": training_family("T2", {each: flat(4.0 + i, 4.0 + i) for i, each in enumerate(configurations)}),
    }


def small_report() -> dict[str, Any]:
    """The report: T3 gains on a, and loses on b, which was not selected by group."""
    scales = small_scales()
    trained = small_trained(scales)
    layers = [
        Layer(name="a", block=3, group="critical", baseline=BASELINE["a"]),
        Layer(name="b", block=1, group="normal", baseline=BASELINE["b"]),
    ]
    replays = [
        Replay(layer=layers[1], score=Score(test=5.0, validation=4.5)),
        Replay(layer=layers[0], score=Score(test=6.0, validation=5.0)),
    ]
    return experiment_report(EXPERIMENT, layers, scales, trained, trained["T2"].chosen.member, replays)


def small_curves() -> dict[str, list[dict[str, Any]]]:
    """One training of each kind; the second layer was not trained, the first stopped early."""
    curve = [{"step": 10, "validation_error": 9.0}, {"step": 20, "validation_error": 7.0}]
    start = {"alpha": 0.4, "q": 0.99}
    return {
        "T1": [{"start": None, "learning_rate": 0.01, "curves": [curve, []]}],
        "T2": [{"start": start, "learning_rate": 0.01, "curves": [curve, curve[:1]]}],
    }
