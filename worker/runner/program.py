"""What the programs of this folder share: their arguments, their messages, and how they end."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from jobs.observability.logs import configure_logging
from quant_engine.errors import is_native_panic
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
    """The engine's observer, which sends messages to the supervisor. Can be used from any thread."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events

    def stage_started(self, name: str, unit: str, total: int) -> None:
        """Report that a stage begins."""
        self._send(StageStarted(name=name, unit=unit, total=total))

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units are complete."""
        self._send(StageAdvanced(name=name, done=done, total=total))

    def stage_finished(self, name: str, seconds: float, reused: bool) -> None:
        """Report that a stage is over, and the peak memory until now."""
        self._send(StageFinished(name=name, seconds=seconds, reused=reused))
        for metric, peak in peak_bytes().items():
            self._send(Metric(name=metric, value=peak))

    def layer_completed(self, row: LayerRow) -> None:
        """Report one layer's row of the table."""
        self._send(LayerCompleted(row=row.model_dump()))

    def metric(self, name: str, value: float) -> None:
        """Report a number with a name."""
        self._send(Metric(name=name, value=value))

    def log(self, message: str) -> None:
        """Report a line for the job's owner."""
        self._send(Log(message=message))

    def _send(self, message: Message) -> None:
        self._events.send(message)


def run_program(name: str, compute: Callable[[RunFile, PipeObserver], None], arguments: list[str] | None = None) -> int:
    """Do what ``run.json`` says with ``compute``. The exit status is 0 after ``result``, and 1 after ``error``."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    run_file = RunFile.model_validate_json(options.run_file.read_bytes())
    configure_logging(job_id=run_file.job_id)
    # A runner without a supervisor would go on computing for a claim that is lost.
    die_with_parent(run_file.parent_pid)
    offer_to_oom_killer()
    events = EventWriter(options.events_fd)
    try:
        compute(run_file, PipeObserver(events))
    except BaseException as error:  # the top of the process: every failure must be reported to the supervisor
        # A panic of native code is no Exception, and without a message it would be retried as a crash.
        if not isinstance(error, Exception) and not is_native_panic(error):
            raise
        # The message first: on a full disk the traceback may not be written.
        events.send(as_error(error))
        logger.error("run_failed", exc_info=error)
        return _EXIT_FAILED
    events.send(Result(payload={}))
    return os.EX_OK
