"""The request of a job and its policy, as frozen types without torch, so every part of the service can use them."""

from quant_engine.policy.also import check_also
from quant_engine.policy.choice import choice_required, popular_presets, undecided
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
from quant_engine.policy.policy_error import PolicyError
from quant_engine.policy.presets import PRESETS, Preset
from quant_engine.policy.profiles import Profile, check_profile
from quant_engine.policy.request import (
    BUILT_IN,
    HUB_DATASETS,
    SELF,
    Also,
    Calibration,
    ChatMessage,
    Dataset,
    Evaluation,
    HubDataset,
    HubTarget,
    InlineMessages,
    InlineTexts,
    JobRequest,
    Limits,
    ModelReference,
    Output,
    Perplexity,
)
from quant_engine.policy.resolve import policy_hash, resolve_policy
from quant_engine.policy.search import AnySearch, GridSearch, LayerChoice, PaperExperiment
from quant_engine.policy.selection import AnySelection, Candidate, Differentiable, Kurtosis, LowestError
from quant_engine.policy.site_settings import SiteQuantization, SiteSettings, linear_settings
from quant_engine.policy.training import AnyTraining, BlockTraining, RotationTraining, Training
from quant_engine.policy.transform import Residual, Statistic, Transform, TransformKind
from quant_engine.policy.tuning import Tuning
from quant_engine.policy.types import Nothing, Override, Policy

__all__ = [
    "BUILT_IN",
    "HUB_DATASETS",
    "PRESETS",
    "SELF",
    "ActivationQuantization",
    "Also",
    "AnySearch",
    "AnySelection",
    "AnyTraining",
    "BlockTraining",
    "Calibration",
    "Candidate",
    "ChatMessage",
    "Dataset",
    "Differentiable",
    "Evaluation",
    "FormatSpec",
    "GptqSettings",
    "GridSearch",
    "HubDataset",
    "HubTarget",
    "InlineMessages",
    "InlineTexts",
    "JobRequest",
    "Kurtosis",
    "LayerChoice",
    "Limits",
    "LowestError",
    "ModelReference",
    "Nothing",
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
    "Tuning",
    "WeightQuantization",
    "check_also",
    "check_profile",
    "choice_required",
    "float_format",
    "in_words",
    "linear_settings",
    "matches",
    "policy_hash",
    "popular_presets",
    "resolve_policy",
    "undecided",
]
