"""Messages become writes, in order and at a bounded rate."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from jobs.job.lease import Claim, ProgressReport
from jobs.kit.states import StageStatus
from jobs.observability.tracing import NoTracing
from worker.attempts.progress import ProgressTracker
from worker.attempts.reporter import Reporter
from worker.subprocesses.messages import LayerCompleted, Log, Metric, StageAdvanced, StageFinished, StageStarted
from worker.telemetry.measurements import discard
from worker.telemetry.ports import AttemptTelemetry

CLAIM = Claim(job_id="job_1", fence=3, attempt=1, max_attempts=3, tenant="default", owner="host:1", spec={})


class Book:
    """Leases, heartbeat and clock in one: fakes at the ports, with what was written in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.now = 0.0

    def post(self, write: Callable[[], bool]) -> None:
        assert write()

    def record_stage(self, _: Claim, name: str, status: StageStatus, seconds: float | None = None) -> bool:
        self.lines.append(("stage", name, status, seconds))
        return True

    def record_progress(self, _: Claim, progress: ProgressReport) -> bool:
        self.lines.append(("progress", progress))
        return True

    def record_layers(self, _: Claim, rows: Sequence[Mapping[str, Any]]) -> bool:
        self.lines.append(("layers", [row["name"] for row in rows]))
        return True

    def append_event(self, _: Claim, kind: str, data: Mapping[str, Any]) -> bool:
        self.lines.append((kind, dict(data)))
        return True

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [line for line in self.lines if line[0] == kind]


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def reporter(book: Book) -> Reporter:
    clock = lambda: book.now  # noqa: E731 — a clock that the test turns
    tracker = ProgressTracker({"calibrate": 1.0, "train": 3.0}, clock=clock)
    tracing = NoTracing()
    telemetry = AttemptTelemetry(discard, tracing, tracing.span("job attempt"))
    return Reporter(
        book,  # type: ignore[arg-type]  # fakes at the ports
        CLAIM,
        book,  # type: ignore[arg-type]
        tracker,
        telemetry=telemetry,
        clock=clock,
    )


def test_stages_are_written_as_they_come(book: Book, reporter: Reporter) -> None:
    reporter.handle(StageStarted(name="calibrate", unit="block", total=2))
    reporter.handle(StageFinished(name="calibrate", seconds=1.23456))
    reporter.handle(StageStarted(name="train", unit="layer", total=2))
    reporter.handle(StageFinished(name="train", seconds=0.0, reused=True))
    assert book.lines == [
        ("stage", "calibrate", StageStatus.RUNNING, None),
        ("stage", "calibrate", StageStatus.SUCCEEDED, 1.235),
        ("stage", "train", StageStatus.RUNNING, None),
        ("stage", "train", StageStatus.REUSED, 0.0),
    ]


def test_progress_is_at_most_one_a_second_and_the_latest(book: Book, reporter: Reporter) -> None:
    reporter.handle(StageStarted(name="train", unit="layer", total=100))
    for done in range(1, 101):
        book.now += 0.1
        reporter.handle(StageAdvanced(name="train", done=done, total=100))
        reporter.flush()
    reports = [progress for _, progress in book.of("progress")]
    assert 9 <= len(reports) <= 11
    assert reports[-1].done >= 90
    assert reports[-1].stage == "train"
    assert reports[-1].unit == "layer"
    assert reports[-1].eta_p50 == pytest.approx((100 - reports[-1].done) * 0.1, abs=0.11)
    assert all(before.fraction <= after.fraction for before, after in itertools.pairwise(reports))


def test_nothing_new_nothing_written(book: Book, reporter: Reporter) -> None:
    reporter.handle(StageStarted(name="train", unit="layer", total=2))
    reporter.flush()
    before = len(book.lines)
    book.now += 100
    reporter.flush()
    assert len(book.lines) == before


def test_layers_go_out_together_and_before_their_stage_ends(book: Book, reporter: Reporter) -> None:
    reporter.handle(StageStarted(name="train", unit="layer", total=2))
    reporter.flush()
    for name in ("a", "b"):
        reporter.handle(LayerCompleted(row={"name": name}))
        reporter.flush()
    reporter.handle(StageFinished(name="train", seconds=1.0))
    assert book.lines[-2:] == [("layers", ["a", "b"]), ("stage", "train", StageStatus.SUCCEEDED, 1.0)]


def test_metrics_keep_the_latest_value_and_logs_are_bounded(book: Book, reporter: Reporter) -> None:
    for value in range(10):
        reporter.handle(Metric(name="loss", value=float(value)))
    for number in range(50):
        reporter.handle(Log(message=f"line {number}"))
    reporter.flush(force=True)
    assert book.of("metric") == [("metric", {"name": "loss", "value": 9.0})]
    lines = [data["message"] for _, data in book.of("log")]
    assert len(lines) == 21
    assert lines[0] == "line 0"
    assert "30 more lines" in lines[-1]


def test_the_running_stage_fails_with_the_run(book: Book, reporter: Reporter) -> None:
    reporter.handle(StageStarted(name="train", unit="layer", total=2))
    book.now += 2.5
    reporter.fail_stage()
    reporter.fail_stage()
    assert book.of("stage")[1:] == [("stage", "train", StageStatus.FAILED, 2.5)]


def test_the_runners_memory_is_for_the_operator_and_not_in_the_jobs_log(book: Book, reporter: Reporter) -> None:
    reporter.handle(Metric(name="memory.cpu_peak_bytes", value=1e9))
    reporter.handle(Metric(name="perplexity", value=12.5))
    reporter.flush(force=True)
    assert [data["name"] for _, data in book.of("metric")] == ["perplexity"]
