"""Hub tokens of tenants: stored encrypted, never shown, and given only to the worker that needs one.

The key is ``QUANTRY_SECRET_KEY`` (Fernet keys, newest first, so that tokens of an old key can be read while it is being
replaced), or one made on first use in the data directory. Several machines must share it: workers read what the API
wrote.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import Field, SecretStr
from sqlalchemy import func
from sqlalchemy.orm import Session

from jobs.idempotency import KEEP_SECONDS, IdempotentRequest
from jobs.kit import cursors
from jobs.kit.errors import (
    CredentialNotFound,
    CredentialUnreadable,
    InstallationError,
    TooManyCredentials,
    UnknownCredential,
)
from jobs.kit.ids import is_id, new_id
from jobs.kit.views import Page, Timestamp, View
from jobs.repository import credentials
from jobs.repository.database import Database
from jobs.repository.models import Credential
from jobs.settings import Settings
from quant_engine.policy import JobRequest

MAX_PER_TENANT: Final = 100

_KEY_FILE: Final = "secret.key"
# A prefix of its own, so that the same key gives other digests here than anywhere else.
_HASHED_AS: Final = b"quantry idempotency\0"
_MAKE_ONE: Final = (
    'Make one with: python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
)


def key_file(settings: Settings) -> Path:
    """Return the path of the key that is made here, if QUANTRY_SECRET_KEY gives none."""
    return settings.data_dir / _KEY_FILE


class CredentialView(View):
    """A stored Hub token, which itself is never shown."""

    id: Annotated[str, Field(examples=["cred_0123456789abcdef01234567"])]
    """Its id, for ``model.credential`` and ``output.hub.credential``."""
    object: Literal["credential"] = "credential"
    """What this is."""
    name: Annotated[str, Field(examples=["mine"])]
    """Its name."""
    kind: Literal["hub"]
    """Where the token is valid."""
    created_at: Timestamp
    """When it was stored."""
    last_used_at: Timestamp | None
    """When a job or a publication last used it."""


class Vault:
    """Encrypts ("seals") tokens with the newest key, and decrypts what any of the keys sealed."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._newest = keys[0]

    @classmethod
    def open(cls, settings: Settings) -> "Vault":
        """Open the installation's vault. A key is made in the data directory if there is none and none is configured.

        Raises:
            InstallationError: a key is malformed, or the key file can not be read or written.
        """
        if settings.secret_key is not None:
            texts = settings.secret_key.get_secret_value().split(",")
            return cls(_checked([text.strip().encode() for text in texts], "QUANTRY_SECRET_KEY"))
        path = key_file(settings)
        try:
            return cls(_checked([_kept_key(path)], str(path)))
        except OSError as error:
            raise InstallationError(
                f"The key of stored credentials, {path}, can not be read or made: {error.strerror}. Correct the "
                "directory's permissions, or set QUANTRY_SECRET_KEY."
            ) from error

    def seal(self, token: str) -> bytes:
        """Encrypt and authenticate a token."""
        return self._fernet.encrypt(token.encode())

    def unseal(self, secret: bytes) -> str:
        """Decrypt a token.

        Raises:
            CredentialUnreadable: another key sealed it, or it was altered.
        """
        try:
            return self._fernet.decrypt(secret).decode()
        except InvalidToken:
            raise CredentialUnreadable from None

    def digest(self, *parts: str) -> str:
        """Return a digest that is equal for equal ``parts``, and reveals nothing about them without the key."""
        text = _HASHED_AS + json.dumps(parts).encode()
        return hmac.digest(self._newest, text, hashlib.sha256).hex()


