"""The subprocess that computes: ``python -m worker.runner run.json --events-fd N``.

It holds no secret, reaches no network and no database. It says how it goes over the descriptor; what it logs and any
traceback go to standard error. Exit 0 after ``result``, 1 after ``error``.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

import structlog

from jobs.observability.logs import configure_logging
from quant_engine.interface.layers import LayerRow
from worker.runner.peak_memory import peak_bytes
from worker.subprocesses.messages import (
    EventWriter,
    LayerCompleted,
    Log,
    Message,
    Metric,
    Result,
    RunFile,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from worker.subprocesses.oom_kills import offer_to_oom_killer
from worker.subprocesses.parent_death import die_with_parent
from worker.subprocesses.problems import as_error

_EXIT_FAILED: Final = 1

logger = structlog.get_logger(__name__)


class PipeObserver:
    """The engine's observer, speaking the runner protocol. Safe from any thread."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events

    def stage_started(self, name: str, unit: str, total: int) -> None:
        """A stage begins."""
        self._send(StageStarted(name=name, unit=unit, total=total))

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` units are complete."""
        self._send(StageAdvanced(name=name, done=done, total=total))

    def stage_finished(self, name: str, seconds: float, reused: bool) -> None:
        """A stage is over."""
        self._send(StageFinished(name=name, seconds=seconds, reused=reused))
        for metric, peak in peak_bytes().items():
            self._send(Metric(name=metric, value=peak))

    def layer_completed(self, row: LayerRow) -> None:
        """One layer's row of the table."""
        self._send(LayerCompleted(row=row.model_dump()))

    def metric(self, name: str, value: float) -> None:
        """A named number."""
        self._send(Metric(name=name, value=value))

    def log(self, message: str) -> None:
        """A line for the person who watches."""
        self._send(Log(message=message))

    def _send(self, message: Message) -> None:
        self._events.send(message)


def main(arguments: list[str] | None = None) -> int:
    """Run one job as ``run.json`` says."""
    parser = argparse.ArgumentParser(prog="worker.runner", description="Runs one quantization job.")
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    run_file = RunFile.model_validate_json(options.run_file.read_bytes())
    configure_logging(job_id=run_file.job_id)
    die_with_parent(run_file.parent_pid)
    offer_to_oom_killer()
    events = EventWriter(options.events_fd)
    try:
        _run(run_file, PipeObserver(events))
    except Exception as error:  # the process's edge: whatever it is, the supervisor must hear of it
        # The message first: on a full disk the traceback may not fit any more.
        events.send(as_error(error))
        logger.error("run_failed", exc_info=error)
        return _EXIT_FAILED
    events.send(Result(payload={}))
    return os.EX_OK


def _run(run_file: RunFile, observer: PipeObserver) -> None:
    # Imported only now: torch takes seconds, and by now this process is tied to its parent and can report a failure.
    import torch  # noqa: PLC0415 — see above

    from quant_engine.pipeline import run  # noqa: PLC0415 — see above

    torch.set_num_threads(run_file.threads)
    run(run_file.spec, work_dir=run_file.work_dir, output_dir=run_file.output_dir, observer=observer)


if __name__ == "__main__":
    sys.exit(main())
