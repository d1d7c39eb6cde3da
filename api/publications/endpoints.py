"""The endpoints ``/v1/jobs/{id}/publications`` and ``/v1/publications/{id}``: push a checkpoint to the Hub."""

from typing import Annotated, Final

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import (
    Cursor,
    IdempotencyKey,
    IfNoneMatch,
    JobId,
    Limit,
    NoBody,
    PublicationId,
    Publications,
    Tenant,
    json_body,
)
from api.negotiation import none_match
from api.openapi import json_body_of
from api.responses import json_view
from jobs.kit.views import Page
from jobs.publications.views import PublicationView
from quant_engine.policy.request import HubTarget

_POLL_SECONDS: Final = "2"

router = APIRouter(prefix="/v1", tags=["publications"])


@router.post(
    "/jobs/{job_id}/publications",
    status_code=202,
    responses={202: {"model": PublicationView}},
    openapi_extra=json_body_of(HubTarget),
)
def publish_job(
    job_id: JobId,
    target: Annotated[HubTarget, json_body(HubTarget)],
    publications: Publications,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Publish a job's checkpoint on the Hub, private by default. If the Hub is down, it is tried again later."""
    return _accepted(publications.create(job_id, target, tenant=tenant, idempotency_key=idempotency_key))


@router.get("/jobs/{job_id}/publications", responses={200: {"model": Page[PublicationView]}})
def list_publications(
    job_id: JobId, publications: Publications, tenant: Tenant, limit: Limit = 20, after: Cursor = None
) -> Response:
    """List a job's publications, newest first."""
    return json_view(publications.list_of(job_id, tenant=tenant, limit=limit, after=after))


@router.get(
    "/publications/{publication_id}",
    responses={200: {"model": PublicationView}, 304: {"description": "Unchanged"}},
)
def get_publication(
    publication_id: PublicationId,
    publications: Publications,
    tenant: Tenant,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return one publication with its progress in bytes. Send its ETag as If-None-Match to get 304 if unchanged."""
    view = publications.get(publication_id, tenant=tenant)
    if not none_match(if_none_match, view.etag):
        return Response(status_code=304, headers=_headers(view))
    return json_view(view, headers=_headers(view))


@router.post("/publications/{publication_id}/retry", status_code=202, responses={202: {"model": PublicationView}})
def retry_publication(
    publication_id: PublicationId,
    _body: NoBody,
    publications: Publications,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Try a failed publication again. Files that the Hub has already are not sent again. Takes no body, or ``{}``."""
    return _accepted(publications.retry(publication_id, tenant=tenant, idempotency_key=idempotency_key))


def _headers(view: PublicationView) -> dict[str, str]:
    headers = {"ETag": view.etag, "Cache-Control": "private, no-cache"}
    return headers if view.is_terminal else {**headers, "Retry-After": _POLL_SECONDS}


def _accepted(view: PublicationView) -> Response:
    return json_view(view, 202, {"Retry-After": _POLL_SECONDS, **_headers(view), "Location": view.path})
