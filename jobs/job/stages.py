"""The stages of a run by name, and the one place that says in which order they run."""

from typing import Final, Literal, get_args

from quant_engine.policy import Policy

StageName = Literal[
    "resolve", "load", "calibrate", "search", "train", "select", "quantize", "evaluate", "export", "verify"
]
"""Stages that a run can be taken up from; ``publish``, which ends one, keeps no files."""

PUBLISH: Final = "publish"

_STAGES: Final[tuple[str, ...]] = get_args(StageName)


def stage_order(policy: Policy) -> tuple[str, ...]:
    """Every stage that a run may have, in the order of this policy: it need not have them all."""
    if policy.training is not None and policy.training.kind == "rotation":
        others = [name for name in _STAGES if name != "train"]  # learned before anything is calibrated
        calibrate = others.index("calibrate")
        return (*others[:calibrate], "train", *others[calibrate:], PUBLISH)
    return (*_STAGES, PUBLISH)


def stages_from(stage: str, policy: Policy) -> tuple[str, ...]:
    """The stage and those after it: what has to be computed anew when the stage is."""
    order = stage_order(policy)
    return order[order.index(stage) :]
