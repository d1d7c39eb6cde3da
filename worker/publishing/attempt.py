"""One attempt of one publication: fetch the files from the store, watch the upload, say how it ended.

As with a job's attempt, every ending is one fenced write. What the Hub refuses for good fails the publication; what it
refuses for now, and an upload that died, are tried again later.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from jobs.artifacts import ArtifactStore, DamagedBlob, LegacyFiles
from jobs.kit.errors import CredentialNotFound, CredentialUnreadable, StoreUnavailable, Unavailable
from jobs.publications.lease import Commit, PublicationClaim, PublicationLeases, PublishedFile
from jobs.publications.problems import crashed
from jobs.publications.queueing import CHECKPOINT_PREFIX
from jobs.settings import Settings
from worker.claims.heartbeat import ClaimHeartbeat, ClaimState
from worker.publishing.request import PublishFile, UploadedFile
from worker.publishing.workspace import PublishWorkspace
from worker.subprocesses.child import Child, Command
from worker.subprocesses.environment import PUBLISH, publish_environment
from worker.subprocesses.messages import Error, Message, Result, StageAdvanced
from worker.subprocesses.problems import as_error, as_problem, internal_error

_POLL_SECONDS: Final = 0.2
_STORE_RETRY_SECONDS: Final = 30.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ending:
    """How the attempt ended: a word for the log, and the write that says so (none when the claim is lost)."""

    word: str
    write: Callable[[], bool] | None


class _Ended(Exception):
    """Not an error: carries an ending from the step that found it."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.word)
        self.ending = ending


@dataclass(frozen=True, kw_only=True)
class PublishDependencies:
    """What every attempt of this process works with.

    ``token_for`` gives the Hub token of a claim, None where there is none.
    """

    leases: PublicationLeases
    store: ArtifactStore
    token_for: Callable[[PublicationClaim], str | None]
    settings: Settings
    program: Sequence[str] = PUBLISH


@dataclass
class PublishAttempt:
    """Made for one claim, used once. ``must_yield``: the worker has to let its publication go now."""

    dependencies: PublishDependencies
    claim: PublicationClaim
    heartbeat: ClaimHeartbeat
    workspace: PublishWorkspace
    must_yield: Callable[[], bool]
    _shown: int = field(default=-1)

    def run(self) -> Ending:
        """Do the work; the ending is not written yet."""
        try:
            token = self._token()
            return self._upload(token, [(file, self._source(file)) for file in self.claim.files])
        except _Ended as ended:
            return ended.ending
        except (StoreUnavailable, Unavailable) as error:
            return self._later(_away(error.detail), _STORE_RETRY_SECONDS)
        except (FileNotFoundError, DamagedBlob):
            logger.exception("files_missing")
            return self._failed(_files_missing())
        except OSError as error:
            logger.exception("publication_broke")
            return self._later(as_error(error), 0.0)

    def _token(self) -> str:
        """Raises: _Ended: there is none, or it can not be read."""
        try:
            token = self.dependencies.token_for(self.claim)
        except (CredentialNotFound, CredentialUnreadable) as error:
            raise _Ended(self._failed(_no_token(error.code, error.detail))) from error
        except OSError as error:
            unread = internal_error("The operator's Hub token can not be read (HF_TOKEN_PATH).")
            raise _Ended(self._later(unread, _STORE_RETRY_SECONDS)) from error
        if token is None:
            raise _Ended(self._failed(_no_token("hub_unauthorized", "There is no Hub token to publish with.")))
        return token

    def _source(self, file: PublishedFile) -> Path:
        """Where the file lies on this machine, fetched from the store unless an earlier attempt did that."""
        self._go_on()
        path = CHECKPOINT_PREFIX + file.path
        legacy = LegacyFiles(self.dependencies.settings.artifacts_dir).find(
            self.claim.job_id, file.artifact_fence, path
        )
        if legacy is not None:
            return legacy
        target = self.workspace.file(file.sha256)
        if not target.exists():
            partial = target.with_suffix(".partial")
            self.dependencies.store.fetch(file.sha256, partial, on_bytes=lambda _: self._go_on())
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
        with Child(command) as child:
            logger.info("upload_started", pid=child.pid)
            return self._judge(child, self._watch(child))

    def _watch(self, child: Child) -> Result | Error | None:
        verdict: Result | Error | None = None
        exited = False
        while not exited:
            exited = child.has_exited()  # asked before reading: then the pipe holds all there will ever be
            for message in child.drain() if exited else child.receive(_POLL_SECONDS):
                verdict = self._hear(message) or verdict
            if not exited:
                self._go_on()
        return verdict

    def _hear(self, message: Message) -> Result | Error | None:
        if isinstance(message, Result | Error):
            return message
        if isinstance(message, StageAdvanced) and message.done != self._shown:
            self._shown = message.done
            leases, done, total = self.dependencies.leases, message.done, message.total
            self.heartbeat.post(lambda: leases.record_progress(self.claim, done, total))
        return None

    def _go_on(self) -> None:
        """Raises: _Ended: the claim is lost, or the worker stops. Leaving the child's block then kills the upload."""
        if self.heartbeat.state() is ClaimState.LOST:
            logger.warning("claim_given_up", silent_seconds=round(self.heartbeat.silent_seconds(), 1))
            raise _Ended(Ending("lost", None))
        if self.must_yield():
            raise _Ended(Ending("drained", lambda: self.dependencies.leases.release(self.claim)))

    def _judge(self, child: Child, verdict: Result | Error | None) -> Ending:
        code = child.exit_code()
        if isinstance(verdict, Error):
            logger.warning("not_published", code=verdict.code, detail=verdict.detail, exit_code=code)
            if verdict.retry_after is None:
                return self._failed(verdict)
            return self._later(verdict, verdict.retry_after)
        if code != 0 or verdict is None:
            logger.error("upload_died", exit_code=code, log_tail=child.log_tail())
            return self._crashed()
        return self._succeeded(verdict.payload)

    def _succeeded(self, payload: dict[str, Any]) -> Ending:
        commit = Commit(str(payload["sha"]), str(payload["url"]), created_repo=bool(payload["created_repo"]))
        return Ending("succeeded", lambda: self.dependencies.leases.succeed(self.claim, commit))

    def _failed(self, error: Error) -> Ending:
        return Ending("failed", lambda: self.dependencies.leases.fail(self.claim, as_problem(error)))

    def _later(self, error: Error, retry_after: float) -> Ending:
        leases, problem = self.dependencies.leases, as_problem(error)
        word = "postponed" if self.claim.attempt < self.claim.max_attempts else "failed"
        return Ending(word, lambda: leases.postpone(self.claim, problem, retry_after=retry_after))

    def _crashed(self) -> Ending:
        leases, problem = self.dependencies.leases, crashed(self.claim.attempt)
        word = "crashed" if self.claim.attempt < self.claim.max_attempts else "failed"
        return Ending(word, lambda: leases.postpone(self.claim, problem))


def _away(detail: str) -> Error:
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
