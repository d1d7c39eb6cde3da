"""The HTTP API: ``uvicorn api.main:app``."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from typing import Final

import anyio
from fastapi import Depends, FastAPI

from api import log, openapi, problems
from api.artifacts.endpoints import router as artifacts
from api.body import Bodies
from api.capabilities.endpoints import router as capabilities
from api.credentials.endpoints import router as credentials
from api.deps import authorize
from api.docs.endpoints import router as docs
from api.doors.middleware import DoorRules, Doors
from api.draining import Draining
from api.events.endpoints import router as events
from api.health.endpoints import router as health
from api.jobs.endpoints import router as jobs
from api.layers.endpoints import router as layers
from api.metrics import Metrics
from api.nudge import CeleryNudger, broker_answers
from api.presets.endpoints import router as presets
from api.publications.endpoints import router as publications
from api.query import declared_only
from api.reports.endpoints import router as reports
from api.request_context import RequestContext
from api.state import AppState
from api.webhooks.endpoints import router as webhooks
from jobs.artifacts import open_store
from jobs.credentials import CredentialService, Vault
from jobs.job.commands import JobCommands
from jobs.job.nudge import Nudger, SilentNudger
from jobs.job.overview import Overview
from jobs.job.queries import JobQueries
from jobs.kit.errors import InstallationError
from jobs.observability.opening import open_tracing
from jobs.publications.service import PublicationService
from jobs.repository.database import Database
from jobs.settings import Settings, get_settings
from jobs.webhooks.service import WebhookService

_DATABASE_CONNECTIONS: Final = 10
# Threads that poll for event streams, apart from the threads that run endpoints.
_STREAM_THREADS: Final = 4
_RESOURCES: Final = (
    *(jobs, events, layers, reports, artifacts, publications, presets, capabilities, credentials),
    webhooks,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application. Without ``settings`` it reads the environment when it starts, and configures the log.

    Raises, at its start:
        InstallationError: no database is configured, or the key of stored credentials is unusable.
        pydantic.ValidationError: the environment's settings are wrong.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings is None:
            log.configure()
        with _running(settings or get_settings(), metrics) as state, state.draining.on_sigterm():
            app.state.quantry = state
            yield

    app = FastAPI(
        title="Quantry",
        version=version("quantry"),
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from other servers; ours is ``api.docs``.
        docs_url=None,
        redoc_url=None,
        # A path with a slash at its end is unknown, so that each resource has one URL.
        redirect_slashes=False,
        # FastAPI's own telemetry would send whole query strings, and the metrics and logs of every library.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    # The last one added is the first to run: refusals at the doors are counted and logged as well.
    app.add_middleware(Doors)
    app.add_middleware(RequestContext, metrics=metrics, on_bug=problems.for_a_bug)
    problems.install(app)
    openapi.install(app)
    # The health checks need no key. /metrics asks for it by itself.
    app.include_router(health, dependencies=[Depends(declared_only)], responses=openapi.PROBLEM_RESPONSE)
    app.include_router(docs, dependencies=[Depends(declared_only)])
    for resource in _RESOURCES:
        app.include_router(
            resource, dependencies=[Depends(authorize), Depends(declared_only)], responses=openapi.PROBLEM_RESPONSE
        )
    return app


@contextmanager
def _running(settings: Settings, metrics: Metrics) -> Iterator[AppState]:
    """Start everything that the endpoints need, and stop it in reverse order."""
    if settings.database_url is None:
        raise InstallationError(
            "No database is configured. Start everything with 'quantry serve', or set QUANTRY_DATABASE_URL."
        )
    vault = Vault.open(settings)
    database = Database(settings.database_url.get_secret_value(), pool_size=_DATABASE_CONNECTIONS)
    broker_url = None if settings.broker_url is None else settings.broker_url.get_secret_value()
    tracing = open_tracing(settings, "quantry-api")
    try:
        store = open_store(settings)
        with _nudger(broker_url, metrics) as nudger:
            yield AppState(
                settings=settings,
                commands=JobCommands(database, settings, store, nudger),
                queries=JobQueries(database, settings, store),
                publications=PublicationService(database, settings),
                webhooks=WebhookService(database, vault, settings),
                credentials=CredentialService(database, vault, idempotency_seconds=settings.idempotency_seconds),
                overview=Overview(database, settings),
                metrics=metrics,
                tracing=tracing,
                draining=Draining(settings.unready_seconds),
                broker_answers=None if broker_url is None else partial(broker_answers, broker_url),
                stream_limiter=anyio.CapacityLimiter(_STREAM_THREADS),
                bodies=Bodies(settings),
                door_rules=DoorRules.of(settings),
            )
    finally:
        database.close()
        tracing.stop()


@contextmanager
def _nudger(broker_url: str | None, metrics: Metrics) -> Iterator[Nudger]:
    if broker_url is None:
        yield SilentNudger()
        return
    with CeleryNudger(broker_url, metrics.nudge_failed) as nudger:
        yield nudger


app = create_app()
