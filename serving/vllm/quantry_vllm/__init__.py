"""A vLLM plugin that serves Quantry's checkpoints as they were measured."""

__version__ = "0.1.0"


def register() -> None:
    """Make vLLM know the quantization method ``quantry``. vLLM calls this in each of its processes."""
    from quantry_vllm import method  # noqa: F401, PLC0415 -- its import registers
