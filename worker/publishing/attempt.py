"""One attempt of one publication: fetch the files from the store, follow the upload, and record the ending.

As in a job's attempt, every ending is one fenced write. A refusal by the Hub that is final fails the publication. After
a temporary refusal or a crash of the upload, another attempt follows.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from jobs.artifacts import ArtifactStore, DamagedBlob, LegacyFiles
from jobs.kit.errors import CredentialNotFound, CredentialUnreadable, StoreUnavailable, Unavailable
from jobs.publications.lease import PublicationClaim, PublicationLeases, PublishedFile
from jobs.publications.queueing import CHECKPOINT_PREFIX
from jobs.settings import Settings
from worker.attempt_machine.ending import Ended, Ending
from worker.attempt_machine.follow import Follower
from worker.claims.heartbeat import ClaimHeartbeat
from worker.outcomes import Outcome
from worker.publishing.endings import PublicationEndings
from worker.publishing.request import PublishFile, UploadedFile
from worker.publishing.workspace import PublishWorkspace
from worker.subprocesses.child import Command
from worker.subprocesses.environment import PUBLISH, publish_environment
from worker.subprocesses.messages import Error, Message, StageAdvanced
from worker.subprocesses.problems import as_error, internal_error

_STORE_RETRY_SECONDS: Final = 30.0
_OVER: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED})

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class PublishDependencies:
    """The services, settings and programs that every attempt of this process uses.

    ``token_for`` returns the Hub token of a claim, or None if there is none.
    """

    leases: PublicationLeases
    store: ArtifactStore
    token_for: Callable[[PublicationClaim], str | None]
    settings: Settings
    program: Sequence[str] = PUBLISH


@dataclass
class PublishAttempt:
    """One attempt, made for one claim and used once. ``must_yield``: whether to hand back the publication now."""

    dependencies: PublishDependencies
    claim: PublicationClaim
    heartbeat: ClaimHeartbeat
    workspace: PublishWorkspace
    must_yield: Callable[[], bool]
    _recorded_bytes: int = field(default=-1)

    def run(self) -> Ending:
        """Do the work and return the ending, which is not stored yet."""
        try:
            token = self._token()
            return self._upload(token, [(file, self._source(file)) for file in self.claim.files])
        except Ended as ended:
            return ended.ending
        except (StoreUnavailable, Unavailable) as error:
            return self._endings.postponed(_unavailable(error.detail), _STORE_RETRY_SECONDS)
        except (FileNotFoundError, DamagedBlob):
            logger.exception("files_missing")
            return self._endings.failed(_files_missing())
        except OSError as error:
            logger.exception("publication_attempt_failed")
            return self._endings.postponed(as_error(error), 0.0)

    def settle(self, ending: Ending) -> Outcome:
        """Store the ending, and remove the files that are not needed any more."""
        outcome = ending.settle(self.heartbeat)
        # After any other outcome, the next attempt on this machine uses the fetched files.
        if outcome in _OVER:
            self.workspace.discard()
        return outcome

    @property
    def _endings(self) -> PublicationEndings:
        return PublicationEndings(leases=self.dependencies.leases, claim=self.claim)

    @property
    def _follower(self) -> Follower:
        return Follower(
            heartbeat=self.heartbeat,
            endings=self._endings,
            must_yield=self.must_yield,
            on_message=self._receive,
            failures_are_errors=False,  # most are refusals by the Hub, which only the user can change
        )

    def _token(self) -> str:
        """Return the Hub token. Raises: Ended: there is none, or it can not be read."""
        try:
            token = self.dependencies.token_for(self.claim)
        except (CredentialNotFound, CredentialUnreadable) as error:
            raise Ended(self._endings.failed(_no_token(error.code, error.detail))) from error
        except OSError as error:
            unread = internal_error("The operator's Hub token can not be read (HF_TOKEN_PATH).")
            raise Ended(self._endings.postponed(unread, _STORE_RETRY_SECONDS)) from error
        if token is None:
            raise Ended(self._endings.failed(_no_token("hub_unauthorized", "There is no Hub token to publish with.")))
        return token

    def _source(self, file: PublishedFile) -> Path:
        """Return the file on this machine; fetch it from the store unless an earlier attempt did so."""
        self._follower.require_claim()
        path = CHECKPOINT_PREFIX + file.path
        # The first release stored files by job and fence; these are still read from there.
        legacy = LegacyFiles(self.dependencies.settings.artifacts_dir).find(
            self.claim.job_id, file.artifact_fence, path
        )
        if legacy is not None:
            return legacy
        target = self.workspace.file(file.sha256)
        if not target.exists():
            partial = target.with_suffix(".partial")
            self.dependencies.store.fetch(file.sha256, partial, on_bytes=lambda _: self._follower.require_claim())
            # A rename, so that a file with its final name is always complete.
            partial.rename(target)
        return target

    def _upload(self, token: str, files: list[tuple[PublishedFile, Path]]) -> Ending:
        request = PublishFile(
            parent_pid=os.getpid(),
            publication_id=self.claim.publication_id,
            job_id=self.claim.job_id,
            repo=self.claim.repo,
            private=self.claim.private,
            revision=self.claim.revision,
            manifest_sha256=self.claim.manifest_sha256,
            # An earlier attempt may have sent its commit and died before it could report that.
            resumed=self.claim.fence > 1,
            files=tuple(
                UploadedFile(path=file.path, source=source, bytes=file.bytes, sha256=file.sha256)
                for file, source in files
            ),
        )
        publish_file = self.workspace.root / "publish.json"
        publish_file.write_text(request.model_dump_json())
        command = Command(
            arguments=[*self.dependencies.program, str(publish_file)],
            environment=publish_environment(self.workspace.scratch),
            directory=self.workspace.scratch,
            log=self.workspace.log,
            token=token,
        )
        return self._endings.succeeded(self._follower.follow(command))

    def _receive(self, message: Message) -> None:
        # The upload reports twice a second; an unchanged count is not written again.
        if isinstance(message, StageAdvanced) and message.done != self._recorded_bytes:
            self._recorded_bytes = message.done
            leases, done, total = self.dependencies.leases, message.done, message.total
            self.heartbeat.post(lambda: leases.record_progress(self.claim, done, total))


def _unavailable(detail: str) -> Error:
    return Error(
        code="store_unavailable",
        category="platform",
        detail=detail,
        hint="Nothing has to be done: the publication is tried again.",
    )


def _files_missing() -> Error:
    missing = internal_error("A file of the checkpoint is gone from the artifact store, or is damaged there.")
    return missing.model_copy(update={"hint": "Run the job again and publish that; the operator's log says more."})


def _no_token(code: str, detail: str) -> Error:
    return Error(
        code=code,
        category="user",
        detail=detail,
        hint="Store one that may write with POST /v1/credentials and publish with its id; operators set HF_TOKEN.",
    )
