"""The names that the API tells are the classes that the engine knows."""

from quant_engine.models.architectures import ARCHITECTURES
from quant_engine.policy.architectures import SUPPORTED_ARCHITECTURES


def test_the_api_tells_what_the_engine_takes() -> None:
    assert tuple(architecture.class_name for architecture in ARCHITECTURES) == SUPPORTED_ARCHITECTURES
