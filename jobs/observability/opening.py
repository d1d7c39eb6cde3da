"""Choosing the tracing of a process: OTLP if it is configured, else none."""

import os
from collections.abc import Mapping
from typing import Final

from jobs.observability.tracing import NoTracing, Tracing
from jobs.settings import Settings

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_configured(settings: Settings, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether traces are sent anywhere. OpenTelemetry's own variables can turn them off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return settings.otlp_endpoint is not None or any(environment.get(name) for name in _ENDPOINTS)


def open_tracing(settings: Settings, service: str) -> Tracing:
    """Return the tracing of this process, named ``service`` unless OTEL_SERVICE_NAME is set; call it after the fork."""
    if not is_configured(settings):
        return NoTracing()
    # Imported only here: the SDK and its exporter take 0.3 s and 20 MB, which a process without traces should not need.
    from jobs.observability.otlp import OtlpTracing  # noqa: PLC0415 — see above

    return OtlpTracing(settings.otlp_endpoint, service)
