"""The interface through which a run reports its progress. The caller of the engine implements it."""

from typing import Protocol

from quant_engine.interface.layers import LayerRow


class Observer(Protocol):
    """Receives the reports of a run, on the thread that runs the pipeline. An exception from a method ends the run."""

    def stage_started(self, name: str, unit: str, total: int) -> None:
        """Report that a stage begins; it has ``total`` of the ``unit`` (``layer``, ``block``, ``token``, ...)."""

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units are finished, including those of an earlier attempt."""

    def stage_finished(self, name: str, seconds: float, reused: bool) -> None:
        """Report that the stage's files are complete; ``reused`` when an earlier attempt had already written them."""

    def layer_completed(self, row: LayerRow) -> None:
        """Report a layer's row; a later row of the same name replaces it."""

    def metric(self, name: str, value: float) -> None:
        """Report a number about the whole model or a layer: ``perplexity.original``, ``train.validation_error``, ..."""

    def log(self, message: str) -> None:
        """Report a sentence for people."""
