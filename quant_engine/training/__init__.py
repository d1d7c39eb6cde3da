"""Learned transforms: channel scales, whole blocks and rotations, trained with straight-through gradients."""

from quant_engine.training.block_loss import BlockBatch
from quant_engine.training.blocks import BlockPoint, BlockUnderTraining, Start, TrainedBlock, train_block
from quant_engine.training.cayley import CayleySGD
from quant_engine.training.learnable import LearnablePlan
from quant_engine.training.mixture import Candidates, LearnableMixture
from quant_engine.training.rotation import train_rotation
from quant_engine.training.scales import CurvePoint, TrainedScales, train_scales

__all__ = [
    "BlockBatch",
    "BlockPoint",
    "BlockUnderTraining",
    "Candidates",
    "CayleySGD",
    "CurvePoint",
    "LearnableMixture",
    "LearnablePlan",
    "Start",
    "TrainedBlock",
    "TrainedScales",
    "train_block",
    "train_rotation",
    "train_scales",
]
