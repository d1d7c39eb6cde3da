"""Show a run of the pipeline in a terminal: a progress bar for each stage, and the time that each stage took."""

from rich.progress import Progress, TaskID

from quant_engine.interface.layers import LayerRow


class Bars:
    """An observer that shows one progress bar for each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self.seconds: dict[str, float] = {}

    def stage_started(self, name: str, unit: str, total: int) -> None:
        """Add a bar for the stage."""
        self._tasks[name] = self._bars.add_task(f"{name} ({unit})", total=total)

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        """Move the bar."""
        self._bars.update(self._tasks[name], completed=done, total=total)

    def stage_finished(self, name: str, seconds: float, reused: bool) -> None:
        """Print how long the stage took."""
        # The time of a reused stage is only that of checking its files.
        if not reused:
            self.seconds[name] = seconds
        self._bars.console.print(f"{name}: {'reused' if reused else f'{seconds:.1f} s'}")

    def layer_completed(self, row: LayerRow) -> None:
        """Do nothing: the table at the end shows the layers."""

    def metric(self, name: str, value: float) -> None:
        """Print one line."""
        self._bars.console.print(f"{name} = {value:.4f}")

    def log(self, message: str) -> None:
        """Print one line."""
        self._bars.console.print(message, markup=False)
