"""The errors of a publication, as its owner reads them, and whether another attempt follows."""

from collections.abc import Iterator, Sequence
from typing import Final

import httpx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from worker.publishing.http import HubBusy
from worker.publishing.request import PublishFile
from worker.subprocesses.messages import Error
from worker.subprocesses.problems import as_error

_MAX_SAID: Final = 300
_LFS_ERRORS: Final = "LFS batch API returned errors:\n"
_TOKEN_HINT: Final = "Store a token that may write to that account with POST /v1/credentials, and name it."  # noqa: S105
_LATER: Final = "Nothing has to be done: it is tried again. The job and its files are safe."


class Refused(Exception):
    """A refused publication; ``error`` is the message for the supervisor."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.code)
        self.error = error


def publish_error(error: BaseException, request: PublishFile) -> Error:
    """Return the message for ``error``, from the first of its causes that concerns the Hub."""
    for cause in _causes(error):
        reported = _reported(cause, request)
        if reported is not None:
            return reported
    return as_error(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reported(error: BaseException, request: PublishFile) -> Error | None:
    match error:
        case Refused():
            return error.error
        case HubBusy():
            return _busy(error.status, error.retry_after)
        case OfflineModeIsEnabled():
            return _failed(
                "hub_unreachable",
                "platform",
                "The worker is configured to stay offline (HF_HUB_OFFLINE).",
                "Ask the operator.",
            )
        case HFValidationError():
            return _failed("invalid_repo", "user", "The Hub does not take this repository's name.", "Choose another.")
        case RepositoryNotFoundError():
            return _not_found(request, error.response.status_code)
        case HfHubHTTPError():
            return _answered(error, request)
        case ValueError() if str(error).startswith(_LFS_ERRORS):  # such as a storage quota that is used up
            return _refused(str(error).removeprefix(_LFS_ERRORS))
        case httpx.TransportError() | ConnectionError():
            return _later("hub_unreachable", "platform", "The Hub did not answer, or the connection broke.", 0.0)
    return None


def _answered(error: HfHubHTTPError, request: PublishFile) -> Error:
    status = error.response.status_code
    if status == 401:
        return _failed("hub_unauthorized", "user", "The Hub does not know the token.", _TOKEN_HINT)
    if status == 403:
        return _failed("hub_forbidden", "user", f"The token may not write to {request.repo}.", _TOKEN_HINT)
    if status == 404:
        return _not_found(request, status)
    if status == 409:
        return _later("hub_busy", "capacity", "The Hub is busy with a change of this account.", 0.0)
    if status in {408, 425, 429} or status >= 500:
        return _busy(status, None)
    return _refused(f"HTTP status {status}. {error.server_message or ''}")


def _refused(said: str) -> Error:
    # The text is the Hub's own, of any length.
    detail = f"The Hub refused: {said.strip()[:_MAX_SAID]}"
    return _failed("hub_refused", "user", detail, "Correct that, then retry the publication.")


def _busy(status: int, retry_after: float | None) -> Error:
    if status == 429:
        return _later("hub_rate_limited", "capacity", "The Hub takes no more requests for now.", retry_after or 0.0)
    return _later("hub_unreachable", "platform", f"The Hub answered with HTTP status {status}.", retry_after or 0.0)


# The Hub also answers 401 for a repository that the token may not see.
def _not_found(request: PublishFile, status: int) -> Error:
    if status == 401:
        return _failed("hub_unauthorized", "user", f"The Hub shows no {request.repo} to this token.", _TOKEN_HINT)
    return _failed("repo_not_found", "user", f"The Hub has no {request.repo}, or no such account.", _TOKEN_HINT)


def repo_is_public(request: PublishFile) -> Error:
    """Return the error for a repository that is public although a private one was requested."""
    return _failed(
        "repo_is_public",
        "user",
        f"{request.repo} is public, and the publication was asked to be private. Nothing was uploaded.",
        "Make the repository private on the Hub and retry, choose another name, or publish with private: false.",
    )


def head_keeps_moving(request: PublishFile) -> Error:
    """Return the error for a branch that other commits changed during every try."""
    detail = f"The branch {request.revision} of {request.repo} changed each time before the commit."
    return _later("hub_conflict", "capacity", detail, 0.0)


def incomplete(request: PublishFile, missing: Sequence[str]) -> Error:
    """Return the error for a commit from which the Hub left out files."""
    return _failed(
        "publication_incomplete",
        "user",
        f"The Hub left {len(missing)} files out of the commit, such as {missing[0]}.",
        f"A .gitignore in {request.repo} excludes them: remove it there, then retry.",
    )


def _failed(code: str, category: str, detail: str, hint: str) -> Error:
    return Error.model_validate({"code": code, "category": category, "detail": detail, "hint": hint})


def _later(code: str, category: str, detail: str, retry_after: float) -> Error:
    return _failed(code, category, detail, _LATER).model_copy(update={"retry_after": retry_after})
