"""The append-only log: what was accepted, what was done to the service, what was seen of it. Written once, read twice.

Every line is on the disk before the next thing happens, so that the log outlives the observer too.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from jobs.artifacts import open_store
from jobs.settings import Settings
from tests.faults.checker import ArtifactRow, Entry, EventRow, JobRow, Snapshot

_LOOK_SECONDS = 0.5
# The newest claim: what a pool child that died before had claimed still has its name on it until the lease runs out.
_HELD = (
    "SELECT id FROM jobs WHERE status IN ('running', 'cancelling') AND owner LIKE %s "
    "ORDER BY attempt_started_at DESC LIMIT 1"
)


class Journal:
    """Appends entries from any thread."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("wb")
        self._lock = threading.Lock()
        self.entries: list[Entry] = []

    def write(self, what: str, *, at: float | None = None, **fields: Any) -> None:
        """One line, synced."""
        entry: Entry = {"what": what, "at": time.time() if at is None else at, **fields}
        with self._lock:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.entries.append(entry)

    def close(self) -> None:
        """No more."""
        self._file.close()


def read_journal(file: Path) -> list[Entry]:
    """The entries of a log; a last line that was cut short is not one."""
    lines = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


class Window:
    """A look at the database past every proxy; a database that is away is looked at again later."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows. Raises: psycopg.Error when the database is away."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    self._url, autocommit=True, row_factory=dict_row, connect_timeout=5, options="-c timezone=UTC"
                )
            return self._connection.execute(query.encode(), parameters).fetchall()
        except psycopg.Error:
            self.close()
            raise

    def held_by(self, worker_pid: int | None) -> list[str]:
        """The job that a worker runs now, as a list; none where the database can not say."""
        try:
            return [row["id"] for row in self.rows(_HELD, [f"%:{worker_pid}"])]
        except psycopg.Error:
            return []

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Watcher:
    """A thread that writes every change of every job's status into the journal, as the database shows it."""

    def __init__(self, url: str, journal: Journal) -> None:
        self._window = Window(url)
        self._journal = journal
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self.states: Mapping[str, str] = {}

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._window.close()

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                rows = self._window.rows("SELECT id, status, attempt, fence FROM jobs")
            except psycopg.Error:
                continue
            for row in rows:
                if self.states.get(row["id"]) != row["status"]:
                    fields = {name: row[name] for name in ("status", "attempt", "fence")}
                    self._journal.write("seen", job=row["id"], by="database", **fields)
            self.states = {row["id"]: row["status"] for row in rows}


@dataclass(frozen=True)
class _Blobs:
    settings: Settings

    def has(self, sha256: str) -> bool:
        """Whether the store has these bytes, whole."""
        return open_store(self.settings).size(sha256) is not None


def final_state(url: str, settings: Settings) -> Snapshot:
    """Everything the checker judges, read from the database and the artifact store. Raises: psycopg.Error."""
    window, blobs = Window(url), _Blobs(settings)
    try:
        return Snapshot(
            jobs=tuple(_jobs(window)),
            events=tuple(_events(window)),
            artifacts=tuple(_artifacts(window, blobs)),
        )
    finally:
        window.close()


def _jobs(window: Window) -> Iterator[JobRow]:
    query = (
        "SELECT id, status, attempt, fence, published_fence, metadata ->> 'kind' AS kind, metadata ->> 'key' AS key, "
        "error ->> 'code' AS code, coalesce(summary, '{}') AS summary FROM jobs"
    )
    return (JobRow(**row) for row in window.rows(query))


def _events(window: Window) -> Iterator[EventRow]:
    query = (
        "SELECT job_id AS job, id, CASE WHEN type = 'job.status' THEN data ->> 'status' END AS status, "
        "extract(epoch FROM created_at)::float8 AS at FROM job_events ORDER BY job_id, id"
    )
    return (EventRow(**row) for row in window.rows(query))


def _artifacts(window: Window, blobs: _Blobs) -> Iterator[ArtifactRow]:
    rows = window.rows("SELECT job_id AS job, fence, path, sha256 FROM artifacts")
    return (ArtifactRow(**row, stored=blobs.has(row["sha256"])) for row in rows)
