"""The endpoint ``/v1/jobs/{id}/layers``: the error table, as JSON pages or as CSV."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.deps import Accept, Cursor, JobId, Queries, Tenant
from api.layers.csv import csv_table
from api.negotiation import VARY, preferred
from api.responses import json_view
from jobs.job.views import LayerView
from jobs.kit.views import Page

router = APIRouter(prefix="/v1/jobs", tags=["layers"])

_PAGE = 100
_MAX_PAGE = 1000
_Sort = Annotated[str, Query(pattern=r"^-?[a-z_]{1,40}$", description="A field; '-error' has the worst first.")]


@router.get(
    "/{job_id}/layers",
    responses={200: {"model": Page[LayerView], "content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def list_layers(
    job_id: JobId,
    queries: Queries,
    tenant: Tenant,
    *,
    sort: _Sort = "block",
    limit: Annotated[int | None, Query(ge=1, le=_MAX_PAGE, description="100 if left out; as CSV all rows.")] = None,
    after: Cursor = None,
    accept: Accept = None,
) -> Response:
    """List one row for each quantized linear: what was chosen for it and its held-out error."""
    if preferred(accept, ("application/json", "text/csv")) == "application/json":
        return json_view(
            queries.list_layers(job_id, tenant=tenant, sort=sort, limit=limit or _PAGE, after=after), headers=VARY
        )
    # A CSV without a limit has every row, because it has no place for a cursor.
    rows: list[LayerView] = []
    while True:
        page = queries.list_layers(job_id, tenant=tenant, sort=sort, limit=limit or _MAX_PAGE, after=after)
        rows.extend(page.data)
        if limit is not None or page.next_cursor is None:
            break
        after = page.next_cursor
    headers = {**VARY, "Content-Disposition": f'attachment; filename="{job_id}-layers.csv"'}
    return Response(csv_table(rows), media_type="text/csv", headers=headers)
