"""The dependencies of endpoints, as ``Annotated`` aliases."""

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Path, Query, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.requests import Request

from api.body import NoFields, require_json, validate
from api.json_text import parse_json
from api.state import AppState
from jobs.credentials import CredentialService
from jobs.job.commands import JobCommands
from jobs.job.queries import JobQueries
from jobs.kit.errors import Unauthorized
from jobs.publications.service import PublicationService
from jobs.settings import SINGLE_TENANT, Settings

MAX_PAGE: Final = 100

# Without auto_error: ``authorize`` raises the service's own error, and only where a key is configured.
_bearer = HTTPBearer(auto_error=False, description="The operator's key, where QUANTRY_API_KEY sets one.")


def _state(request: Request) -> AppState:
    state: AppState = request.app.state.quantry
    return state


State = Annotated[AppState, Depends(_state)]


# These are ``async`` so that FastAPI calls them on the event loop; plain functions would each take a thread.
async def _settings(state: State) -> Settings:
    return state.settings


async def _commands(state: State) -> JobCommands:
    return state.commands


async def _queries(state: State) -> JobQueries:
    return state.queries


async def _publications(state: State) -> PublicationService:
    return state.publications


async def _credentials(state: State) -> CredentialService:
    return state.credentials


SettingsDep = Annotated[Settings, Depends(_settings)]
Commands = Annotated[JobCommands, Depends(_commands)]
Queries = Annotated[JobQueries, Depends(_queries)]
Credentials = Annotated[CredentialService, Depends(_credentials)]
Publications = Annotated[PublicationService, Depends(_publications)]


async def authorize(
    settings: SettingsDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> None:
    """Check the API key: a dependency of every route under /v1 and of /metrics. Raises: Unauthorized.

    Both keys are hashed first, so that the comparison takes the same time for every offered key.
    """
    if settings.api_key is None:
        return
    offered = credentials.credentials if credentials is not None else ""
    if not hmac.compare_digest(_digest(offered), _digest(settings.api_key.get_secret_value())):
        raise Unauthorized


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _tenant() -> str:
    # The one place that decides the tenant of a request.
    return SINGLE_TENANT


Tenant = Annotated[str, Depends(_tenant)]


JobId = Annotated[str, Path(description="A job's id.")]
ArtifactId = Annotated[str, Path(description="An artifact's id.")]
CredentialId = Annotated[str, Path(description="A credential's id.")]
PublicationId = Annotated[str, Path(description="A publication's id.")]


def json_body(
    model: type[BaseModel], *, has_text: bool = False, read: Callable[[object], BaseModel] | None = None
) -> Any:
    """Return the dependency of an endpoint whose body is JSON, parsed as a ``model``.

    ``has_text`` allows QUANTRY_MAX_BODY_BYTES, for documents; other bodies are at most 256 KiB. ``read`` makes the
    model of the JSON value; by default the model's own validation does.
    """
    reader = read or partial(validate, model)

    async def parsed(request: Request, state: State) -> AsyncIterator[BaseModel]:
        require_json(request)
        async with state.bodies.parsed(request, reader, has_text=has_text) as body:
            # An empty body is no JSON; the parser says so.
            yield reader(parse_json(b"")) if body is None else body

    return _held_until_the_answer(parsed)


def optional_body(model: type[BaseModel]) -> Any:
    """Return the dependency of an endpoint that takes no body, or JSON that is parsed as a ``model``: None without."""

    async def parsed(request: Request, state: State) -> AsyncIterator[BaseModel | None]:
        async with state.bodies.parsed(request, partial(validate, model), has_text=False) as body:
            yield body

    return _held_until_the_answer(parsed)


def _held_until_the_answer(dependency: Callable[..., Any]) -> Any:
    # By default FastAPI would hold it until the client has received the response.
    return Depends(dependency, scope="function")


NoBody = Annotated[NoFields | None, optional_body(NoFields)]
"""The body of an operation that takes no fields: nothing, or ``{}``."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="Up to 255 printable ASCII characters. Repeating a request with its key repeats its response.",
    ),
]
IfNoneMatch = Annotated[str | None, Header(description="An ETag. If it is still the same, the answer is 304.")]
Accept = Annotated[str | None, Header(include_in_schema=False)]
Cursor = Annotated[
    str | None, Query(pattern=r"^[\x21-\x7e]{1,512}$", description="The next_cursor of the previous page.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many entries a page has at most.")]
