"""One attempt of one job: resolve the model, watch the runner, collect what it made; then write how it ended.

Every step that can not go on raises; :meth:`Attempt.run` turns that into an :class:`Ending`, and :meth:`Attempt.settle`
writes it with the claim's fence. An attempt that lost its claim writes nothing more.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from jobs.artifacts import ArtifactStore, DamagedBlob, ManifestEntry, total_bytes
from jobs.credentials import CredentialService
from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.job.stages import stages_from
from jobs.kit.errors import CredentialNotFound, CredentialUnreadable, StoreRefused, Unavailable
from jobs.settings import Settings
from quant_engine.errors import EngineError
from quant_engine.policy import JobRequest
from worker.attempts.hub_model import RevisionPin, credential_problem, download_file, hub_token, models_cache
from worker.attempts.local_model import require_inside, resolve_local
from worker.attempts.outcome import Ending, FinalWrite
from worker.attempts.reporter import Reporter
from worker.attempts.store_output import store_output, store_refused
from worker.attempts.watch import Ended, Watch
from worker.attempts.workspace import Workspace
from worker.claims.heartbeat import ClaimHeartbeat
from worker.devices import Device
from worker.outcomes import Outcome
from worker.subprocesses.child import Command
from worker.subprocesses.environment import DOWNLOAD, RUNNER, download_environment, runner_environment
from worker.subprocesses.messages import Error, RunFile, StageAdvanced, StageFinished, StageStarted
from worker.subprocesses.oom_kills import oom_kills
from worker.subprocesses.problems import DISK_FULL, as_error, as_problem, internal_error

_RESOLVE: Final = "resolve"
_PUBLISH: Final = "publish"
_DATABASE_SECONDS: Final = 1.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Programs:
    """The commands that compute and download; a test puts its own runner here."""

    runner: Sequence[str] = RUNNER
    download: Sequence[str] = DOWNLOAD


@dataclass(frozen=True, kw_only=True)
class AttemptDependencies:
    """What every attempt of this process works with. ``must_yield``: the worker has to let its job go now."""

    leases: JobLeases
    store: ArtifactStore
    credentials: CredentialService
    settings: Settings
    device: Device
    programs: Programs = field(default_factory=Programs)
    must_yield: Callable[[], bool] = lambda: False
    oom_kills: Callable[[], int | None] = oom_kills


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Made for one claim, used once."""

    dependencies: AttemptDependencies
    claim: Claim
    request: JobRequest
    heartbeat: ClaimHeartbeat
    reporter: Reporter
    workspace: Workspace

    def run(self) -> Ending:
        """Do the work; the ending is not written yet."""
        self.heartbeat.allow(self.claim.run_seconds_left)
        try:
            self._watch.require_right()  # earlier attempts may have used the job's time up
            self._begin_retry()
            self._compute(self._resolve())
            return Ending(Outcome.SUCCEEDED, manifest=self._collect())
        except Ended as ended:
            return ended.ending
        except EngineError as error:
            return _failed(as_error(error))
        except OSError as error:
            logger.exception("attempt_broke")
            return _failed(as_error(error))

    def settle(self, ending: Ending) -> Outcome:
        """Write the ending, and clean up what nobody will need."""
        if ending.outcome is not Outcome.SUCCEEDED:
            self.reporter.fail_stage()
        self.reporter.flush(force=True)
        final = FinalWrite(self.dependencies.leases, self.claim, ending)
        outcome = self.heartbeat.settle(final) or Outcome.LOST
        # Published bytes are in the store; what was put there for nothing, garbage collection finds.
        self.workspace.discard_output()
        # Any other job may be tried again, and a sweep removes what nobody came back for; a full disk can not wait.
        if outcome is Outcome.SUCCEEDED or (ending.problem is not None and ending.problem.code == DISK_FULL):
            self.workspace.discard()
        return outcome

    def _begin_retry(self) -> None:
        """Remove the stages that a retry wants computed anew. Until that is noted, every attempt does it."""
        if self.claim.retry_from is not None:
            self.workspace.drop_stages(stages_from(self.claim.retry_from, self.request.policy))
            self.heartbeat.post(lambda: self.dependencies.leases.record_retry_begun(self.claim))

    def _resolve(self) -> Path:
        """The model's directory on this machine."""
        began = time.monotonic()
        if self.request.model.source == "local":
            self.reporter.handle(StageStarted(name=_RESOLVE, unit="model", total=1))
            directory = resolve_local(self.dependencies.settings.models_dir, self.request.model.id)
        else:
            self.reporter.handle(StageStarted(name=_RESOLVE, unit="byte", total=0))
            directory = self._download()
        self.reporter.handle(StageFinished(name=_RESOLVE, seconds=time.monotonic() - began))
        return directory

    def _download(self) -> Path:
        settings = self.dependencies.settings
        request = download_file(self.request.model, settings, self._pin.commit())
        file = self.workspace.root / "download.json"
        file.write_text(request.model_dump_json())
        environment = download_environment(self.workspace.scratch)
        command = self._command(self.dependencies.programs.download, file, environment)
        payload = self._watch.follow(replace(command, token=self._hub_token()))
        self._keep_revision(str(payload["revision"]))
        return require_inside(Path(str(payload["path"])), models_cache(settings))

    def _hub_token(self) -> str | None:
        while True:
            try:
                return hub_token(self.claim, self.dependencies.credentials)
            except Unavailable:
                self._watch.wait(_DATABASE_SECONDS)
            except (CredentialNotFound, CredentialUnreadable) as error:
                raise Ended(Ending(Outcome.FAILED, credential_problem(error))) from error

    @property
    def _watch(self) -> Watch:
        return Watch(
            heartbeat=self.heartbeat,
            reporter=self.reporter,
            must_yield=self.dependencies.must_yield,
            oom_kills=self.dependencies.oom_kills,
            keep_revision=self._keep_revision,
            max_run_seconds=self.request.limits.max_run_seconds,
        )

    @property
    def _pin(self) -> RevisionPin:
        return RevisionPin(self.workspace.revision, self.claim.resolved_revision)

    def _keep_revision(self, commit: str) -> None:
        if self._pin.keep(commit):
            self.heartbeat.post(lambda: self.dependencies.leases.record_resolved_revision(self.claim, commit))

    def _compute(self, model_dir: Path) -> None:
        settings, device = self.dependencies.settings, self.dependencies.device
        run_file = RunFile(
            job_id=self.claim.job_id,
            parent_pid=os.getpid(),
            model_id=self.request.model.id,
            revision=self._pin.commit() if self.request.model.source == "hub" else None,
            model_dir=model_dir,
            policy=self.request.policy,
            calibration=self.request.calibration,
            evaluation=self.request.evaluation,
            output=self.request.output,
            datasets_dir=settings.datasets_dir,
            default_dataset=settings.default_dataset,
            device=device.name,
            threads=device.threads,
            low_memory=self.claim.low_memory,
            work_dir=self.workspace.stages,
            output_dir=self.workspace.output,
        )
        file = self.workspace.root / "run.json"
        file.write_text(run_file.model_dump_json())
        environment = runner_environment(self.workspace.scratch, threads=device.threads, gpu=device.gpu)
        self._watch.follow(self._command(self.dependencies.programs.runner, file, environment))

    def _command(self, program: Sequence[str], file: Path, environment: dict[str, str]) -> Command:
        return Command(
            arguments=[*program, str(file)],
            environment=environment,
            directory=self.workspace.scratch,
            log=self.workspace.log,
        )

    def _collect(self) -> Manifest:
        """Read the output and put it into the store. What is left then of ``publish`` is one transaction."""
        began = time.monotonic()
        output = self.workspace.output
        try:
            manifest = Manifest(
                summary=json.loads((output / "summary.json").read_bytes()),
                report=json.loads((output / "report.json").read_bytes()),
                layers=json.loads((output / "layers.json").read_bytes()),
                artifacts=self._store(output),
            )
        except (FileNotFoundError, ValueError, DamagedBlob) as error:
            logger.exception("output_unusable")
            raise Ended(_failed(internal_error("The run ended without a usable result."))) from error
        except StoreRefused as error:
            logger.exception("store_refused")
            raise Ended(Ending(Outcome.FAILED, store_refused())) from error
        self.reporter.handle(StageFinished(name=_PUBLISH, seconds=time.monotonic() - began))
        return manifest

    def _store(self, output: Path) -> tuple[ManifestEntry, ...]:
        total = total_bytes(output)
        self.reporter.handle(StageStarted(name=_PUBLISH, unit="byte", total=total))
        self.reporter.flush(force=True)

        def told(done: int) -> None:
            self.reporter.handle(StageAdvanced(name=_PUBLISH, done=min(done, total), total=total))
            self.reporter.flush()
            self._watch.require_right()

        return store_output(self.dependencies.store, output, told=told, wait=self._watch.wait)


def _failed(error: Error) -> Ending:
    return Ending(Outcome.FAILED, as_problem(error))
