"""Read models and run them block by block, so that a whole model is never in memory."""

from quant_engine.interface.architectures import (
    ARCHITECTURES,
    Architecture,
    ProducerKind,
    ProducerRows,
    SiteTemplate,
    architecture_of,
)
from quant_engine.models.configuration import empty_model, model_configuration
from quant_engine.models.faults import fault_of_the_model
from quant_engine.models.foreign_transforms import Attachment
from quant_engine.models.fusion import fuse_permutation, fuse_scales, fused_rows
from quant_engine.models.hidden_states import HiddenStates, hidden_states_bytes, next_block
from quant_engine.models.oracle import (
    NOT_ASKED,
    Oracle,
    ask_transformers,
    relative_difference,
    streamed_logits,
    unstable,
)
from quant_engine.models.quantized import QuantizedSource
from quant_engine.models.residual import RotatedSource
from quant_engine.models.rotation import ResidualRotation, hadamard_rotation
from quant_engine.models.scaled import ScaledSource
from quant_engine.models.sites import Site, head_size, model_sites, target_sites
from quant_engine.models.source import CheckpointSource
from quant_engine.models.streaming import StreamedModel
from quant_engine.models.weight_source import WeightSource

__all__ = [
    "ARCHITECTURES",
    "NOT_ASKED",
    "Architecture",
    "Attachment",
    "CheckpointSource",
    "HiddenStates",
    "Oracle",
    "ProducerKind",
    "ProducerRows",
    "QuantizedSource",
    "ResidualRotation",
    "RotatedSource",
    "ScaledSource",
    "Site",
    "SiteTemplate",
    "StreamedModel",
    "WeightSource",
    "architecture_of",
    "ask_transformers",
    "empty_model",
    "fault_of_the_model",
    "fuse_permutation",
    "fuse_scales",
    "fused_rows",
    "hadamard_rotation",
    "head_size",
    "hidden_states_bytes",
    "model_configuration",
    "model_sites",
    "next_block",
    "relative_difference",
    "streamed_logits",
    "target_sites",
    "unstable",
]
