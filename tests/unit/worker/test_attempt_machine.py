"""The one loop that follows a subprocess, and the endings that it comes to, with real subprocesses."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from jobs.job.lease import Claim
from jobs.publications.lease import PublicationClaim
from worker.attempt_machine.ending import CLAIM_LOST, Ended, Ending
from worker.attempt_machine.follow import Explanation, Follower, as_reported
from worker.attempts.endings import JobEndings
from worker.claims.heartbeat import ClaimState
from worker.outcomes import Outcome
from worker.publishing.endings import PublicationEndings
from worker.subprocesses.child import Command
from worker.subprocesses.messages import Error, Log, Message

JOB = Claim(job_id="job_1", fence=3, attempt=1, max_attempts=3, tenant="default", owner="host:1", spec={})
PUBLICATION = PublicationClaim(
    publication_id="pub_1",
    job_id="job_1",
    fence=1,
    attempt=1,
    max_attempts=2,
    tenant="default",
    repo="me/tiny",
    private=True,
    revision="main",
    credential_id=None,
    manifest_sha256="0" * 64,
    files=(),
)
PROGRAM = """
import os, sys, time
def say(line): os.write(int(sys.argv[sys.argv.index("--events-fd") + 1]), line.encode() + b"\\n")
"""
RESULT = """say('{"type": "result", "payload": {"sha": "abc", "url": "there", "created_repo": false}}')"""
ERROR = """say('{"type": "error", "code": "c", "category": "platform", "detail": "d", "hint": "h"%s}')"""


class FakeHeartbeat:
    """A fake at the port: the claim's state is what the test says, and the last write is made at once."""

    def __init__(self) -> None:
        self.now = ClaimState.HELD

    def state(self) -> ClaimState:
        return self.now

    def silent_seconds(self) -> float:
        return 25.0

    def settle(self, write: Callable[[], Outcome]) -> Outcome | None:
        return write()


class FakeLeases:
    """Fenced writes that land, and are remembered."""

    def __init__(self, *, lands: bool = True) -> None:
        self.lands = lands
        self.writes: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., bool]:
        def write(_claim: object, *arguments: object, **_options: object) -> bool:
            self.writes.append((name, *arguments))
            return self.lands

        return write


def job(leases: FakeLeases) -> JobEndings:
    return JobEndings(leases=leases, claim=JOB, max_run_seconds=60)  # type: ignore[arg-type]  # a fake at the port


def publication(leases: FakeLeases, attempt: int = 1) -> PublicationEndings:
    claim = PublicationClaim(**{**vars(PUBLICATION), "attempt": attempt})
    return PublicationEndings(leases=leases, claim=claim)  # type: ignore[arg-type]  # a fake at the port


class Attempt:
    """A follower with what it needs, and what it passed on."""

    def __init__(self, directory: Path, leases: FakeLeases | None = None) -> None:
        self.directory = directory
        self.heartbeat = FakeHeartbeat()
        self.endings = job(leases or FakeLeases())
        self.yields = False
        self.failures_are_errors = True
        self.messages: list[Message] = []

    def follow(self, program: str, explain: Explanation = as_reported) -> dict[str, Any]:
        follower = Follower(
            heartbeat=self.heartbeat,  # type: ignore[arg-type]  # a fake at the port
            endings=self.endings,
            must_yield=lambda: self.yields,
            stops={ClaimState.CANCEL: self.endings.cancelled, ClaimState.DEADLINE: self.endings.overdue},
            on_message=self.messages.append,
            failures_are_errors=self.failures_are_errors,
        )
        command = Command(
            arguments=[sys.executable, "-c", PROGRAM + program],
            environment={},
            directory=self.directory,
            log=self.directory / "log",
        )
        return follower.follow(command, explain=explain)

    def ending_of(self, program: str, explain: Explanation = as_reported) -> Ending:
        with pytest.raises(Ended) as ended:
            self.follow(program, explain)
        return ended.value.ending


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_a_result_is_returned_and_other_messages_are_passed_on(attempt: Attempt) -> None:
    payload = attempt.follow("""say('{"type": "log", "message": "half way"}')\n""" + RESULT)
    assert payload["sha"] == "abc"
    assert attempt.messages == [Log(message="half way")]


def test_a_result_counts_only_with_exit_code_0(attempt: Attempt) -> None:
    assert attempt.ending_of(f"{RESULT}\nsys.exit(3)").outcome is Outcome.CRASHED


