"""What a subprocess tells its supervisor: one JSON object a line, over an inherited file descriptor.

A message is parsed strictly; what does not parse is for the caller to report, never to guess at.
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
    """Text that a person wrote or a library raised, made fit for JSON and PostgreSQL, and bounded."""
    if not isinstance(value, str):
        return value
    text = value.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 1] + "…"


Line = Annotated[str, BeforeValidator(_storable)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageStarted(_Message):
    """A stage begins: ``total`` units of the named kind lie ahead."""

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
    """The commit that the model's revision means; said before anything is fetched, so that it holds from then on."""

    type: Literal["resolved"] = "resolved"
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class StageFinished(_Message):
    """A stage is over; ``reused`` when an earlier attempt's files were whole."""

    type: Literal["stage_finished"] = "stage_finished"
    name: str
    seconds: float
    reused: bool = False


class LayerCompleted(_Message):
    """One row of the layer table."""

    type: Literal["layer_completed"] = "layer_completed"
    row: dict[str, Any]


class Metric(_Message):
    """A named number; null stands for one that is not finite."""

    type: Literal["metric"] = "metric"
    name: str
    value: float | None


class Log(_Message):
    """A line for the person who watches."""

    type: Literal["log"] = "log"
    message: Line


class Result(_Message):
    """The work is done and its files are in place."""

    type: Literal["result"] = "result"
    payload: dict[str, Any]


class Error(_Message):
    """The work can not be done; with ``retry_after``, not now: perhaps after that many seconds."""

    type: Literal["error"] = "error"
    code: str
    category: Literal["user", "platform", "capacity"]
    detail: Line
    hint: Line
    retry_after: float | None = None


Message = StageStarted | StageAdvanced | StageFinished | Resolved | LayerCompleted | Metric | Log | Result | Error
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class RunFile(BaseModel):
    """``run.json``: everything a runner needs. It holds no secret, because it is on the disk as long as the job runs.

    Attributes:
        parent_pid: the process that the runner ends with.
        threads: of the CPU, for the engine.
        spec: what the engine is asked to do.
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

    ``max_bytes``: the most a model may have, 0 for no limit; ``patience_seconds``: without a byte, before it gives up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent_pid: int
    model_id: str
    revision: str
    cache_dir: Path
    max_bytes: int = 0
    patience_seconds: float = 300.0


def encode(message: Message) -> bytes:
    """One line. Numbers that are not finite become null: neither JSON nor PostgreSQL has them."""
    fields = _finite(message.model_dump(mode="json"))
    return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line.

    Raises:
        pydantic.ValidationError: the line is not a message.
    """
    return _ADAPTER.validate_json(line)


class EventWriter:
    """Writes messages to a file descriptor, whole lines only, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Write one line; blocks while the reader is behind.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        line = memoryview(encode(message))
        with self._lock:
            while line:
                line = line[os.write(self._fd, line) :]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
