"""Queueing a publication of the files that a job's manifest has under ``checkpoint/``."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs.kit.ids import new_id
from jobs.kit.states import PublicationStatus
from jobs.repository import publications
from jobs.repository.models import Artifact, Job, Publication
from jobs.settings import Settings
from quant_engine.policy.request import HubTarget

CHECKPOINT_PREFIX: Final = "checkpoint/"


def queue(
    session: Session, *, job_id: str, tenant: str, target: HubTarget, files: Iterable[Artifact], max_attempts: int
) -> Publication:
    """Insert and flush a queued publication of ``files``."""
    published = sorted((file.path.removeprefix(CHECKPOINT_PREFIX), file.sha256, file.bytes) for file in files)
    row = Publication(
        id=new_id("pub"),
        job_id=job_id,
        tenant=tenant,
        status=PublicationStatus.QUEUED.value,
        repo=target.repo,
        private=target.private,
        revision=target.revision,
        credential_id=target.credential,
        manifest_sha256=published_files_digest(published),
        max_attempts=max_attempts,
        bytes_total=sum(size for _, _, size in published),
    )
    publications.insert(session, row)
    return row


def queue_output(
    session: Session, job: Job, spec: Mapping[str, Any], artifacts: Sequence[Artifact], settings: Settings
) -> None:
    """Queue what ``output.hub`` of a job's specification asks for, in the transaction that makes the job succeed."""
    asked = spec.get("output", {}).get("hub")
    files = [artifact for artifact in artifacts if artifact.path.startswith(CHECKPOINT_PREFIX)]
    if asked is None or not files:
        return
    target = HubTarget.model_validate(asked)
    attempts = settings.publish_max_attempts
    queue(session, job_id=job.id, tenant=job.tenant, target=target, files=files, max_attempts=attempts)


def published_files_digest(files: Iterable[tuple[str, str, int]]) -> str:
    """Return the hexadecimal digest of a set of (path in the repository, SHA-256, bytes); equal sets, equal digests."""
    text = json.dumps(sorted(files), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
