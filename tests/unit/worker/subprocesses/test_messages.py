"""The runner protocol: one JSON object a line, strict on the way in, storable on the way out."""

import json
import os
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from quant_engine.interface.spec import RunSpec
from quant_engine.policy import PRESETS, Calibration, Evaluation, InlineTexts, Output
from worker.subprocesses.messages import (
    Error,
    EventWriter,
    LayerCompleted,
    Log,
    Metric,
    RunFile,
    StageAdvanced,
    decode,
    encode,
)


@pytest.mark.parametrize(
    "message",
    [
        StageAdvanced(name="train", done=3, total=30),
        LayerCompleted(row={"name": "model.layers.0.mlp.down_proj", "error": 1.5, "selected": None}),
        Error(code="disk_full", category="capacity", detail="full", hint="free some"),
    ],
)
def test_a_message_survives_the_pipe(message: StageAdvanced | LayerCompleted | Error) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


def test_numbers_that_json_lacks_become_null() -> None:
    nested = LayerCompleted(row={"error": float("nan"), "list": [float("inf"), 1.0]})
    assert json.loads(encode(nested))["row"] == {"error": None, "list": [None, 1.0]}
    assert decode(encode(Metric(name="perplexity", value=float("inf")))) == Metric(name="perplexity", value=None)


def test_text_is_made_storable_and_bounded() -> None:
    assert Log(message="a\x00b\ud800c").message == "a�b?c"
    assert len(Log(message="x" * 100_000).message) == 4000


@pytest.mark.parametrize(
    "line",
    [b"", b"not json", b"[]", b'{"type":"unknown"}', b'{"type":"log"}', b'{"type":"log","message":"m","more":1}'],
)
def test_what_is_not_a_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(line)


def test_lines_of_many_threads_do_not_mix() -> None:
    reader, writer = os.pipe()
    events = EventWriter(writer)
    text = "y" * 3000  # more than one pipe's atomic write when several are under way

    def send(thread: int) -> None:
        for index in range(20):
            events.send(Log(message=f"{thread}-{index}-{text}"))

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    with os.fdopen(reader, "rb") as lines:
        received = [decode(next(lines)) for _ in range(80)]
    for thread in threads:
        thread.join()
    os.close(writer)
    assert {message.message for message in received if isinstance(message, Log)} == {
        f"{thread}-{index}-{text}" for thread in range(4) for index in range(20)
    }


def _run_file() -> RunFile:
    spec = RunSpec(
        model_dir=Path("models/tiny"),
        policy=PRESETS["trainable-smoothrot-w4a4"].policy,
        calibration=Calibration(dataset=InlineTexts(texts=("a",))),
        evaluation=Evaluation(perplexity=None),
        output=Output(),
        datasets_dir=Path("datasets"),
        device="cuda",
        model_id="owner/tiny",
        revision="0" * 40,
        low_memory=True,
    )
    return RunFile(job_id="job_1", parent_pid=1, threads=2, spec=spec, work_dir=Path("work"), output_dir=Path("output"))


def test_what_the_engine_is_asked_survives_the_file() -> None:
    assert RunFile.model_validate_json(_run_file().model_dump_json()) == _run_file()


def test_a_run_file_with_a_field_that_the_engine_does_not_know_is_refused() -> None:
    fields = json.loads(_run_file().model_dump_json())
    fields["spec"]["more"] = 1
    with pytest.raises(ValidationError, match="more"):
        RunFile.model_validate_json(json.dumps(fields))
