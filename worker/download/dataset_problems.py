"""The problems of a data set on the Hub, as the job's owner reads them."""

from typing import Final

from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from worker.download import problems
from worker.download.dataset_files import NoSuchFiles
from worker.subprocesses.messages import DatasetDownloadFile, Error

_LATER: Final = (
    "Submit the job again later, or have the operator put the data set into a folder under QUANTRY_DATASETS_DIR; "
    "the dataset pydoc, and inline texts, need no network."
)


def as_dataset_error(error: Exception, request: DatasetDownloadFile, *, has_token: bool) -> Error:
    """Return the message for any exception of the download of a data set."""
    match error:
        case NoSuchFiles():
            return _not_found(f"{request.dataset_id}: {error.detail}", error.hint)
        case GatedRepoError():
            return _gated(request.dataset_id, has_token=has_token)
        case RevisionNotFoundError():
            return _not_found(
                f"{request.dataset_id} has no revision {request.revision!r}.", "Check it on the data set's page."
            )
        case RepositoryNotFoundError():
            return _not_found(
                f"The Hub shows no data set {request.dataset_id}; it does not exist, or it is private.",
                "Check its id on the Hub's page. For a private one, name a token that can read it in model.credential.",
            )
    found = problems.as_hub_error(error, has_token=has_token)
    # What is left says the same for models and data sets, but for the way without the Hub.
    return found.model_copy(update={"hint": _LATER}) if found.code == problems.UNREACHABLE else found


def too_large(name: str, size: int, limit: int) -> Error:
    """Return the error for a file of a data set that is larger than the operator allows."""
    return Error(
        code="quota_exceeded",
        category="user",
        detail=f"The first file of the data set, {name}, has {size:,} bytes; the operator allows {limit:,}.",
        hint="Choose a data set in smaller files, or have the operator raise QUANTRY_MAX_DATASET_BYTES.",
    )


def _not_found(detail: str, hint: str) -> Error:
    return Error(code="dataset_not_found", category="user", detail=detail, hint=hint)


def _gated(dataset_id: str, *, has_token: bool) -> Error:
    account = "The token's account has no access yet." if has_token else "No token was given."
    return Error(
        code="dataset_gated",
        category="user",
        detail=f"{dataset_id} is gated: its owner grants access account by account. {account}",
        hint="Ask for access on the data set's page, store that account's token with POST /v1/credentials, and name it "
        "in model.credential.",
    )
