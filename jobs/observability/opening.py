"""Whether traces are sent anywhere, and the tracing of a process: OTLP, or none."""

import os
from collections.abc import Mapping
from typing import Final

from jobs.observability.tracing import NoTracing, Tracing
from jobs.settings import Settings

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_configured(settings: Settings, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether traces are sent anywhere. OpenTelemetry's own switches turn them off again."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return settings.otlp_endpoint is not None or any(environment.get(name) for name in _ENDPOINTS)


def open_tracing(settings: Settings, service: str) -> Tracing:
    """The tracing of this process, known as ``service`` (OTEL_SERVICE_NAME wins); call it after the fork."""
    if not is_configured(settings):
        return NoTracing()
    # Imported only now: the SDK and its exporter take 0.3 s and 20 MB, which nobody without traces should pay.
    from jobs.observability.otlp import OtlpTracing  # noqa: PLC0415 — see above

    return OtlpTracing(settings.otlp_endpoint, service)
