"""The order of the stages is the contract's, and follows the policy where that changes it."""

from typing import get_args

from quant_engine.interface.stages import RetryStage, stage_order, stages_from
from quant_engine.policy import PRESETS
from tests.stages import STAGES

USUAL = PRESETS["trainable-smoothrot-w4a4"].policy
ROTATION = PRESETS["spinquant-w4a4"].policy


def test_the_names_are_those_of_the_contract_in_its_order() -> None:
    assert stage_order(USUAL) == STAGES
    assert (*get_args(RetryStage), "publish") == STAGES


def test_what_comes_after_a_stage_is_computed_with_it() -> None:
    assert stages_from("export", USUAL) == ("export", "verify", "publish")
    assert stages_from("resolve", USUAL) == STAGES


def test_learned_rotations_come_before_the_calibration_that_uses_them() -> None:
    assert sorted(stage_order(ROTATION)) == sorted(STAGES)
    assert stages_from("train", ROTATION)[:3] == ("train", "calibrate", "search")
    assert "train" not in stages_from("calibrate", ROTATION)
