"""Which layers are looked at, and which transform each of them keeps."""

from quant_engine.selection.layers import LayerGroup, choose_layers
from quant_engine.selection.lowest_error import Selected, lowest_error

__all__ = ["LayerGroup", "Selected", "choose_layers", "lowest_error"]
