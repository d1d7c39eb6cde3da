"""The error tree of the service. Each class has its HTTP status; ``api.problems`` renders all of them.

    QuantryError                          500 internal_error
    ├── NotFound                          404
    │   ├── JobNotFound                       job_not_found
    │   ├── ArtifactNotFound                  artifact_not_found
    │   ├── PublicationNotFound               publication_not_found
    │   ├── CredentialNotFound                credential_not_found
    │   └── ReportNotFound                    report_not_found      (the job has not succeeded yet)
    ├── ArtifactsExpired                  410 artifacts_expired     (retention removed a finished job's files)
    ├── InvalidState                      409 invalid_state         (Retry-After while the job still runs)
    ├── IdempotencyInFlight               409 idempotency_in_flight (Retry-After)
    ├── InvalidRequest                    422 invalid_request       (names the field by JSON pointer)
    │   ├── RefusedJob                        refused_job, or the code of its first reason
    │   ├── InvalidPolicy                     the policy's own code, such as unknown_preset
    │   ├── PolicyRequired                    policy_required       (no preset is named)
    │   ├── ModelNotFound                     model_not_found
    │   ├── DatasetNotFound                   dataset_not_found
        │   ├── UnknownCredential                 (with the code credential_not_found)
    │   └── InvalidQuery                      invalid_query         (names the parameter)
    ├── IdempotencyConflict               422 idempotency_key_reused
    ├── TooManyCredentials                409 quota_exceeded
        ├── CredentialUnreadable              500 credential_unreadable (for workers: the key is a different one)
    ├── Unauthorized                      401 unauthorized          (WWW-Authenticate)
    ├── BodyTooLarge                      413 body_too_large
    ├── Unavailable                       503 unavailable           (Retry-After)
    │   ├── NotMigrated                       not_migrated          (the database is of an older release)
    │   └── StoreUnavailable                  store_unavailable     (the artifact store)
        │       └── StoreRefused                  store_refused         (the store answers and refuses)
    └── InstallationError                 500 installation_error    (raised at start, never by a request)

A failed *job* is not an exception: its ``error`` is a :class:`JobProblem`, with the same members as data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from quant_engine.interface.problems import Problem

Category = Literal["user", "platform", "capacity"]

MAX_FIELDS: Final = 50
"""The most fields that one answer tells about."""
_STATUS_OF_CATEGORY: Final[dict[Category, int]] = {"user": 422, "platform": 500, "capacity": 503}


def problem_type(code: str) -> str:
    """Return the ``type`` member of a problem: a stable name, which is not the address of a page."""
    return f"urn:quantry:problem:{code}"


@dataclass(frozen=True)
class FieldError:
    """One wrong field of a request: ``pointer`` is a JSON pointer into the body, or ``?name`` for a parameter."""

    pointer: str
    code: str
    detail: str


class QuantryError(Exception):
    """An error that is answered with a problem. ``detail`` has the fault and a remedy, and never repeats the input."""

    status: ClassVar[int] = 500
    code: str = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        errors: tuple[FieldError, ...] = (),
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.errors = errors
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


class NotFound(QuantryError):
    """The object is missing, or belongs to another tenant: the two look the same."""

    status = 404
    code = "not_found"
    title = "Not found"


class JobNotFound(NotFound):
    """No job of this tenant has the id."""

    code = "job_not_found"
    title = "Job not found"

    def __init__(self) -> None:
        super().__init__("There is no job with this id. List yours with GET /v1/jobs.")


class ArtifactNotFound(NotFound):
    """No artifact of this tenant has the id, or its file is gone."""

    code = "artifact_not_found"
    title = "Artifact not found"

    def __init__(self) -> None:
        super().__init__("There is no artifact with this id. A job lists its own under /v1/jobs/{id}/artifacts.")


class PublicationNotFound(NotFound):
    """No publication of this tenant has the id."""

    code = "publication_not_found"
    title = "Publication not found"

    def __init__(self) -> None:
        super().__init__("There is no publication with this id. A job lists its own under /v1/jobs/{id}/publications.")


class CredentialNotFound(NotFound):
    """No credential of this tenant has the id."""

    code = "credential_not_found"
    title = "Credential not found"

    def __init__(self) -> None:
        super().__init__("There is no credential with this id. List yours with GET /v1/credentials.")


class ReportNotFound(NotFound):
    """The job exists but has no report."""

    code = "report_not_found"
    title = "No report yet"


class InvalidState(QuantryError):
    """The job's status does not allow the operation."""

    status = 409
    code = "invalid_state"
    title = "Not possible in this state"


