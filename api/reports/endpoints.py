"""The endpoint ``/v1/jobs/{id}/report``: the whole evaluation."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from api.deps import JobId, Queries, Tenant
from jobs.job.documents import Report

router = APIRouter(prefix="/v1/jobs", tags=["report"])


@router.get("/{job_id}/report", responses={200: {"model": Report}})
def get_report(job_id: JobId, queries: Queries, tenant: Tenant) -> Response:
    """Return everything that was measured, once the job has succeeded."""
    return JSONResponse(queries.get_report(job_id, tenant=tenant))
