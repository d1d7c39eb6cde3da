"""The port through which a run tells what it is doing. Whoever runs the engine implements it."""

from typing import Protocol

from quant_engine.interface.layers import LayerRow


class Observer(Protocol):
    """Called on the thread that runs the pipeline. An exception from any method ends the run."""

    def stage_started(self, name: str, unit: str, total: int) -> None:
        """A stage begins; it will advance to ``total`` in ``unit`` (``layer``, ``block``, ``token``, ...)."""

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` units are finished, counting those that an earlier attempt had finished."""

    def stage_finished(self, name: str, seconds: float, reused: bool) -> None:
        """The stage's files are complete; ``reused`` when an earlier attempt had already written them."""

    def layer_completed(self, row: LayerRow) -> None:
        """A layer's row; a later one of the same name replaces it."""

    def metric(self, name: str, value: float) -> None:
        """A number about the whole model or a layer: ``perplexity.original``, ``train.validation_error``, ..."""

    def log(self, message: str) -> None:
        """A sentence for a person."""
