"""The judgment of a run, as a pure function of the journal and the final database.

This module knows the promises of the service, but not its implementation.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from tests.faults.catalog import KINDS
from tests.faults.runner import RESULT

STUCK_SECONDS: Final = 60.0
TERMINAL: Final = frozenset({"succeeded", "failed", "cancelled"})
EXCUSED: Final = frozenset({429, 502, 503})
"""Answers that a client may get while something is down; any other 5xx is a mistake of ours."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class JobRow:
    """A job at the end. ``kind`` and ``key`` come from its metadata."""

    id: str
    status: str
    attempt: int
    fence: int
    published_fence: int | None
    kind: str | None
    key: str | None
    code: str | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class EventRow:
    """One entry of a job's event log. ``status`` is only of ``job.status`` events; ``at`` is the database's clock."""

    job: str
    id: int
    status: str | None
    at: float


@dataclass(frozen=True)
class ArtifactRow:
    """One published file; ``stored``: whether the store has its bytes."""

    job: str
    fence: int
    path: str
    sha256: str
    stored: bool


@dataclass(frozen=True)
class Snapshot:
    """The database after all jobs are over."""

    jobs: tuple[JobRow, ...]
    events: tuple[EventRow, ...]
    artifacts: tuple[ArtifactRow, ...]


@dataclass(frozen=True)
class Recovery:
    """How long one fault had effects: until each job that it hit ran again or was over, and one was accepted and begun.

    Counted from the fault, or from its end if it lasted for a while. ``alone``: no other fault happened, or still had
    effects, in that time.
    """

    fault: str
    seconds: float
    alone: bool


@dataclass(frozen=True)
class Verdict:
    """The result of a run. The four lists name the broken promises, and are empty if all were kept."""

    accepted: int
    ended: Mapping[str, int]
    faults: Mapping[str, int]
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    stuck: tuple[str, ...]
    wrong: tuple[str, ...]
    recoveries: tuple[Recovery, ...]

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.stuck or self.wrong)


def check(entries: Sequence[Entry], final: Snapshot) -> Verdict:
    """Return the verdict on one run."""
    accepted = {entry["job"]: entry for entry in entries if entry["what"] == "accepted"}
    statuses = _status_events(final)
    jobs = {job.id: job for job in final.jobs}
    faults = [entry for entry in entries if entry["what"] == "fault"]
    return Verdict(
        accepted=len(accepted),
        ended=dict(Counter(job.status for job in final.jobs)),
        faults=dict(Counter(fault["name"] for fault in faults)),
        lost=tuple(_lost(accepted, jobs)),
        doubled=tuple(_doubled(final, statuses)),
        stuck=(*_silent(final), *_overtaken(statuses), *_standing_still(accepted, statuses)),
        wrong=(*_wrong_ends(final), *_wrong_answers(entries, jobs)),
        recoveries=tuple(_recoveries(faults, entries, statuses)),
    )


def _status_events(final: Snapshot) -> dict[str, list[EventRow]]:
    statuses: dict[str, list[EventRow]] = defaultdict(list)
    for event in sorted(final.events, key=lambda event: (event.job, event.id)):
        if event.status is not None:
            statuses[event.job].append(event)
    return statuses


def _lost(accepted: Iterable[str], jobs: Mapping[str, JobRow]) -> Iterator[str]:
    for job_id in accepted:
        if job_id not in jobs:
            yield f"{job_id} was accepted and is not in the database"
        elif jobs[job_id].status not in TERMINAL:
            yield f"{job_id} was accepted and is still {jobs[job_id].status}"


def _doubled(final: Snapshot, statuses: Mapping[str, Sequence[EventRow]]) -> Iterator[str]:
    fences: dict[str, set[int]] = defaultdict(set)
    for artifact in final.artifacts:
        fences[artifact.job].add(artifact.fence)
    for job_id, found in fences.items():
        if len(found) > 1:
            yield f"{job_id} has files of the fences {sorted(found)}"
    for job_id, events in statuses.items():
        ends = [event.status for event in events if event.status in TERMINAL]
        if len(ends) > 1:
            yield f"{job_id} ended more than once: {ends}"
    keys = Counter(job.key for job in final.jobs if job.key is not None)
    for key, count in keys.items():
        if count > 1:
            yield f"the request {key} made {count} jobs"


def _wrong_ends(final: Snapshot) -> Iterator[str]:
    files: dict[str, dict[str, ArtifactRow]] = defaultdict(dict)
    for artifact in final.artifacts:
        files[artifact.job][artifact.path] = artifact
    for job in final.jobs:
        kind = KINDS.get(job.kind or "")
        if kind is None or job.status not in TERMINAL:
            continue
        if (job.status, job.code) != (kind.status, kind.code):
            yield f"{job.id} ({kind.name}) is {job.status} with {job.code}, not {kind.status} with {kind.code}"
        if job.status == "succeeded":
            yield from _wrong_files(job, kind.sha256(job.id), files[job.id])
        elif files[job.id]:
            yield f"{job.id} is {job.status} and has published files"


