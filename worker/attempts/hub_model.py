"""A job's model on the Hub: the token that fetches it, and the commit that all attempts of the job use."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobs.credentials import CredentialService
from jobs.job.lease import Claim
from jobs.kit.errors import CredentialNotFound, CredentialUnreadable, JobProblem
from jobs.settings import Settings
from quant_engine.policy import ModelReference
from worker.subprocesses.messages import DownloadFile
from worker.subprocesses.token_pipe import operator_token

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RevisionPin:
    """The commit that a job's revision was first resolved to, so that every later attempt uses the same commit.

    ``known`` comes from the database and reaches all workers. ``file`` holds it on this machine, also while the
    database does not answer.
    """

    file: Path
    known: str | None

    def commit(self) -> str | None:
        """Return the commit, or None before it is resolved."""
        # A file that a crash or a full disk cut short does not match, so the database's value is used.
        written = self.file.read_text() if self.file.is_file() else ""
        return written if _COMMIT.fullmatch(written) else self.known

    def keep(self, commit: str) -> bool:
        """Store ``commit``; return False if it was known already."""
        if self.commit() == commit:
            return False
        self.file.write_text(commit)
        return True


def hub_token(claim: Claim, credentials: CredentialService, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token of the credential that the job names, else the operator's token, if there is one.

    Raises:
        CredentialNotFound, CredentialUnreadable: the job's credential was deleted, or can not be decrypted here.
        Unavailable: the database does not answer.
        OSError: the operator's HF_TOKEN_PATH can not be read.
    """
    credential_id = claim.request.model.credential
    if credential_id is None:
        return operator_token(environment)
    return credentials.hub_token(credential_id, tenant=claim.tenant)


def download_file(
    model: ModelReference, settings: Settings, commit: str | None, preview_dir: Path, *, weights: bool
) -> DownloadFile:
    """Return the request of the download: ``model`` at ``commit``, or at its revision before it is resolved.

    ``preview_dir`` receives all but the weights; nothing else is downloaded without ``weights``.
    """
    return DownloadFile(
        parent_pid=os.getpid(),
        model_id=model.id,
        revision=commit or model.revision,
        cache_dir=models_cache(settings),
        max_bytes=settings.max_model_bytes,
        patience_seconds=settings.hub_patience_seconds,
        preview_dir=preview_dir,
        weights=weights,
    )


def models_cache(settings: Settings) -> Path:
    """Return the directory of downloaded models, which holds ``<id>/<commit>``."""
    return settings.models_cache_dir


def credential_problem(error: CredentialNotFound | CredentialUnreadable) -> JobProblem:
    """Return the problem of a job whose Hub token can not be read."""
    if isinstance(error, CredentialNotFound):
        return JobProblem(
            code=error.code,
            category="user",
            title=error.title,
            detail="The credential that model.credential names was deleted after the job was submitted.",
            hint="Store the Hub token again with POST /v1/credentials, and submit the job with the new id.",
        )
    return JobProblem(
        code=error.code,
        category="platform",
        title=error.title,
        detail="The stored Hub token was encrypted with a key that the worker does not have.",
        hint="Store the token again; the operator should give every API and worker the same QUANTRY_SECRET_KEY.",
    )
