"""A vLLM plugin that serves Quantry's checkpoints as they were measured."""

__version__ = "0.1.0"


def register() -> None:
    """Make vLLM know the quantization method ``quantry``. vLLM calls this in each of its processes."""
    # vLLM imports every plugin at its start, and may itself be only half imported before that.
    from quantry_vllm import config  # noqa: F401, PLC0415
