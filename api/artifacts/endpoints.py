"""Published files: their list, their bytes, and the checkpoint as one archive."""

import base64
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from api.artifacts.ranges import RangeNotSatisfiable, range_applies, requested_range
from api.artifacts.tar import TarMember, tar_chunks, tar_length
from api.deps import ArtifactId, Cursor, IfNoneMatch, JobId, Queries, Tenant
from api.errors import UnsatisfiableRange
from api.negotiation import none_match
from api.responses import json_view
from jobs.job.views import ArtifactView, JobView
from jobs.kit.errors import InvalidQuery, InvalidState
from jobs.kit.states import JobStatus
from jobs.kit.views import Page

router = APIRouter(prefix="/v1", tags=["artifacts"])

_BYTES: Final[dict[str, Any]] = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
# A proxy that compressed the body would make Content-Length and Repr-Digest wrong.
_NOT_COMPRESSED: Final = "private, no-cache, no-transform"


@router.get("/jobs/{job_id}/artifacts", responses={200: {"model": Page[ArtifactView]}})
def list_artifacts(
    job_id: JobId,
    queries: Queries,
    tenant: Tenant,
    *,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many files a page has at most.")] = 1000,
    after: Cursor = None,
) -> Response:
    """List the published files of a job by path: none before it succeeds; expired files (410) are still listed."""
    artifacts = queries.list_artifacts(job_id, tenant=tenant).data
    start = _index_behind(artifacts, after) if after else 0
    data = artifacts[start : start + limit]
    has_more = start + limit < len(artifacts)
    page = Page[ArtifactView](data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)
    return json_view(page)


@router.get("/jobs/{job_id}/archive", responses={200: {"content": {"application/x-tar": {}}}})
def get_archive(job_id: JobId, queries: Queries, tenant: Tenant) -> Response:
    """Return the checkpoint directory as one tar, which is made while it is sent."""
    job = queries.get_job(job_id, tenant=tenant)
    files = queries.archive_files(job_id, tenant=tenant)
    if not files:
        raise _no_checkpoint(job)
    # The time of the job, not of the request: the same job always gives the same archive.
    members = [TarMember(file.view.path, file.view.bytes, file.read) for file in files]
    modified = int((job.finished_at or job.created_at).timestamp())
    headers = {
        "Content-Length": str(tar_length(members, modified=modified)),
        "Content-Disposition": f'attachment; filename="{job_id}.tar"',
        "Cache-Control": _NOT_COMPRESSED,
    }
    return StreamingResponse(tar_chunks(members, modified=modified), headers=headers, media_type="application/x-tar")


@router.head("/artifacts/{artifact_id}/content", include_in_schema=False)
def head_content(
    artifact_id: ArtifactId, queries: Queries, tenant: Tenant, if_none_match: IfNoneMatch = None
) -> Response:
    """Return the headers that GET would return for the whole file. ``Range`` has no meaning here (RFC 9110, 14.2)."""
    file = queries.open_artifact(artifact_id, tenant=tenant)
    # A HEAD reads no bytes, so this is the only check that they exist.
    file.require()
    artifact = file.view
    headers = _content_headers(artifact)
    if not none_match(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(artifact.bytes)
    return Response(headers=headers, media_type=artifact.media_type)


@router.get(
    "/artifacts/{artifact_id}/content",
    responses={200: _BYTES, 206: {**_BYTES, "description": "The range that was asked for"}, 304: {}},
)
def get_content(
    artifact_id: ArtifactId,
    queries: Queries,
    tenant: Tenant,
    *,
    byte_range: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
    if_range: Annotated[str | None, Header(description="An ETag. Range only counts if it is still the same.")] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return one file or one range of its bytes. ``Repr-Digest`` is always the digest of the whole file."""
    file = queries.open_artifact(artifact_id, tenant=tenant)
    artifact, size = file.view, file.view.bytes
    headers = _content_headers(artifact)
    if not none_match(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    try:
        part = requested_range(byte_range, size) if range_applies(if_range, headers["ETag"]) else None
    except RangeNotSatisfiable:
        raise UnsatisfiableRange(size) from None
    start, length, status = (0, size, 200) if part is None else (part.start, part.length, 206)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = part.content_range(size)
    # This asks the store before the headers are sent, so its refusal can still be answered with a problem.
    chunks = file.read(start=start, length=length)
    return StreamingResponse(chunks, status, headers, media_type=artifact.media_type)


def _content_headers(artifact: ArtifactView) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    # The name comes from a job's files. Only harmless characters may stand in a header.
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in artifact.name)
    return {
        "ETag": f'"{artifact.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": _NOT_COMPRESSED,
        "Content-Disposition": f'attachment; filename="{name}"',
    }


def _index_behind(artifacts: tuple[ArtifactView, ...], cursor: str) -> int:
    for index, artifact in enumerate(artifacts, start=1):
        if artifact.id == cursor:
            return index
    raise InvalidQuery("This is not a cursor of this list. Use the next_cursor of the previous page.", pointer="?after")


def _no_checkpoint(job: JobView) -> InvalidState:
    if job.status is JobStatus.SUCCEEDED:
        return InvalidState("The job measured a model and made no checkpoint. Look at its report.")
    if job.is_terminal:
        return InvalidState(f"The job is {job.status.value} and published no checkpoint. Look at its 'error'.")
    return InvalidState(f"The job is {job.status.value}; its checkpoint exists once it has succeeded.", retry_after=5)