class ArtifactsExpired(QuantryError):
    """The operator's retention removed the job's files; the job, its summary, layers and report remain."""

    status = 410
    code = "artifacts_expired"
    title = "Files expired"

    def __init__(self) -> None:
        super().__init__(
            "The files of this job were removed: the operator keeps them for a limited time after a job's end. Submit "
            "the job again with the same model and policy to get them anew; its summary, layers and report are still "
            "there."
        )


class IdempotencyInFlight(QuantryError):
    """Another request with the same Idempotency-Key is being answered right now."""

    status = 409
    code = "idempotency_in_flight"
    title = "Request in flight"

    def __init__(self) -> None:
        super().__init__(
            "A request with this Idempotency-Key is still being answered. Repeat it after the time in Retry-After.",
            retry_after=1,
        )


class InvalidRequest(QuantryError):
    """The request is well-formed but can not be done."""

    status = 422
    code = "invalid_request"
    title = "Invalid request"

    def __init__(self, detail: str, *, pointer: str, code: str | None = None, hint: str | None = None) -> None:
        self.code = code or type(self).code
        super().__init__(detail, hint=hint, errors=(FieldError(pointer=pointer, code=self.code, detail=detail),))


class RefusedJob(InvalidRequest):
    """What the model's files, the text and the policy say together rules the job out; each reason has its field."""

    code = "refused_job"
    title = "This job can not succeed"

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        super().__init__(first.detail, pointer=first.pointer, code=first.code, hint=first.hint)
        self.errors = tuple(
            FieldError(pointer=each.pointer, code=each.code, detail=f"{each.detail} {each.hint}".strip())
            for each in problems[:MAX_FIELDS]
        )


class InvalidPolicy(InvalidRequest):
    """Fields of the policy contradict each other, or name an unknown preset."""

    code = "invalid_policy"
    title = "Invalid policy"


class PolicyRequired(InvalidRequest):
    """The request does not say what is done to the model."""

    code = "policy_required"
    title = "Policy required"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, pointer="/policy")


class ModelNotFound(InvalidRequest):
    """The local model is not in the operator's models directory."""

    code = "model_not_found"
    title = "Model not found"


class DatasetNotFound(InvalidRequest):
    """The dataset's name is unknown here."""

    code = "dataset_not_found"
    title = "Dataset not found"


class UnknownCredential(InvalidRequest):
    """The request names a credential that its tenant does not have; the code is that of a missing credential."""

    code = "unknown_credential"
    title = "Credential not found"

    def __init__(self, pointer: str) -> None:
        super().__init__(
            "There is no credential with this id.",
            pointer=pointer,
            code=CredentialNotFound.code,
            hint="Store the Hub token with POST /v1/credentials, or use an id that GET /v1/credentials lists.",
        )


class InvalidQuery(InvalidRequest):
    """A query parameter has no meaning here, such as a foreign cursor."""

    code = "invalid_query"
    title = "Invalid query"


class IdempotencyConflict(QuantryError):
    """The Idempotency-Key was used before with another body."""

    status = 422
    code = "idempotency_key_reused"
    title = "Idempotency key reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another request. Send a new key with a new request.")


class TooManyCredentials(QuantryError):
    """The tenant has as many credentials as a tenant may have."""

    status = 409
    code = "quota_exceeded"
    title = "Too many credentials"

    def __init__(self, limit: int) -> None:
        super().__init__(f"There are {limit} credentials already, which is the maximum. Delete one first.")


