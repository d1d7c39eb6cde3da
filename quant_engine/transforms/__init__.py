"""Equivalent transforms of a linear's input: their statistics, their scale policies, and how they act."""

from quant_engine.transforms.plan import SitePlan, transform_activation, transform_weight
from quant_engine.transforms.scales import SMALLEST_SCALE, build_plan, scale_policy
from quant_engine.transforms.statistics import ChannelStatistics, abs_quantile, channel_statistics

__all__ = [
    "SMALLEST_SCALE",
    "ChannelStatistics",
    "SitePlan",
    "abs_quantile",
    "build_plan",
    "channel_statistics",
    "scale_policy",
    "transform_activation",
    "transform_weight",
]
