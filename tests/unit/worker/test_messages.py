"""The runner protocol: one JSON object a line, strict on the way in, storable on the way out."""

import json
import os
import threading

import pytest
from pydantic import ValidationError

from worker.subprocesses.messages import Error, EventWriter, LayerCompleted, Log, Metric, StageAdvanced, decode, encode


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
