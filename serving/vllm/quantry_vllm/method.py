"""Make vLLM know the quantization method ``quantry``.

vLLM calls plugins while its own modules are still half imported. So only the interface of quantization methods is
imported here, and the method itself when a checkpoint is opened.
"""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from quantry_vllm.claims import claims


@register_quantization_config("quantry")
class QuantryMethod(QuantizationConfig):
    """Claims the checkpoints that need the plugin, and builds their configuration."""

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Return ``quantry`` for a checkpoint that needs it."""
        if user_quant not in (None, "quantry", "compressed-tensors"):
            return None
        return "quantry" if claims(getattr(hf_config, "quantry", None), hf_quant_cfg) else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        """Return a :class:`quantry_vllm.config.QuantryConfig`."""
        from quantry_vllm.config import QuantryConfig  # noqa: PLC0415

        return QuantryConfig.from_config(config)

    def get_name(self) -> str:
        """Return the method's name."""
        return "quantry"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Return the types of activations."""
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return that of compressed-tensors."""
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no names: everything is in config.json."""
        return []

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """Never called: :meth:`from_config` returns another class."""
        raise NotImplementedError
