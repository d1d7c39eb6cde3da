"""The objects that one application has from start to stop."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from api.body import Bodies
from api.doors.middleware import DoorRules
from api.draining import Draining
from api.metrics import Metrics
from jobs.credentials import CredentialService
from jobs.job.commands import JobCommands
from jobs.job.overview import Overview
from jobs.job.queries import JobQueries
from jobs.observability.tracing import Tracing
from jobs.publications.service import PublicationService
from jobs.settings import Settings
from jobs.webhooks.service import WebhookService


@dataclass(frozen=True)
class AppState:
    """The state of one application, made at its start. ``broker_answers`` is None without a broker."""

    settings: Settings
    commands: JobCommands
    queries: JobQueries
    credentials: CredentialService
    publications: PublicationService
    webhooks: WebhookService
    overview: Overview
    metrics: Metrics
    tracing: Tracing
    draining: Draining
    broker_answers: Callable[[], bool] | None
    stream_limiter: anyio.CapacityLimiter
    bodies: Bodies
    door_rules: DoorRules
