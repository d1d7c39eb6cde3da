"""What a job is asked to do, as frozen types. Imports no torch: every room of the service can speak it."""

from quant_engine.policy.presets import PRESETS, Preset
from quant_engine.policy.request import (
    Calibration,
    Evaluation,
    InlineTexts,
    JobRequest,
    Limits,
    ModelReference,
    Output,
    Perplexity,
)
from quant_engine.policy.resolve import PolicyError, matches, policy_hash, resolve_policy
from quant_engine.policy.types import (
    ActivationQuantization,
    GridSearch,
    LayerChoice,
    LowestError,
    NumberFormat,
    Override,
    Policy,
    Statistic,
    Training,
    Transform,
    TransformKind,
    WeightQuantization,
)

__all__ = [
    "PRESETS",
    "ActivationQuantization",
    "Calibration",
    "Evaluation",
    "GridSearch",
    "InlineTexts",
    "JobRequest",
    "LayerChoice",
    "Limits",
    "LowestError",
    "ModelReference",
    "NumberFormat",
    "Output",
    "Override",
    "Perplexity",
    "Policy",
    "PolicyError",
    "Preset",
    "Statistic",
    "Training",
    "Transform",
    "TransformKind",
    "WeightQuantization",
    "matches",
    "policy_hash",
    "resolve_policy",
]
