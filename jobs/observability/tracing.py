"""The interface of tracing, from the API through the job to its stages, with or without a collector.

Traces are off unless ``QUANTRY_OTLP_ENDPOINT``, or OpenTelemetry's ``OTEL_EXPORTER_OTLP[_TRACES]_ENDPOINT``, is set. A
job's row has the ``traceparent`` (W3C Trace Context) of the request that queued it. So the spans of its attempts belong
to that request's trace, in whichever process they run.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal, Protocol

Attribute = str | bool | int | float
SpanKind = Literal["server", "consumer", "internal"]

STOP_SECONDS: Final = 2.0
"""How long a process that ends waits for spans that are not sent yet."""

# The version ff and ids of only zeros are invalid by the specification.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Span(Protocol):
    """One operation. Its methods take microseconds and never wait."""

    @property
    def traceparent(self) -> str | None:
        """The parent that children in other processes name; None without a trace."""
        ...

    def rename(self, name: str) -> None:
        """Replace the name, when a better one is known."""
        ...

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Add attributes to the span."""
        ...

    def fail(self, reason: str) -> None:
        """Mark the span as failed. ``reason`` is a word or a code, never a user's input."""
        ...

    def end(self) -> None:
        """End the span. Later calls do nothing."""
        ...


class Tracing(Protocol):
    """The tracing of one process, made after it forked."""

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        parent: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        began_seconds_ago: float = 0.0,
    ) -> Span:
        """Begin a span. ``parent`` is a ``traceparent``; None, or an invalid one, begins a new trace."""
        ...

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send the remaining spans, for at most ``seconds``. Spans that end later are dropped."""
        ...


class _NoSpan:
    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def rename(self, name: str) -> None:
        """Do nothing."""

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Do nothing."""

    def fail(self, reason: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class NoTracing:
    """Tracing that is off. Its spans record nothing; they pass on the ``traceparent`` that they were given."""

    def span(
        self,
        name: str,  # noqa: ARG002 — the protocol's
        *,
        kind: SpanKind = "internal",  # noqa: ARG002 — the protocol's
        parent: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,  # noqa: ARG002 — the protocol's
        began_seconds_ago: float = 0.0,  # noqa: ARG002 — the protocol's
    ) -> Span:
        """Return a span that only passes on its parent."""
        return _NoSpan(usable(parent))

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Do nothing: there is nothing to send."""


def usable(traceparent: str | None) -> str | None:
    """Return ``traceparent`` if it is valid in W3C Trace Context (its first four fields), else None."""
    return traceparent if traceparent is not None and _TRACEPARENT.fullmatch(traceparent) else None
