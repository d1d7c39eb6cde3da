"""The endpoints ``/v1/jobs``: create, list, read, cancel, retry and delete."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.deps import (
    Commands,
    Cursor,
    IdempotencyKey,
    IfNoneMatch,
    JobId,
    Limit,
    NoBody,
    Queries,
    Tenant,
    json_body,
    optional_body,
)
from api.jobs.schemas import METADATA_PARAMETER, job_request, metadata_filter
from api.negotiation import none_match
from api.openapi import json_body_of
from api.request_context import request_id, traceparent
from api.responses import accepted, job_headers, json_view
from jobs.job.lifecycle import RetryRequest
from jobs.job.views import JobView
from jobs.kit.states import JobStatus
from jobs.kit.views import Page
from quant_engine.policy import JobRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post("", status_code=202, responses={202: {"model": JobView}}, openapi_extra=json_body_of(JobRequest))
def create_job(
    request: Request,
    wanted: Annotated[JobRequest, json_body(JobRequest, has_text=True, read=job_request)],
    commands: Commands,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job. It is stored when the response arrives; with an Idempotency-Key the request is safe to repeat."""
    job, _ = commands.create_job(
        wanted,
        tenant=tenant,
        idempotency_key=idempotency_key,
        request_id=request_id(request.scope),
        traceparent=traceparent(request.scope),
    )
    return accepted(job)


@router.get("", responses={200: {"model": Page[JobView]}}, openapi_extra={"parameters": [METADATA_PARAMETER]})
def list_jobs(
    request: Request,
    queries: Queries,
    tenant: Tenant,
    *,
    limit: Limit = 20,
    after: Cursor = None,
    status: Annotated[JobStatus | None, Query(description="Only jobs with this status.")] = None,
    model: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9._/:-]{1,200}$", description="Only jobs on the model with this id.")
    ] = None,
) -> Response:
    """List jobs, newest first. ``metadata[key]=value`` selects those with that label."""
    page = queries.list_jobs(
        tenant=tenant, limit=limit, after=after, status=status, model=model, metadata=metadata_filter(request)
    )
    return json_view(page)


@router.get("/{job_id}", responses={200: {"model": JobView}, 304: {"description": "Unchanged"}})
def get_job(job_id: JobId, queries: Queries, tenant: Tenant, if_none_match: IfNoneMatch = None) -> Response:
    """Return one job. Send its ETag as If-None-Match to get 304 while nothing changed."""
    job = queries.get_job(job_id, tenant=tenant)
    if not none_match(if_none_match, job.etag):
        return Response(status_code=304, headers=job_headers(job))
    return json_view(job, headers=job_headers(job))


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: JobId, commands: Commands, tenant: Tenant) -> Response:
    """Delete a finished job and its artifacts. For a job that still runs the answer is 409: cancel it first."""
    commands.delete_job(job_id, tenant=tenant)
    return Response(status_code=204)


@router.post("/{job_id}/cancel", status_code=202, responses={202: {"model": JobView}})
def cancel_job(
    job_id: JobId, _body: NoBody, commands: Commands, tenant: Tenant, idempotency_key: IdempotencyKey = None
) -> Response:
    """Stop a job. The cancel is stored when the response arrives, even if no worker runs. Takes no body, or ``{}``."""
    return accepted(commands.cancel_job(job_id, tenant=tenant, idempotency_key=idempotency_key))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    responses={202: {"model": JobView}},
    openapi_extra=json_body_of(RetryRequest, required=False),
)
def retry_job(
    request: Request,
    job_id: JobId,
    body: Annotated[RetryRequest | None, optional_body(RetryRequest)],
    commands: Commands,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a failed or cancelled job again, with its full number of attempts and its full time.

    It resumes from what its attempts left on the machine that runs it. With ``{"from_stage": "train"}`` that stage and
    the stages after it are computed again. Takes no body, or ``{}``, as well.
    """
    wanted = body or RetryRequest()
    job = commands.retry_job(
        job_id,
        tenant=tenant,
        from_stage=wanted.from_stage,
        idempotency_key=idempotency_key,
        request_id=request_id(request.scope),
        traceparent=traceparent(request.scope),
    )
    return accepted(job)