class CredentialUnreadable(QuantryError):
    """A stored secret can not be decrypted with the keys of this machine."""

    code = "credential_unreadable"
    title = "Credential unreadable"

    def __init__(self) -> None:
        super().__init__(
            "The stored token was encrypted with a key that this machine does not have. Store the token again; the "
            "operator should give every API and worker the same QUANTRY_SECRET_KEY."
        )


class Unauthorized(QuantryError):
    """No API key, or a wrong one."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"

    def __init__(self) -> None:
        super().__init__(
            "This service needs an API key. Send it as 'Authorization: Bearer <key>'.",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BodyTooLarge(QuantryError):
    """The request body is above the operator's limit."""

    status = 413
    code = "body_too_large"
    title = "Body too large"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The body is larger than {limit} bytes. Shorten it; where it has texts, name a dataset instead of them."
        )


class Unavailable(QuantryError):
    """A server that this service depends on does not answer."""

    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"

    def __init__(self, detail: str = "The database does not answer. Repeat the request in a few seconds.") -> None:
        super().__init__(detail, retry_after=5)


class NotMigrated(Unavailable):
    """The database lacks a table or a column of this release: its migration has not run yet."""

    code = "not_migrated"

    def __init__(self) -> None:
        super().__init__("The database is being upgraded. Repeat the request in a few seconds.")


class StoreUnavailable(Unavailable):
    """The artifact store does not answer."""

    code = "store_unavailable"

    def __init__(
        self, detail: str = "The artifact store does not answer. Repeat the request in a few seconds."
    ) -> None:
        super().__init__(detail)


class StoreRefused(StoreUnavailable):
    """The artifact store refuses: the bucket is missing, or the keys lack rights. Only the operator can fix it."""

    code = "store_refused"

    def __init__(self) -> None:
        super().__init__("The artifact store refuses the service. The operator must check its bucket and its keys.")


class InstallationError(QuantryError):
    """The service can not start here; the message has the remedy."""

    code = "installation_error"
    title = "Can not start"


@dataclass(frozen=True, kw_only=True)
class JobProblem:
    """Why a job failed: the content of its ``error``."""

    code: str
    category: Category
    detail: str
    hint: str
    title: str | None = None

    def as_json(self, job_id: str) -> dict[str, Any]:
        """Return the members of RFC 9457 plus ``code``, ``category`` and ``hint``."""
        return {
            "type": problem_type(self.code),
            "title": self.title or self.code.replace("_", " ").capitalize(),
            "status": _STATUS_OF_CATEGORY[self.category],
            "detail": self.detail,
            "instance": f"/v1/jobs/{job_id}",
            "code": self.code,
            "category": self.category,
            "hint": self.hint,
        }


def crash_loop(attempt: int) -> JobProblem:
    """The problem of a job whose runner died on every attempt; ``attempt`` is the number of the last one."""
    return JobProblem(
        code="crash_loop",
        category="platform",
        title="The run crashed every time",
        detail=f"The process that ran this job ended without a result each time; attempt {attempt} was its last.",
        hint="Often it lacks memory: use a smaller model, fewer samples or a larger machine; see the worker's log.",
    )


def queue_deadline(seconds: int) -> JobProblem:
    """The problem of a job that no worker took in time."""
    return JobProblem(
        code="deadline_exceeded",
        category="capacity",
        title="Waited too long",
        detail=f"No worker was free within limits.max_queue_seconds ({seconds} s).",
        hint="Submit it again with a larger limits.max_queue_seconds, or ask the operator for more workers.",
    )


def run_deadline(seconds: int) -> JobProblem:
    """The problem of a job that ran longer than it was allowed to."""
    return JobProblem(
        code="deadline_exceeded",
        category="user",
        title="Ran too long",
        detail=f"The run took longer than limits.max_run_seconds ({seconds} s).",
        hint="Submit it again with a larger limits.max_run_seconds, fewer training.steps or fewer samples.",
    )
