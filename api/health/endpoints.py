"""The endpoints ``/healthz``, ``/readyz`` and ``/metrics``."""

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.deps import State, authorize
from api.health.checks import check_all
from api.health.schemas import Alive, Ready
from api.metrics import CONTENT_TYPE
from api.problems import Problem
from api.responses import json_view
from jobs.kit.errors import Unavailable

router = APIRouter(tags=["health"])

# An answer from a cache would report an old state.
_NOT_CACHED = {"Cache-Control": "no-store"}


@router.get("/healthz", responses={200: {"model": Alive}})
async def alive() -> Response:
    """Report that this process answers. It does not ask the database or the broker."""
    return json_view(Alive(), headers=_NOT_CACHED)


@router.get("/readyz", responses={200: {"model": Ready}})
def ready(request: Request, state: State) -> Response:
    """Report whether a job sent now would run: database, broker and workers, each with its state.

    A server that is being stopped is not ready, and runs no check.
    """
    if state.draining.begun:
        return Problem(
            status=503,
            code="draining",
            title="Not ready",
            detail="This server is being stopped. Send requests to another one, or here again in a moment.",
            headers={"Retry-After": "5"},
        ).response(request)
    checks = check_all(state.queries, state.broker_answers)
    if not checks.failing:
        return json_view(Ready(checks=checks), headers=_NOT_CACHED)
    remedies = " ".join(getattr(checks, name).detail for name in checks.failing)
    return Problem(
        status=503,
        code="not_ready",
        title="Not ready",
        detail=f"Not ready: {', '.join(checks.failing)}. {remedies}",
        headers={"Retry-After": "5"},
        extensions={"checks": checks.model_dump(mode="json")},
    ).response(request)


@router.get(
    "/metrics",
    dependencies=[Depends(authorize)],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(state: State) -> Response:
    """Return metrics for Prometheus: this server's requests and process, and database counts (docs/operations.md)."""
    try:
        installation = state.overview.installation()
    except Unavailable:
        # Without the database the rest is still reported, with ``quantry_database_up`` as 0.
        installation = None
    return Response(state.metrics.render(installation), media_type=CONTENT_TYPE)