def _wrong_files(job: JobRow, expected: str | None, files: Mapping[str, ArtifactRow]) -> Iterator[str]:
    if not files:
        yield f"{job.id} succeeded and has no files"
    for path, artifact in files.items():
        if artifact.fence != job.published_fence:
            yield f"{job.id} was published with fence {job.published_fence}, {path} with {artifact.fence}"
        if not artifact.stored:
            yield f"{job.id} lists {path}, whose bytes are not in the store"
    if expected is not None and RESULT in files and files[RESULT].sha256 != expected:
        yield f"{job.id} published another result than its steps give"


def _wrong_answers(entries: Iterable[Entry], jobs: Mapping[str, JobRow]) -> Iterator[str]:
    for entry in entries:
        if entry["what"] == "refused" and entry["status"] not in EXCUSED:
            yield f"a request was answered with {entry['status']}: {entry.get('detail', '')}"
        if entry["what"] == "seen" and entry["status"] in TERMINAL and entry["job"] in jobs:
            status = jobs[entry["job"]].status
            if status != entry["status"]:
                yield f"{entry['job']} was shown as {entry['status']} by the {entry['by']} and is {status}"


def _silent(final: Snapshot) -> Iterator[str]:
    """Return jobs that were held and reported nothing for too long."""
    patience = {job.id: KINDS[job.kind].silent_seconds for job in final.jobs if job.kind in KINDS}
    state: dict[str, str] = {}
    for before, after in pairwise(sorted(final.events, key=lambda event: (event.job, event.id))):
        if before.status is not None:
            state[before.job] = before.status
        gap, most = after.at - before.at, patience.get(before.job, STUCK_SECONDS)
        if before.job == after.job and state.get(before.job) in {"running", "cancelling"} and gap > most:
            yield f"{before.job} was {state[before.job]} for {gap:.0f} s without an event"


def _overtaken(statuses: Mapping[str, Sequence[EventRow]]) -> Iterator[str]:
    """Return jobs that waited while others, created after these were queued, were begun long before them."""
    created = {job_id: events[0].at for job_id, events in statuses.items()}
    waits = [
        (before.at, after.at, job_id)
        for job_id, events in statuses.items()
        for before, after in pairwise(events)
        if before.status == "queued" and after.status == "running"
    ]
    for queued, begun, job_id in waits:
        early = begun - STUCK_SECONDS
        if queued < early and any(created[other] > queued and at < early for _, at, other in waits):
            yield f"{job_id} waited {begun - queued:.0f} s while jobs created after it were begun"


def _standing_still(accepted: Mapping[str, Entry], statuses: Mapping[str, Sequence[EventRow]]) -> Iterator[str]:
    """Return times in which jobs were open and none of them moved."""
    moves = [(entry["at"], job_id, "accepted") for job_id, entry in accepted.items()]
    moves += [(event.at, job_id, str(event.status)) for job_id, events in statuses.items() for event in events]
    waiting: set[str] = set()
    over: set[str] = set()  # perhaps before the acceptance reached the client
    for (at, job_id, status), (following, _, _) in pairwise(sorted(moves)):
        if status in TERMINAL:
            over.add(job_id)
            waiting.discard(job_id)
        elif job_id not in over:
            waiting.add(job_id)
        if waiting and following - at > STUCK_SECONDS:
            yield f"nothing moved for {following - at:.0f} s with {len(waiting)} jobs open"


def _recoveries(
    faults: Sequence[Entry], entries: Iterable[Entry], statuses: Mapping[str, Sequence[EventRow]]
) -> Iterator[Recovery]:
    healed: dict[int, float] = {entry["fault"]: entry["at"] for entry in entries if entry["what"] == "healed"}
    accepted = sorted(entry["at"] for entry in entries if entry["what"] == "accepted")
    begun = sorted(event.at for events in statuses.values() for event in events if event.status == "running")
    spans: list[tuple[Entry, float, float]] = []
    for fault in faults:
        over = healed.get(fault["id"], float(fault["at"]))
        felt = [_next(_resumptions(statuses.get(job, ())), after=fault["at"]) for job in fault["jobs"]]
        felt += [_next(times, after=over) for times in (accepted, begun)]
        spans.append((fault, over, max([over, *(end for end in felt if end is not None)])))
    for fault, over, end in spans:
        others = ((other["at"], until) for other, _, until in spans if other is not fault)
        alone = all(until < fault["at"] or at > end for at, until in others)
        yield Recovery(fault["name"], end - over, alone)


def _resumptions(events: Iterable[EventRow]) -> list[float]:
    return [event.at for event in events if event.status == "running" or event.status in TERMINAL]


def _next(ordered: Sequence[float], *, after: float) -> float | None:
    index = bisect_right(ordered, after)
    return ordered[index] if index < len(ordered) else None


def quantile(values: Iterable[float], fraction: float) -> float | None:
    """Return the smallest value that at least ``fraction`` of the values do not exceed; None if there are none."""
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)] if ordered else None
