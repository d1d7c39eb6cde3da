"""The request of a job and its policy, as frozen types without torch, so every part of the service can use them."""

from quant_engine.policy.format_spec import FormatSpec, Scheme
from quant_engine.policy.formats import (
    ActivationQuantization,
    GptqSettings,
    NumberFormat,
    WeightQuantization,
    float_format,
    in_words,
)
from quant_engine.policy.patterns import matches
from quant_engine.policy.presets import PRESETS, Preset
from quant_engine.policy.profiles import Profile, check_profile
from quant_engine.policy.request import (
    BUILT_IN,
    SELF,
    Calibration,
    Evaluation,
    HubTarget,
    InlineTexts,
    JobRequest,
    Limits,
    ModelReference,
    Output,
    Perplexity,
)
from quant_engine.policy.resolve import PolicyError, policy_hash, resolve_policy
from quant_engine.policy.search import AnySearch, GridSearch, LayerChoice, PaperExperiment
from quant_engine.policy.selection import AnySelection, Candidate, Differentiable, Kurtosis, LowestError
from quant_engine.policy.site_settings import SiteQuantization, SiteSettings, linear_settings
from quant_engine.policy.training import AnyTraining, BlockTraining, RotationTraining, Training
from quant_engine.policy.transform import Residual, Statistic, Transform, TransformKind
from quant_engine.policy.types import Override, Policy

__all__ = [
    "BUILT_IN",
    "PRESETS",
    "SELF",
    "ActivationQuantization",
    "AnySearch",
    "AnySelection",
    "AnyTraining",
    "BlockTraining",
    "Calibration",
    "Candidate",
    "Differentiable",
    "Evaluation",
    "FormatSpec",
    "GptqSettings",
    "GridSearch",
    "HubTarget",
    "InlineTexts",
    "JobRequest",
    "Kurtosis",
    "LayerChoice",
    "Limits",
    "LowestError",
    "ModelReference",
    "NumberFormat",
    "Output",
    "Override",
    "PaperExperiment",
    "Perplexity",
    "Policy",
    "PolicyError",
    "Preset",
    "Profile",
    "Residual",
    "RotationTraining",
    "Scheme",
    "SiteQuantization",
    "SiteSettings",
    "Statistic",
    "Training",
    "Transform",
    "TransformKind",
    "WeightQuantization",
    "check_profile",
    "float_format",
    "in_words",
    "linear_settings",
    "matches",
    "policy_hash",
    "resolve_policy",
]
