"""The messages of a subprocess to its supervisor: one JSON object a line, over an inherited file descriptor.

A message is parsed strictly. The caller logs a line that is no message, and does not guess its meaning.
"""

import json
import math
import os
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from quant_engine.interface.spec import RunSpec

_MAX_LINE = 4000


def _storable(value: object) -> object:
    """Make free text valid for JSON and PostgreSQL, and limit its length."""
    if not isinstance(value, str):
        return value
    # PostgreSQL stores no NUL, and a lone surrogate can not be written as UTF-8.
    text = value.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 1] + "…"


Line = Annotated[str, BeforeValidator(_storable)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageStarted(_Message):
    """A stage begins; it has ``total`` units of the kind ``unit``."""

    type: Literal["stage_started"] = "stage_started"
    name: str
    unit: str
    total: int


class StageAdvanced(_Message):
    """``done`` of ``total`` units are complete."""

    type: Literal["stage_advanced"] = "stage_advanced"
    name: str
    done: int
    total: int


class Resolved(_Message):
    """The commit of the model's revision, sent before any file is fetched, so that later attempts use the same."""

    type: Literal["resolved"] = "resolved"
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class StageFinished(_Message):
    """A stage is over; ``reused`` if an earlier attempt's files were complete."""

    type: Literal["stage_finished"] = "stage_finished"
    name: str
    seconds: float
    reused: bool = False


class LayerCompleted(_Message):
    """One row of the layer table."""

    type: Literal["layer_completed"] = "layer_completed"
    row: dict[str, Any]


class Metric(_Message):
    """A number with a name; null stands for a number that is not finite."""

    type: Literal["metric"] = "metric"
    name: str
    value: float | None


class Log(_Message):
    """A line for the job's owner."""

    type: Literal["log"] = "log"
    message: Line


class Result(_Message):
    """The work is done and its files are in place."""

    type: Literal["result"] = "result"
    payload: dict[str, Any]


class Error(_Message):
    """The work can not be done; with ``retry_after`` it may be possible after that many seconds."""

    type: Literal["error"] = "error"
    code: str
    category: Literal["user", "platform", "capacity"]
    detail: Line
    hint: Line
    retry_after: float | None = None


Message = StageStarted | StageAdvanced | StageFinished | Resolved | LayerCompleted | Metric | Log | Result | Error
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class RunFile(BaseModel):
    """``run.json``: everything a runner needs. It holds no secret, because it stays on the disk while the job runs.

    Attributes:
        parent_pid: the process whose death also ends the runner.
        threads: the number of CPU threads for the engine.
        spec: the engine's request.
        work_dir, output_dir: as :func:`quant_engine.pipeline.run` takes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    parent_pid: int
    threads: int
    spec: RunSpec
    work_dir: Path
    output_dir: Path


class DownloadFile(BaseModel):
    """``download.json``: what to fetch from the Hub, and where to put it. The token comes over a pipe.

    ``max_bytes``: the largest size of a model, 0 for no limit. ``patience_seconds``: the time without any byte after
    which the download gives up. ``preview_dir``: where a preview of the model is put, which is everything but
    the weights; with ``weights`` the whole model is fetched, and the preview's files are used again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent_pid: int
    model_id: str
    revision: str
    cache_dir: Path
    preview_dir: Path
    weights: bool = True
    max_bytes: int = 0
    patience_seconds: float = 300.0


def encode(message: Message) -> bytes:
    """Return the message as one line. Numbers that are not finite become null: JSON and PostgreSQL lack them."""
    fields = _finite(message.model_dump(mode="json"))
    return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message of one line.

    Raises:
        pydantic.ValidationError: the line is not a message.
    """
    return _ADAPTER.validate_json(line)


class EventWriter:
    """Writes messages to a file descriptor as whole lines, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Write one line; block while the pipe is full.

        Raises:
            BrokenPipeError: the reader is gone.
        """
        line = memoryview(encode(message))
        with self._lock:
            while line:
                # A pipe may take only a part of a long line.
                line = line[os.write(self._fd, line) :]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
