"""The inputs of ``/v1/jobs``."""

from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request

from api.body import validate
from api.errors import InvalidFields
from api.fields import sentence
from api.query import object_members
from jobs.kit.errors import FieldError, PolicyRequired
from quant_engine.policy import JobRequest, choice_required
from quant_engine.policy.request import MetadataKey, MetadataValue

METADATA_PARAMETER: Final[dict[str, Any]] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "Labels a job must have: metadata[team]=search.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}

# The same limits as for the labels of a job: no job can match anything else.
_FILTER: Final = TypeAdapter(Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)])


def job_request(body: object) -> JobRequest:
    """Return the body as a request for a job.

    Raises:
        PolicyRequired: there is no policy.
        InvalidFields: fields do not fit; a policy that is missing is one of them.
    """
    if not isinstance(body, dict) or body.get("policy") is not None:
        return validate(JobRequest, body)
    required = PolicyRequired(choice_required())
    try:
        validate(JobRequest, {**body, "policy": {}})
    except InvalidFields as error:
        raise InvalidFields((*error.errors, *required.errors)) from None
    raise required


def metadata_filter(request: Request) -> dict[str, str]:
    """Return the labels of the query.

    Raises:
        InvalidFields: a key or value that no job can carry, or more than 16 of them.
    """
    try:
        return _FILTER.validate_python(object_members(request, "metadata"))
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[:16]
        raise InvalidFields(tuple(FieldError("?metadata", each["type"], sentence(each)) for each in details)) from None
