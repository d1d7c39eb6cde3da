"""Overall progress and the time left, on a clock that the test turns."""

import itertools

import pytest

from quant_engine.interface.stages import stage_weights
from quant_engine.policy import PRESETS, Calibration, Evaluation, Output, Tuning
from tests.stages import STAGES
from worker.attempts.progress import ProgressTracker


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def weights_of(preset: str) -> dict[str, float]:
    return stage_weights(PRESETS[preset].policy, Calibration(), Evaluation())


def test_only_the_stages_a_policy_needs_are_weighed() -> None:
    whole = PRESETS["trainable-smoothrot-w4a4"].policy.model_copy(update={"tuning": Tuning()})
    also = Output(also=("gguf-source",))
    assert tuple(stage_weights(whole, Calibration(), Evaluation(), also)) == STAGES
    assert set(weights_of("trainable-smoothrot-w4a4")) == set(STAGES) - {"tune", "gguf_source"}
    assert not {"search", "train"} & weights_of("rtn-w4a4").keys()
    without = stage_weights(PRESETS["rtn-w4a4"].policy, Calibration(), Evaluation(perplexity=None))
    assert "evaluate" not in without


def test_a_measurement_is_weighed_by_its_own_stages() -> None:
    weights = weights_of("evaluate")
    assert tuple(weights) == ("resolve", "load", "evaluate", "publish")
    assert weights["evaluate"] < weights_of("rtn-w4a4")["evaluate"]  # one model instead of two


def test_rotations_are_learned_before_anything_is_calibrated(clock: Clock) -> None:
    weights = weights_of("spinquant-w4a4")
    assert list(weights)[:4] == ["resolve", "load", "train", "calibrate"]
    tracker = ProgressTracker(weights, clock=clock)
    tracker.start("train", "step", 10)
    assert tracker.snapshot().fraction == pytest.approx(2.0 / sum(weights.values()))


def test_training_weighs_by_its_steps_beside_a_fixed_part() -> None:
    policy = PRESETS["trainable-smoothrot-w4a4"].policy

    def weight(steps: int) -> float:
        assert policy.training is not None
        training = policy.training.model_copy(update={"steps": steps})
        changed = policy.model_copy(update={"training": training})
        return stage_weights(changed, Calibration(), Evaluation())["train"]

    assert weight(800) - weight(80) == pytest.approx(9 * (weight(160) - weight(80)))
    assert weight(800) > weight(80) > weight(800) / 10


@pytest.mark.parametrize("preset", ["best-w4a4", "spinquant-w4a4"])
def test_training_of_blocks_and_rotations_weighs_by_steps_and_samples(preset: str) -> None:
    policy = PRESETS[preset].policy

    def weight(**fields: int) -> float:
        assert policy.training is not None
        changed = policy.model_copy(update={"training": policy.training.model_copy(update=fields)})
        return stage_weights(changed, Calibration(), Evaluation())["train"]

    assert weight(steps=100) == pytest.approx(10 * weight(steps=10))
    assert weight(batch_samples=8) == pytest.approx(8 * weight(batch_samples=1))


