"""Traces from the API over the job to its stages: what the rooms speak, whether or not anybody listens.

Off unless ``QUANTRY_OTLP_ENDPOINT``, or one of OpenTelemetry's own ``OTEL_EXPORTER_OTLP[_TRACES]_ENDPOINT``, is set. A
job's row carries the ``traceparent`` (W3C Trace Context) of the request that queued it, so that the spans of its
attempts, in whichever process they run, belong to that request's trace.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal, Protocol

Attribute = str | bool | int | float
SpanKind = Literal["server", "consumer", "internal"]

STOP_SECONDS: Final = 2.0
"""How long a process that ends waits for what it has not sent yet."""

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Span(Protocol):
    """One operation. Setting and ending it costs microseconds and never waits."""

    @property
    def traceparent(self) -> str | None:
        """What children in other processes name as their parent; None without a trace."""
        ...

    def rename(self, name: str) -> None:
        """Give it a better name, now that it is known."""
        ...

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Add attributes."""
        ...

    def fail(self, reason: str) -> None:
        """Mark it as failed. ``reason`` is a word or a code, never what a user sent."""
        ...

    def end(self) -> None:
        """It is over now. Further calls do nothing."""
        ...


class Tracing(Protocol):
    """One per process, made after it forked."""

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        parent: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        began_seconds_ago: float = 0.0,
    ) -> Span:
        """Begin a span. ``parent`` is a ``traceparent``; None, or an unusable one, begins a trace."""
        ...

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send what is left, for at most ``seconds``; the spans that are ended later are dropped."""
        ...


class _NoSpan:
    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def rename(self, name: str) -> None:
        """Nobody listens."""

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Nobody listens."""

    def fail(self, reason: str) -> None:
        """Nobody listens."""

    def end(self) -> None:
        """Nobody listens."""


class NoTracing:
    """Traces are off: spans are nothing, and hand on the ``traceparent`` that they were given."""

    def span(
        self,
        name: str,  # noqa: ARG002 — the protocol's
        *,
        kind: SpanKind = "internal",  # noqa: ARG002 — the protocol's
        parent: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,  # noqa: ARG002 — the protocol's
        began_seconds_ago: float = 0.0,  # noqa: ARG002 — the protocol's
    ) -> Span:
        """Nothing, but its parent."""
        return _NoSpan(usable(parent))

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Nothing is left to send."""


def usable(traceparent: str | None) -> str | None:
    """``traceparent`` if it is one as W3C Trace Context defines it (its first four fields), else None."""
    return traceparent if traceparent is not None and _TRACEPARENT.fullmatch(traceparent) else None
