"""The experiment of arXiv 2606.09927 without tensors: its families, the table they make, and its figures.

:mod:`quant_engine.stages.paper.stage` computes the errors. ``figures`` is not imported here, because it needs
matplotlib.
"""

from quant_engine.paper.families import (
    BASELINE_POINT,
    Configuration,
    Family,
    Row,
    ScalePoint,
    Score,
    n1_points,
    n2_points,
    n3_points,
    scale_family,
    t1_configurations,
    t2_configurations,
    training_family,
    unit_budget,
)
from quant_engine.paper.table import Layer, Replay, experiment_report, profile_report

__all__ = [
    "BASELINE_POINT",
    "Configuration",
    "Family",
    "Layer",
    "Replay",
    "Row",
    "ScalePoint",
    "Score",
    "experiment_report",
    "n1_points",
    "n2_points",
    "n3_points",
    "profile_report",
    "scale_family",
    "t1_configurations",
    "t2_configurations",
    "training_family",
    "unit_budget",
]