class CredentialService:
    """The operations of tenants on credentials, and of a worker on one. Each method is one transaction."""

    def __init__(self, database: Database, vault: Vault, *, idempotency_seconds: float = KEEP_SECONDS) -> None:
        self._database = database
        self._vault = vault
        self._idempotency_seconds = idempotency_seconds

    def create(
        self,
        *,
        tenant: str,
        name: str,
        token: SecretStr,
        kind: Literal["hub"] = "hub",
        idempotency_key: str | None = None,
    ) -> CredentialView:
        """Store a token. A repeated Idempotency-Key gets the first answer again.

        Raises:
            TooManyCredentials: the tenant has as many as a tenant may have.
            IdempotencyConflict: the key belongs to another request.
            IdempotencyInFlight: a request with the same key is being answered.
        """
        plain = token.get_secret_value()
        # Not a plain hash of the body: it could be used to test guesses of the token.
        digest = self._vault.digest(name, kind, plain)
        kept = self._idempotency_seconds
        idempotent = IdempotentRequest.of(
            tenant, "POST /v1/credentials", idempotency_key, None, digest=digest, keep_seconds=kept
        )
        with self._database.transaction() as session:
            stored = idempotent.replay(session, CredentialView)
            if stored is not None:
                return stored
            if credentials.count(session, tenant) >= MAX_PER_TENANT:
                raise TooManyCredentials(MAX_PER_TENANT)
            row = Credential(id=new_id("cred"), tenant=tenant, name=name, kind=kind, secret=self._vault.seal(plain))
            session.add(row)
            session.flush()
            session.refresh(row)
            view = _view(row)
            idempotent.remember(session, view)
        return view

    def list(self, *, tenant: str, limit: int = 20, after: str | None = None) -> Page[CredentialView]:
        """List credentials, newest first, by keyset on (created_at, id). Raises: InvalidQuery for a foreign cursor."""
        key = None if after is None else cursors.decode_job(after)
        with self._database.transaction() as session:
            # One row more than asked for shows whether another page follows.
            found = credentials.page(session, tenant, limit=limit + 1, after=key)
        views = tuple(_view(row) for row in found[:limit])
        has_more = len(found) > limit
        cursor = cursors.encode_job(views[-1].created_at, views[-1].id) if has_more else None
        return Page(data=views, has_more=has_more, next_cursor=cursor)

    def delete(self, credential_id: str, *, tenant: str) -> None:
        """Delete a token. A job that still needs it will fail and report it. Raises: CredentialNotFound."""
        with self._database.transaction() as session:
            if not is_id(credential_id) or not credentials.delete(session, tenant, credential_id):
                raise CredentialNotFound

    def hub_token(self, credential_id: str, *, tenant: str) -> str:
        """Return the token, for the process that uses the Hub, and record the time of use.

        Raises:
            CredentialNotFound: it was deleted, or belongs to another tenant.
            CredentialUnreadable: this machine does not have the key that sealed it.
        """
        with self._database.transaction() as session:
            row = credentials.find(session, tenant, credential_id) if is_id(credential_id) else None
            if row is None:
                raise CredentialNotFound
            token = self._vault.unseal(row.secret)
            row.last_used_at = session.scalars(func.clock_timestamp().select()).one()
        return token


def require_credential(session: Session, tenant: str, credential_id: str | None, pointer: str) -> None:
    """Check a request's reference to a credential; null refers to none.

    Raises:
        UnknownCredential: the tenant has no such credential; the error names the field.
    """
    if credential_id is not None and credentials.find(session, tenant, credential_id) is None:
        raise UnknownCredential(pointer)


def require_credentials_of(session: Session, tenant: str, request: JobRequest) -> None:
    """Check every credential that a job names. Raises: UnknownCredential."""
    require_credential(session, tenant, request.model.credential, "/model/credential")
    if request.output.hub is not None:
        require_credential(session, tenant, request.output.hub.credential, "/output/hub/credential")


def _view(row: Credential) -> CredentialView:
    return CredentialView.model_validate(row, from_attributes=True)


def _checked(keys: list[bytes], origin: str) -> tuple[bytes, ...]:
    for number, key in enumerate(keys, start=1):
        try:
            Fernet(key)
        except ValueError:
            raise InstallationError(
                f"Key {number} of {len(keys)} in {origin} is not a Fernet key, which is 32 bytes in URL-safe base64. "
                f"{_MAKE_ONE}"
            ) from None
    return tuple(keys)


def _kept_key(path: Path) -> bytes:
    """Read the key in ``path``, or make it. The API and workers start at the same time: the first one makes it."""
    try:
        return path.read_bytes().strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    # A hard link to a complete file, unlike a rename, never replaces a key that another process made.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            # If a power failure lost the key, all stored tokens would be unreadable.
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster, and its key stands
            os.link(draft, path)
    finally:
        draft.unlink()
    return path.read_bytes().strip()
