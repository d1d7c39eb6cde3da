"""Idempotency-Key: a POST with the same key and body gets the first answer again, for a day or as configured."""

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

from pydantic import BaseModel
from sqlalchemy.orm import Session

from jobs.kit.errors import IdempotencyConflict, IdempotencyInFlight, InvalidRequest
from jobs.kit.storable import storable_text
from jobs.kit.views import View
from jobs.repository import idempotency

AnyView = TypeVar("AnyView", bound=View)

KEEP_SECONDS: Final = 86_400.0
_MAX_KEY: Final = 255


@dataclass(frozen=True)
class IdempotentRequest:
    """A POST of a tenant. Without a key each call is a new one. The answer is stored for ``keep_seconds``."""

    tenant: str
    endpoint: str
    key: str | None
    request_hash: str
    keep_seconds: float = KEEP_SECONDS

    @classmethod
    def of(
        cls,
        tenant: str,
        endpoint: str,
        key: str | None,
        body: BaseModel | None,
        *,
        digest: str | None = None,
        keep_seconds: float = KEEP_SECONDS,
    ) -> "IdempotentRequest":
        """Describe a request. ``digest`` replaces the plain hash of a body with a secret, which must not be stored.

        Raises:
            InvalidRequest: the key is empty, too long or not printable ASCII.
        """
        if key is not None and not (1 <= len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
            raise InvalidRequest(
                f"An Idempotency-Key has 1 to {_MAX_KEY} printable ASCII characters; a UUID is a good one.",
                pointer="Idempotency-Key",
            )
        hashed = digest or request_hash(body)
        named = storable_text(endpoint)  # the path of a request can have characters that no id has, such as NUL
        return cls(tenant=tenant, endpoint=named, key=key, request_hash=hashed, keep_seconds=keep_seconds)

    def replay(self, session: Session, view: type[AnyView]) -> AnyView | None:
        """Return the stored answer as a ``view``; None for a first request, which locks the key for its transaction.

        Raises:
            IdempotencyInFlight: another transaction holds the key.
            IdempotencyConflict: the key's first request had another body.
        """
        if self.key is None:
            return None
        # The lock comes first: without it two equal requests could both find no answer.
        if not idempotency.try_lock(session, self.tenant, self.endpoint, self.key):
            raise IdempotencyInFlight
        row = idempotency.find(session, self.tenant, self.endpoint, self.key)
        if row is None:
            return None
        if row.request_hash != self.request_hash:
            raise IdempotencyConflict
        return view.model_validate(row.response)

    def remember(self, session: Session, view: View) -> None:
        """Store the answer in the transaction that made it, including fields that the JSON leaves out (the version)."""
        if self.key is None:
            return
        hidden = {name: getattr(view, name) for name, field in type(view).model_fields.items() if field.exclude}
        # The JSON lacks excluded fields, which the replayed view needs for its ETag.
        response = {**view.model_dump(mode="json"), **hidden}
        identity = (self.tenant, self.endpoint, self.key)
        keep = timedelta(seconds=self.keep_seconds)
        idempotency.store(session, identity, request_hash=self.request_hash, response=response, keep=keep)


def request_hash(request: BaseModel | None) -> str:
    """Return a hash of a body for Idempotency-Key. It depends on the content, not on the spelling of the JSON."""
    # Without unset fields, a new default in a later release does not change the hash.
    body = None if request is None else request.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
