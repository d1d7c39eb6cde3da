"""The problems of a model on the Hub, as the job's owner reads them."""

import shutil
from pathlib import Path
from typing import Final

import httpx
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from worker.download.hub_retry import reason
from worker.download.transfer import DamagedFile
from worker.subprocesses.messages import DownloadFile, Error
from worker.subprocesses.problems import as_error

UNREACHABLE: Final = "hub_unreachable"


class Refused(Exception):
    """A refused download; ``error`` is the message for the supervisor."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.detail)
        self.error = error


def as_download_error(error: Exception, request: DownloadFile, *, has_token: bool) -> Error:
    """Return the message for any exception of a download."""
    match error:
        case GatedRepoError():
            return _gated(request.model_id, has_token=has_token)
        case RevisionNotFoundError():
            return _not_found(f"{request.model_id} has no revision {request.revision!r}.")
        case RepositoryNotFoundError():
            return _not_found(f"The Hub shows no model {request.model_id}; it does not exist, or it is private.")
    return as_hub_error(error, has_token=has_token)


def as_hub_error(error: Exception, *, has_token: bool) -> Error:
    """Return the message for an exception that says nothing of what is downloaded."""
    match error:
        case Refused():
            return error.error
        case OfflineModeIsEnabled():
            return unreachable("The worker is configured to stay offline (HF_HUB_OFFLINE).")
        # The callers' own cases come first, because their exceptions are subclasses of HfHubHTTPError.
        case HfHubHTTPError() if error.response.status_code in {401, 403}:
            return _token_refused(error.response.status_code, has_token=has_token)
        case httpx.HTTPError():
            why = reason(error)
            return unreachable(f"{why[0].upper()}{why[1:]}.")
        case DamagedFile():
            return _damaged(error.file.name)
    return as_error(error)


def require_within_quota(total: int, limit: int) -> None:
    """Raise Refused if the model's files are larger than the operator allows; ``limit`` 0 allows any size."""
    if limit and total > limit:
        raise Refused(
            Error(
                code="quota_exceeded",
                category="user",
                detail=f"The model's files have {total:,} bytes; the operator allows {limit:,}.",
                hint="Choose a smaller model, or have the operator raise QUANTRY_MAX_MODEL_BYTES.",
            )
        )


def require_space(directory: Path, needed: int) -> None:
    """Raise Refused unless the disk has ``needed`` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise Refused(
            Error(
                code="insufficient_disk",
                category="capacity",
                detail=f"The download needs {needed:,} bytes of disk; the worker has {free:,} free.",
                hint="Free space under QUANTRY_DATA_DIR, or use a worker with a larger disk, and submit the job again.",
            )
        )


def no_safetensors() -> Error:
    """Return the error for a repository without weights that are safe to open."""
    return Error(
        code="unsafe_checkpoint",
        category="user",
        detail="The model's repository has no safetensors weights.",
        hint="Other formats can run code when opened. Choose a model, or a revision, with safetensors.",
    )


def unreachable(detail: str) -> Error:
    """Return the error for a Hub that can not be used now."""
    return Error(
        code=UNREACHABLE,
        category="platform",
        detail=detail,
        hint="Submit the job again later, or put the model under QUANTRY_MODELS_DIR and use model.source 'local'.",
    )


def _not_found(detail: str) -> Error:
    return Error(
        code="model_not_found",
        category="user",
        detail=detail,
        hint="Check model.id and model.revision on the Hub's page. A private model needs model.credential: store a "
        "token of an account that can read it with POST /v1/credentials.",
    )


def _gated(model_id: str, *, has_token: bool) -> Error:
    account = "The token's account has no access yet." if has_token else "No token was given."
    return Error(
        code="model_gated",
        category="user",
        detail=f"{model_id} is gated: its owner grants access account by account. {account}",
        hint="Ask for access on the model's page, store that account's token with POST /v1/credentials, and name it in "
        "model.credential.",
    )


def _token_refused(status: int, *, has_token: bool) -> Error:
    detail = "The Hub refuses the token" if has_token else "The Hub asks for a token, and none was given"
    return Error(
        code="hub_token_refused",
        category="user",
        detail=f"{detail} (HTTP status {status}).",
        hint="It may be expired, revoked or without permission to read. Make a new one on the Hub, store it with POST "
        "/v1/credentials, and name it in model.credential.",
    )


def _damaged(name: str) -> Error:
    return Error(
        code="download_damaged",
        category="platform",
        detail=f"{name} arrived completely, but is not the file that the Hub's metadata describes.",
        hint="Submit the job again. If it happens twice, a proxy on the way alters files, or the repository is broken.",
    )
