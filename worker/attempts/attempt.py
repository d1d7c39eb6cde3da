"""One attempt of one job: resolve the model, run the runner, store its output, and record the ending.

A step that can not continue raises an exception. :meth:`Attempt.run` turns it into an :class:`Ending`, and
:meth:`Attempt.settle` stores that with the claim's fence. An attempt that lost its claim writes nothing more.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import BaseModel

from jobs.artifacts import ArtifactStore, DamagedBlob, ManifestEntry, total_bytes
from jobs.credentials import CredentialService
from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.kit.errors import CredentialNotFound, CredentialUnreadable, StoreRefused, Unavailable
from jobs.settings import Settings
from quant_engine.errors import EngineError
from quant_engine.interface.problems import refuse
from quant_engine.interface.spec import RunSpec
from quant_engine.interface.stages import PUBLISH, RESOLVE, stages_from
from quant_engine.model_files import FileRules, ModelFiles
from quant_engine.policy import JobRequest
from quant_engine.preflight import JobInputs, check_job
from worker.attempt_machine.ending import Ended, Ending
from worker.attempt_machine.follow import Follower
from worker.attempts.endings import JobEndings
from worker.attempts.hub_datasets import Texts, fetch_texts
from worker.attempts.hub_model import RevisionPin, credential_problem, download_file, hub_token, models_cache
from worker.attempts.local_model import require_inside, resolve_local
from worker.attempts.reporter import Reporter
from worker.attempts.store_output import store_output, store_refused
from worker.attempts.workspace import Workspace
from worker.claims.heartbeat import ClaimHeartbeat, ClaimState
from worker.devices import Device
from worker.outcomes import Outcome
from worker.subprocesses.child import Command
from worker.subprocesses.environment import CHECK, DOWNLOAD, RUNNER, download_environment, runner_environment
from worker.subprocesses.messages import Error, Message, Resolved, RunFile, StageAdvanced, StageFinished, StageStarted
from worker.subprocesses.oom_kills import oom_kills
from worker.subprocesses.problems import DISK_FULL, as_error, insufficient_memory, internal_error

_DATABASE_SECONDS: Final = 1.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Programs:
    """The commands of the subprocesses that compute, check and download; tests replace them."""

    runner: Sequence[str] = RUNNER
    check: Sequence[str] = CHECK
    download: Sequence[str] = DOWNLOAD


@dataclass(frozen=True, kw_only=True)
class AttemptDependencies:
    """The services, settings and programs that every attempt of this process uses.

    ``must_yield``: whether the worker has to hand back its job now. ``oom_kills``: how many processes the kernel has
    killed for memory; None where the kernel does not count them.
    """

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
    """One attempt, made for one claim and used once."""

    dependencies: AttemptDependencies
    claim: Claim
    request: JobRequest
    heartbeat: ClaimHeartbeat
    reporter: Reporter
    workspace: Workspace

    def run(self) -> Ending:
        """Do the work and return the ending, which is not stored yet."""
        self.heartbeat.allow(self.claim.run_seconds_left)
        try:
            self._follower.require_claim()  # earlier attempts may have used up the job's time
            self._begin_retry()
            self._compute(*self._resolve())
            return self._endings.succeeded(self._collect())
        except Ended as ended:
            return ended.ending
        except EngineError as error:  # from the checks of the model's directory, in this process
            return self._endings.reported(as_error(error))
        except OSError as error:
            logger.exception("attempt_failed")
            return self._endings.reported(as_error(error))

    def settle(self, ending: Ending) -> Outcome:
        """Store the ending, and remove the files that are not needed any more."""
        # Posted before the ending: once that is stored, the fence refuses all other writes.
        if ending.outcome is not Outcome.SUCCEEDED:
            self.reporter.fail_stage()
        self.reporter.flush(force=True)
        outcome = ending.settle(self.heartbeat)
        # Published files are in the store. Garbage collection removes files that were stored but not published.
        self.workspace.discard_output()
        # Other jobs may be retried from their stages, and a sweep removes those later. A full disk needs the space now.
        if outcome is Outcome.SUCCEEDED or (ending.problem is not None and ending.problem.code == DISK_FULL):
            self.workspace.discard()
        return outcome

    def _begin_retry(self) -> None:
        """Remove the stages that a retry computes anew."""
        if self.claim.retry_from is not None:
            self.workspace.drop_stages(stages_from(self.claim.retry_from, self.request.policy))
            # Until this is recorded, every attempt removes them again: removing twice is safe, skipping it is not.
            self.heartbeat.post(lambda: self.dependencies.leases.record_retry_begun(self.claim))

    def _resolve(self) -> tuple[Path, Texts]:
        """Return the model's directory on this machine, and the texts; download what is on the Hub."""
        began = time.monotonic()
        if self.request.model.source == "local":
            self.reporter.handle(StageStarted(name=RESOLVE.name, unit="model", total=1))
            directory = resolve_local(self.dependencies.settings, self.request.model.id)
            self._check(directory)
            texts = self._fetch_texts()
        else:
            self.reporter.handle(StageStarted(name=RESOLVE.name, unit="byte", total=0))
            directory = self._fetch(weights=False)
            self._check(directory)
            # Before the weights: a data set that is not there is told before gigabytes have arrived.
            texts = self._fetch_texts()
            # The preview has no weights; a snapshot that was here already has them.
            if directory == self.workspace.preview:
                self._start("check.json", self.dependencies.programs.check, directory, texts)
                directory = self._fetch(weights=True)
        self.reporter.handle(StageFinished(name=RESOLVE.name, seconds=time.monotonic() - began))
        return directory, texts

    def _fetch_texts(self) -> Texts:
        return fetch_texts(self.request, self.dependencies.settings, self.workspace, self._download)

    def _check(self, directory: Path) -> None:
        """End the attempt if what the model's files say without their weights rules the job out."""
        request = self.request
        # A downloaded model has no links of the operator's.
        rules = FileRules(self.dependencies.settings.link_dirs if request.model.source == "local" else ())
        inputs = JobInputs(
            policy=request.policy,
            calibration=request.calibration,
            evaluation=request.evaluation,
            datasets_dir=self.dependencies.settings.datasets_dir,
        )
        refuse(check_job(ModelFiles(directory, rules), inputs))

    def _fetch(self, *, weights: bool) -> Path:
        """Download the model, or without ``weights`` a preview of it; return the directory of its files."""
        settings, preview = self.dependencies.settings, self.workspace.preview
        request = download_file(self.request.model, settings, self._pin.commit(), preview, weights=weights)
        payload = self._download("download.json", request)
        self._keep_revision(str(payload["revision"]))
        # The path comes from a subprocess, so it is checked and not trusted.
        directory = Path(str(payload["path"]))
        return preview if directory == preview else require_inside(directory, models_cache(settings))

    def _download(self, name: str, request: BaseModel) -> dict[str, Any]:
        """Run the download that ``request`` describes and return the payload of its result. Raises: Ended."""
        file = self.workspace.root / name
        file.write_text(request.model_dump_json())
        environment = download_environment(self.workspace.scratch)
        command = self._command(self.dependencies.programs.download, file, environment)
        return self._follow(replace(command, token=self._hub_token()))

    def _hub_token(self) -> str | None:
        while True:
            try:
                return hub_token(self.claim, self.dependencies.credentials)
            except Unavailable:
                # The claim may still be valid, so the attempt waits for the database instead of failing.
                self._follower.wait(_DATABASE_SECONDS)
            except (CredentialNotFound, CredentialUnreadable) as error:
                raise Ended(self._endings.failed(credential_problem(error))) from error

    @property
    def _endings(self) -> JobEndings:
        seconds = self.request.limits.max_run_seconds
        return JobEndings(leases=self.dependencies.leases, claim=self.claim, max_run_seconds=seconds)

    @property
    def _follower(self) -> Follower:
        endings = self._endings
        return Follower(
            heartbeat=self.heartbeat,
            endings=endings,
            must_yield=self.dependencies.must_yield,
            stops={ClaimState.CANCEL: endings.cancelled, ClaimState.DEADLINE: endings.overdue},
            on_message=self._receive,
            on_poll=self.reporter.flush,
        )

    def _receive(self, message: Message) -> None:
        if isinstance(message, Resolved):
            self._keep_revision(message.revision)
        else:
            self.reporter.handle(message)

    def _follow(self, command: Command) -> dict[str, Any]:
        """Run a subprocess to its end and return the payload of its result. Raises: Ended."""
        kills_before = self.dependencies.oom_kills()

        def explain(error: Error | None, exit_code: int) -> Error | None:
            # The kernel may have killed another process of the run; the runner then reports an unexplained failure.
            unexplained = exit_code == -signal.SIGKILL if error is None else error.category == "platform"
            if unexplained and _has_risen(kills_before, self.dependencies.oom_kills()):
                return insufficient_memory("The machine ran out of memory, and the kernel ended the run.")
            return error

        return self._follower.follow(command, explain=explain)

    @property
    def _pin(self) -> RevisionPin:
        return RevisionPin(self.workspace.revision, self.claim.resolved_revision)

    def _keep_revision(self, commit: str) -> None:
        if self._pin.keep(commit):
            self.heartbeat.post(lambda: self.dependencies.leases.record_resolved_revision(self.claim, commit))

    def _compute(self, model_dir: Path, texts: Texts) -> None:
        self._start("run.json", self.dependencies.programs.runner, model_dir, texts)

    def _start(self, name: str, program: Sequence[str], model_dir: Path, texts: Texts) -> None:
        """Follow a program of the engine, with its request in the file ``name``, to its end. Raises: Ended."""
        device = self.dependencies.device
        run_file = RunFile(
            job_id=self.claim.job_id,
            parent_pid=os.getpid(),
            threads=device.threads,
            spec=self._spec(model_dir, texts),
            work_dir=self.workspace.stages,
            output_dir=self.workspace.output,
        )
        file = self.workspace.root / name
        file.write_text(run_file.model_dump_json())
        environment = runner_environment(self.workspace.scratch, threads=device.threads, gpu=device.gpu)
        self._follow(self._command(program, file, environment))

    def _spec(self, model_dir: Path, texts: Texts) -> RunSpec:
        """Return the engine's request for the model in ``model_dir``."""
        request, settings = self.request, self.dependencies.settings
        return RunSpec(
            model_dir=model_dir,
            policy=request.policy,
            calibration=texts.calibration,
            evaluation=texts.evaluation,
            output=request.output,
            datasets_dir=settings.datasets_dir,
            fetched=texts.fetched,
            device=self.dependencies.device.name,
            model_id=request.model.id,
            revision=self._pin.commit() if request.model.source == "hub" else None,
            low_memory=self.claim.low_memory,
            # A download holds no links.
            link_dirs=settings.link_dirs if request.model.source == "local" else (),
        )

    def _command(self, program: Sequence[str], file: Path, environment: dict[str, str]) -> Command:
        return Command(
            arguments=[*program, str(file)],
            environment=environment,
            directory=self.workspace.scratch,
            log=self.workspace.log,
        )

    def _collect(self) -> Manifest:
        """Read the output and put it into the store. After that, publishing needs only one transaction."""
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
            logger.exception("output_rejected")
            unusable = internal_error("The run ended without a usable result.")
            raise Ended(self._endings.reported(unusable)) from error
        except StoreRefused as error:
            logger.exception("store_refused")
            raise Ended(self._endings.failed(store_refused())) from error
        self.reporter.handle(StageFinished(name=PUBLISH.name, seconds=time.monotonic() - began))
        return manifest

    def _store(self, output: Path) -> tuple[ManifestEntry, ...]:
        total = total_bytes(output)
        self.reporter.handle(StageStarted(name=PUBLISH.name, unit="byte", total=total))
        self.reporter.flush(force=True)

        def on_progress(done: int) -> None:
            self.reporter.handle(StageAdvanced(name=PUBLISH.name, done=min(done, total), total=total))
            self.reporter.flush()
            self._follower.require_claim()

        return store_output(self.dependencies.store, output, on_progress=on_progress, wait=self._follower.wait)


def _has_risen(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before
