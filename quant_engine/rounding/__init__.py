"""From a transformed weight to codes on a grid."""

from quant_engine.rounding.rtn import round_to_nearest

__all__ = ["round_to_nearest"]
