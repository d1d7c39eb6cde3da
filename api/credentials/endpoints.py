"""The endpoints ``/v1/credentials``: Hub tokens, which are write-only."""

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from api.credentials.schemas import NewCredential
from api.deps import CredentialId, Credentials, Cursor, IdempotencyKey, Limit, Tenant, json_body
from api.openapi import json_body_of
from api.responses import json_view
from jobs.credentials import CredentialView
from jobs.kit.views import Page

router = APIRouter(prefix="/v1/credentials", tags=["credentials"])


@router.post("", status_code=201, responses={201: {"model": CredentialView}}, openapi_extra=json_body_of(NewCredential))
def create_credential(
    new: Annotated[NewCredential, json_body(NewCredential)],
    credentials: Credentials,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store a Hub token for ``model.credential`` and ``output.hub.credential``. It can be used or deleted, not read."""
    view = credentials.create(
        tenant=tenant, name=new.name, kind=new.kind, token=new.token, idempotency_key=idempotency_key
    )
    return json_view(view, 201)


@router.get("", responses={200: {"model": Page[CredentialView]}})
def list_credentials(credentials: Credentials, tenant: Tenant, limit: Limit = 20, after: Cursor = None) -> Response:
    """List credentials, newest first, without their tokens."""
    return json_view(credentials.list(tenant=tenant, limit=limit, after=after))


@router.delete("/{credential_id}", status_code=204)
def delete_credential(credential_id: CredentialId, credentials: Credentials, tenant: Tenant) -> Response:
    """Delete a token. A queued job that names it will fail with ``credential_not_found``."""
    credentials.delete(credential_id, tenant=tenant)
    return Response(status_code=204)
