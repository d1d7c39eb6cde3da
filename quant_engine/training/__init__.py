"""Learned transforms: channel scales trained through the rounding with a straight-through estimator."""

from quant_engine.training.scales import CurvePoint, TrainedScales, train_scales

__all__ = ["CurvePoint", "TrainedScales", "train_scales"]
