"""Spans: to nobody by default, and to a collector that may be there, slow, or gone."""

import subprocess
import sys
import time

import pytest

from jobs.observability.opening import is_configured, open_tracing
from jobs.observability.otlp import OtlpTracing
from jobs.observability.tracing import NoTracing, usable
from jobs.settings import Settings
from tests.otlp_receiver import black_hole, otlp_receiver

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("offered", "good"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", True),
        (None, False),
        ("", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (PARENT.upper(), False),
        (f"{PARENT}-more", False),
        (f"{PARENT}\n", False),
        ("00-" + "٣" * 32 + f"-{SPAN}-01", False),
    ],
)
def test_a_traceparent_is_taken_as_the_standard_has_it(offered: str | None, good: bool) -> None:
    assert usable(offered) == (offered if good else None)
    assert NoTracing().span("x", parent=offered).traceparent == (offered if good else None)


@pytest.mark.parametrize(
    ("endpoint", "environment", "on"),
    [
        (None, {}, False),
        ("http://collector:4318", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ("http://collector:4318", {"OTEL_SDK_DISABLED": "true"}, False),
        ("http://collector:4318", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_off_unless_they_are_configured(endpoint: str | None, environment: dict[str, str], on: bool) -> None:
    assert is_configured(Settings(otlp_endpoint=endpoint), environment) is on


def test_nobody_loads_the_sdk_who_does_not_trace() -> None:
    modules = "api.main, worker.app, worker.sweeper.__main__"
    program = f"import sys, {modules}; print(*(n for n in sys.modules if n.startswith('opentelemetry.sdk')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_spans_arrive_with_their_parents_times_and_attributes() -> None:
    with otlp_receiver() as receiver:
        tracing = open_tracing(Settings(otlp_endpoint=f"{receiver.url}/"), "a-service")
        above = tracing.span("above", kind="server", parent=PARENT, attributes={"number": 3, "word": "x", "flag": True})
        below = tracing.span("below", parent=above.traceparent, began_seconds_ago=5.0)
        below.fail("broke")
        below.end()
        below.end()
        above.rename("renamed")
        above.end()
        alone = tracing.span("alone", parent="not a traceparent")
        alone.end()
        tracing.span("unwanted", parent=f"00-{TRACE}-{SPAN}-00").end()
        tracing.stop()
    spans = {span.name: span for span in receiver.spans}
    assert set(spans) == {"renamed", "below", "alone"}, "what the client does not sample is not sent"
    assert len(receiver.spans) == 3
    assert {span.service for span in receiver.spans} == {"a-service"}
    assert (spans["renamed"].trace_id, spans["renamed"].parent_id) == (TRACE, SPAN)
    assert spans["renamed"].attributes == {"number": 3, "word": "x", "flag": True}
    assert (spans["below"].trace_id, spans["below"].parent_id) == (TRACE, spans["renamed"].span_id)
    assert (spans["below"].failed, spans["renamed"].failed) == (True, False)
    assert 5.0 <= spans["below"].ended - spans["below"].began < 15.0
    assert (spans["alone"].parent_id, spans["alone"].trace_id == TRACE) == ("", False)


@pytest.mark.parametrize("dead", ["silent", "closed"])
def test_a_dead_collector_costs_no_time(dead: str) -> None:
    with black_hole() as url:
        tracing = OtlpTracing(url if dead == "silent" else "http://127.0.0.1:1", "a-service")
        began = time.thread_time()
        for _ in range(5000):  # more than the queue holds: the rest is dropped
            tracing.span("x", attributes={"a": 1}).end()
        assert time.thread_time() - began < 5.0, "a millisecond each, at the very most"
        stopping = time.monotonic()
        tracing.stop(seconds=0.3)
        assert time.monotonic() - stopping < 2.0
        tracing.span("late").end()
