"""Write, load and verify compressed-tensors checkpoints with any online transform.

from quant_engine.checkpoint import load
model = load("path/to/checkpoint")
"""

from quant_engine.checkpoint.export import ExportedModel, write_checkpoint
from quant_engine.checkpoint.loading import load
from quant_engine.checkpoint.online import OnlineInput, attach_online, served_input, transformed_input
from quant_engine.checkpoint.packing import (
    QuantizedLinear,
    exported_tensors,
    packed_tensors,
    stored_bytes,
    unpacked_state,
)
from quant_engine.checkpoint.runtime import attach_served, prepare_quantized
from quant_engine.models.served_inputs import ActivationGrid

__all__ = [
    "ActivationGrid",
    "ExportedModel",
    "OnlineInput",
    "QuantizedLinear",
    "attach_online",
    "attach_served",
    "exported_tensors",
    "load",
    "packed_tensors",
    "prepare_quantized",
    "served_input",
    "stored_bytes",
    "transformed_input",
    "unpacked_state",
    "write_checkpoint",
]
