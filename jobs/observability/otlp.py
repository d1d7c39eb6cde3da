"""Traces by OTLP over HTTP, with OpenTelemetry's SDK. Import this only where traces are configured.

Nothing here makes a job or a request wait. An ended span goes into a bounded queue in memory, a thread sends batches
with a short timeout, and spans that do not fit into the queue are dropped. The provider belongs to this process and is
not OpenTelemetry's global one, so that other libraries do not start to trace themselves.
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from jobs.observability import tracing
from jobs.observability.tracing import STOP_SECONDS, Attribute

_EXPORT_SECONDS: Final = 5.0
# Our timeout is only a default: these variables of OpenTelemetry replace it.
_TIMEOUTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_KINDS: Final = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER, "internal": SpanKind.INTERNAL}


class OtlpTracing:
    """A :class:`~jobs.observability.tracing.Tracing`.

    ``endpoint``: the collector's base URL; None: OpenTelemetry's variables give it.

    OpenTelemetry's own ``OTEL_*`` variables set sampling, headers, certificates, batch sizes and timeouts.
    """

    def __init__(self, endpoint: str | None, service: str) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(
            endpoint=None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces",
            timeout=None if any(os.environ.get(name) for name in _TIMEOUTS) else _EXPORT_SECONDS,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("quantry")

    def span(
        self,
        name: str,
        *,
        kind: tracing.SpanKind = "internal",
        parent: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        began_seconds_ago: float = 0.0,
    ) -> tracing.Span:
        """Begin a span."""
        above = _remote(parent)
        # An empty context, not the current one: the only parent is the one that the caller names.
        context = set_span_in_context(NonRecordingSpan(above)) if above is not None else set_span_in_context(_NOBODY)
        began = time.time_ns() - round(began_seconds_ago * 1e9)
        span = self._tracer.start_span(
            name, context, kind=_KINDS[kind], attributes=dict(attributes or {}), start_time=began
        )
        return _OtlpSpan(span)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send the remaining spans. The SDK would wait for half a minute; its daemon threads end with the process."""
        stopping = threading.Thread(target=self._provider.shutdown, name="traces-stop", daemon=True)
        stopping.start()
        stopping.join(seconds)


class _OtlpSpan:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        self._span.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        self._span.set_attribute("error.type", reason)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()


def _remote(traceparent: str | None) -> SpanContext | None:
    known = tracing.usable(traceparent)
    if known is None:
        return None
    _, trace_id, span_id, flags = known.split("-")
    sampled = TraceFlags(int(flags, 16) & TraceFlags.SAMPLED)
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=sampled)


_NOBODY: Final = NonRecordingSpan(SpanContext(0, 0, is_remote=False))