def test_an_error_ends_the_attempt_with_its_problem(attempt: Attempt) -> None:
    ending = attempt.ending_of(ERROR % "" + "\nsys.exit(1)")
    assert ending.outcome is Outcome.FAILED
    assert ending.problem is not None
    assert ending.problem.code == "c"


def test_a_caller_can_explain_a_death(attempt: Attempt) -> None:
    codes: list[int] = []

    def explain(error: Error | None, exit_code: int) -> Error | None:
        assert error is None
        codes.append(exit_code)
        return Error(code="insufficient_memory", category="capacity", detail="d", hint="h")

    assert attempt.ending_of("os.kill(os.getpid(), 9)", explain).outcome is Outcome.FAILED
    assert codes == [-9]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (ClaimState.LOST, Outcome.LOST),
        (ClaimState.CANCEL, Outcome.CANCELLED),
        (ClaimState.DEADLINE, Outcome.FAILED),
    ],
)
def test_the_claim_stops_the_subprocess(attempt: Attempt, state: ClaimState, outcome: Outcome) -> None:
    attempt.heartbeat.now = state
    began = time.monotonic()
    assert attempt.ending_of("time.sleep(60)").outcome is outcome
    assert time.monotonic() - began < 10


def test_a_worker_that_stops_gives_the_claim_back_unless_it_is_lost(attempt: Attempt) -> None:
    attempt.yields = True
    assert attempt.ending_of("time.sleep(60)").outcome is Outcome.DRAINED
    attempt.heartbeat.now = ClaimState.CANCEL
    assert attempt.ending_of("time.sleep(60)").outcome is Outcome.DRAINED
    attempt.heartbeat.now = ClaimState.LOST
    assert attempt.ending_of("time.sleep(60)") is CLAIM_LOST


def test_a_run_that_fails_is_an_error_and_a_refused_upload_a_warning_without_the_log(attempt: Attempt) -> None:
    with structlog.testing.capture_logs() as logs:
        for attempt.failures_are_errors in (True, False):
            attempt.ending_of("print('why', flush=True)\n" + ERROR % "" + "\nsys.exit(1)")
            attempt.ending_of("print('why', flush=True)\nsys.exit(2)")
    run, died, upload, died_too = (entry for entry in logs if entry["event"] != "subprocess_started")
    assert (run["event"], run["log_level"], run["log_tail"][-4:]) == ("subprocess_failed", "error", "why\n")
    assert (upload["event"], upload["log_level"], upload["detail"]) == ("subprocess_failed", "warning", "d")
    assert "log_tail" not in upload
    for each in (died, died_too):
        assert (each["event"], each["log_level"], each["log_tail"][-4:]) == ("subprocess_died", "error", "why\n")


def test_an_ending_is_lost_when_its_write_does_not_land() -> None:
    leases = FakeLeases(lands=False)
    for ending in (job(leases).crashed(), job(leases).cancelled(), publication(leases).drained()):
        assert ending.settle(FakeHeartbeat()) is Outcome.LOST  # type: ignore[arg-type]  # a fake at the port


def test_a_lost_claim_is_not_written_to() -> None:
    assert CLAIM_LOST.settle(None) is Outcome.LOST  # type: ignore[arg-type]  # it is not even asked


def test_out_of_memory_earns_a_job_another_attempt_once() -> None:
    leases = FakeLeases()
    error = Error(code="insufficient_memory", category="capacity", detail="d", hint="h")
    assert job(leases).reported(error).settle(FakeHeartbeat()) is Outcome.STARVED  # type: ignore[arg-type]  # a fake
    assert leases.writes == [("release", "low_memory")]


@pytest.mark.parametrize(
    ("retry_after", "attempt_number", "outcome", "write"),
    [
        (None, 1, Outcome.FAILED, "fail"),
        (0.0, 1, Outcome.POSTPONED, "postpone"),
        (0.0, 2, Outcome.FAILED, "postpone"),  # which fails it, after the last attempt
    ],
)
def test_what_the_hub_refuses(retry_after: float | None, attempt_number: int, outcome: Outcome, write: str) -> None:
    leases = FakeLeases()
    error = Error(code="hub_busy", category="capacity", detail="d", hint="h", retry_after=retry_after)
    ending = publication(leases, attempt_number).reported(error)
    assert ending.settle(FakeHeartbeat()) is outcome  # type: ignore[arg-type]  # a fake at the port
    assert leases.writes[0][0] == write


def test_the_words_of_the_log() -> None:
    words = "succeeded failed cancelled starved postponed crashed drained lost"
    assert [str(outcome) for outcome in Outcome] == words.split()
