"""Round a transformed weight to codes on a grid."""

from quant_engine.rounding.correction import corrected_weight
from quant_engine.rounding.dispatch import round_weight
from quant_engine.rounding.factor import GptqFactor, factorize
from quant_engine.rounding.gptq import gptq
from quant_engine.rounding.rtn import round_to_nearest

__all__ = ["GptqFactor", "corrected_weight", "factorize", "gptq", "round_to_nearest", "round_weight"]
