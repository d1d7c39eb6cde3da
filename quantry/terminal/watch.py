"""A job's progress as one live bar, or as plain lines if the output is not a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from quantry.client import Quantry
from quantry.results import Event, Job, Progress

_LINE_EVERY_SECONDS: Final = 15.0
_ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@runtime_checkable
class View(Protocol):
    """A display of progress."""

    def show(self, status: str, progress: Progress) -> None:
        """Show the latest state."""

    def note(self, text: str) -> None:
        """Print a line about a single event."""


def watch_job(client: Quantry, job_id: str, console: Console) -> Job:
    """Follow the job until it is terminal, and return it.

    Raises:
        QuantryError: the job is gone, or the service does not answer any more.
        KeyboardInterrupt: the user stopped watching; the job continues.
    """
    job = client.get(job_id)
    if not job.is_terminal:
        with open_view(console) as view:
            if job.status == "queued":
                view.show(job.status, job.progress)
            follow(client.events(job_id), view, "queued", job.progress)  # from its first event on
        job = client.get(job_id)
    return job


def follow(events: Iterator[Event], view: View, status: str, progress: Progress) -> None:
    """Show the changes of each event; ``status`` and ``progress`` are the state before the first one."""
    for event in events:
        if event.type == "job.status":
            status = str(event.data.get("status", status))
            if status in _ENDED:
                continue  # the last progress is out of date now; the caller shows the result
        elif event.type == "progress":
            progress = Progress.model_validate(event.data)
        elif event.type == "stage.status" and event.data.get("status") != "running":
            view.note(_stage_line(event))
        if event.type != "done":
            view.show(status, progress)


@contextmanager
def open_view(console: Console) -> Iterator[View]:
    """Yield a live bar on a terminal, else a view that prints lines."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[layers]}"),
        TextColumn("{task.fields[eta]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        yield _LiveBar(bar)


class _LiveBar:
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("queued", total=1.0, layers="", eta="")

    def show(self, status: str, progress: Progress) -> None:
        self._bar.update(
            self._task,
            description=phase(status, progress),
            completed=progress.fraction,
            layers=count(progress),
            eta=eta(progress),
        )

    def note(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


class _Lines:
    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._shown: set[str] = set()
        self._next = 0.0

    def show(self, status: str, progress: Progress) -> None:
        current = phase(status, progress)
        # A new stage is printed at once; the same stage only from time to time, so that a log stays short.
        if current in self._shown and self._clock() < self._next:
            return
        self._shown.add(current)
        self._next = self._clock() + _LINE_EVERY_SECONDS
        parts = [f"{progress.fraction:4.0%}", current, count(progress), eta(progress)]
        self.note("  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def phase(status: str, progress: Progress) -> str:
    """Return the stage of a running job, or the status of any other job."""
    if status == "running":
        return progress.stage or "starting"
    if status == "queued" and progress.queue_position:
        return "queued, next" if progress.queue_position == 1 else f"queued, place {progress.queue_position}"
    return status


def count(progress: Progress) -> str:
    """Return the units that are done, such as ``13/30 layers``."""
    if progress.done is None or progress.total is None:
        return ""
    unit = progress.unit or "step"
    return f"{progress.done}/{progress.total} {unit}{'s' if progress.total != 1 else ''}"


def eta(progress: Progress) -> str:
    """Return the time left, such as ``about 2:06 left``."""
    if progress.eta_seconds is None:
        return ""
    minutes, seconds = divmod(round(progress.eta_seconds.p50), 60)
    return f"about {minutes}:{seconds:02d} left"


def _stage_line(event: Event) -> str:
    seconds = event.data.get("seconds")
    took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return f"  {event.data.get('name', 'stage')}: {event.data.get('status')}{took}"
