"""Equivalent transforms of a linear's input: channel statistics, scale policies, primitives and plans."""

from quant_engine.transforms.closed_form import capped_tokens, cat_blocks, covariance_of, wush_blocks
from quant_engine.transforms.composition import (
    apply_all,
    apply_online_all,
    online_cost,
)
from quant_engine.transforms.kronecker import kronecker_hadamard, kronecker_sizes
from quant_engine.transforms.permutation import correlated_groups, duquant, zigzag_permutation
from quant_engine.transforms.plan import SitePlan, transform_activation, transform_weight
from quant_engine.transforms.plan_builders import Tie, build_plan
from quant_engine.transforms.primitives import (
    PRIMITIVES,
    Block,
    Dense,
    Hadamard,
    Kronecker,
    Permutation,
    Primitive,
    primitive_from,
)
from quant_engine.transforms.scales import SMALLEST_SCALE, scale_policy
from quant_engine.transforms.statistics import ChannelStatistics

__all__ = [
    "PRIMITIVES",
    "SMALLEST_SCALE",
    "Block",
    "ChannelStatistics",
    "Dense",
    "Hadamard",
    "Kronecker",
    "Permutation",
    "Primitive",
    "SitePlan",
    "Tie",
    "apply_all",
    "apply_online_all",
    "build_plan",
    "capped_tokens",
    "cat_blocks",
    "correlated_groups",
    "covariance_of",
    "duquant",
    "kronecker_hadamard",
    "kronecker_sizes",
    "online_cost",
    "primitive_from",
    "scale_policy",
    "transform_activation",
    "transform_weight",
    "wush_blocks",
    "zigzag_permutation",
]