def test_rounding_by_gptq_and_choosing_among_many_weigh_more() -> None:
    plain, adaptive, best = (weights_of(name) for name in ("duquant-w4a4", "adaptive-w4a4", "best-w4a4"))
    assert adaptive["quantize"] == best["quantize"] > plain["quantize"]
    assert adaptive["select"] > plain["select"] == best["select"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_weighed_by_positive_numbers(preset: str) -> None:
    policy, weights = PRESETS[preset].policy, weights_of(preset)
    assert all(weight > 0.0 for weight in weights.values())
    assert ("search" in weights, "train" in weights) == (policy.search is not None, policy.training is not None)


def test_fraction_goes_from_zero_to_one_and_never_back(clock: Clock) -> None:
    weights = weights_of("trainable-smoothrot-w4a4")
    tracker = ProgressTracker(weights, clock=clock)
    readings = [tracker.snapshot().fraction]
    for name in weights:
        tracker.start(name, "layer", 4)
        for done in (1, 2, 4, 3):  # a total or a count that shrinks must not show
            clock.now += 1.0
            tracker.advance(name, done, 4)
            readings.append(tracker.snapshot().fraction)
        tracker.finish(name, reused=False)
        readings.append(tracker.snapshot().fraction)
    assert readings[0] == 0.0
    assert readings[-1] == pytest.approx(1.0)
    assert all(before <= after for before, after in itertools.pairwise(readings))


def test_a_growing_total_does_not_move_the_fraction_back(clock: Clock) -> None:
    tracker = ProgressTracker({"train": 1.0}, clock=clock)
    tracker.start("train", "layer", 10)
    tracker.advance("train", 8, 10)
    before = tracker.snapshot().fraction
    tracker.advance("train", 8, 100)
    assert tracker.snapshot().fraction == before == 0.8


def test_starting_a_stage_ends_those_before_it(clock: Clock) -> None:
    tracker = ProgressTracker({"load": 1.0, "calibrate": 1.0, "train": 2.0}, clock=clock)
    tracker.start("load", "block", 2)
    tracker.start("train", "layer", 2)
    reading = tracker.snapshot()
    assert (reading.stage, reading.fraction) == ("train", 0.5)


def test_no_estimate_before_anything_was_observed(clock: Clock) -> None:
    tracker = ProgressTracker({"load": 1.0, "train": 2.0}, clock=clock)
    assert tracker.snapshot().eta_p50 is None
    tracker.start("load", "block", 2)
    clock.now += 3.0
    assert tracker.snapshot().eta_p50 is None


def test_time_left_of_the_running_stage_comes_from_its_units(clock: Clock) -> None:
    tracker = ProgressTracker({"train": 1.0}, clock=clock)
    tracker.start("train", "layer", 10)
    for done in range(1, 5):
        clock.now += 7.0
        tracker.advance("train", done, 10)
    reading = tracker.snapshot()
    assert reading.eta_p50 == reading.eta_p90 == pytest.approx(42.0)
    clock.now += 3.0  # a unit under way counts for what has passed of it
    assert tracker.snapshot().eta_p50 == pytest.approx(39.0)
    clock.now += 1000.0  # and a slow one for no more than a typical unit
    assert tracker.snapshot().eta_p50 == pytest.approx(35.0)


def test_uneven_units_widen_the_upper_estimate(clock: Clock) -> None:
    tracker = ProgressTracker({"train": 1.0}, clock=clock)
    tracker.start("train", "layer", 8)
    for done, seconds in enumerate((4.0, 10.0, 6.0, 8.0), start=1):
        clock.now += seconds
        tracker.advance("train", done, 8)
    reading = tracker.snapshot()
    assert reading.eta_p50 == pytest.approx(28.0)
    # 4 units of deviation √5: 1.2816 · √5 · √4 above the median's estimate.
    assert reading.eta_p90 == pytest.approx(28.0 + 1.2816 * 5**0.5 * 2)


def test_units_found_done_by_a_resumed_stage_do_not_flatter(clock: Clock) -> None:
    tracker = ProgressTracker({"train": 1.0}, clock=clock)
    tracker.start("train", "layer", 10)
    for done in range(1, 6):
        clock.now += 0.001
        tracker.advance("train", done, 10)
    clock.now += 20.0
    tracker.advance("train", 6, 10)
    assert tracker.snapshot().eta_p50 == pytest.approx(80.0)


def test_stages_to_come_cost_what_a_unit_of_weight_has_cost(clock: Clock) -> None:
    tracker = ProgressTracker({"load": 1.0, "train": 4.0, "export": 2.0}, clock=clock)
    tracker.start("load", "block", 1)
    clock.now += 10.0
    tracker.finish("load", reused=False)
    between = tracker.snapshot()
    assert (between.eta_p50, between.eta_p90) == (pytest.approx(60.0), pytest.approx(90.0))
    tracker.start("train", "layer", 2)
    clock.now += 5.0
    assert tracker.snapshot().eta_p50 == pytest.approx(35.0 + 20.0)


def test_a_reused_stage_teaches_nothing_about_cost(clock: Clock) -> None:
    tracker = ProgressTracker({"load": 1.0, "train": 4.0}, clock=clock)
    tracker.start("load", "block", 1)
    clock.now += 0.001
    tracker.finish("load", reused=True)
    reading = tracker.snapshot()
    assert reading.eta_p50 is None
    assert reading.fraction == pytest.approx(0.2)


def test_estimates_shrink_to_nothing_at_the_end(clock: Clock) -> None:
    tracker = ProgressTracker({"load": 1.0, "train": 4.0}, clock=clock)
    for name in ("load", "train"):
        tracker.start(name, "unit", 1)
        clock.now += 2.0
        tracker.advance(name, 1, 1)
        tracker.finish(name, reused=False)
    reading = tracker.snapshot()
    assert (reading.fraction, reading.eta_p50, reading.eta_p90) == (pytest.approx(1.0), 0.0, 0.0)
