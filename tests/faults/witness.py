"""The append-only log of accepted jobs, faults, and observed changes.

Every line is on the disk before the next step, so that the log stays when its process dies.
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
        """Write one line and sync it to the disk."""
        entry: Entry = {"what": what, "at": time.time() if at is None else at, **fields}
        with self._lock:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.entries.append(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(file: Path) -> list[Entry]:
    """Return the entries of a log; ignore a last line that was cut short."""
    lines = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


class Window:
    """A connection to the database without the proxies; if the database is away, it is tried again later."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows. Raises: psycopg.Error, if the database is away."""
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
        """Return the job that a worker runs now, as a list; empty if the database does not answer."""
        try:
            return [row["id"] for row in self.rows(_HELD, [f"%:{worker_pid}"])]
        except psycopg.Error:
            return []

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Watcher:
    """A thread that writes every change of every job's status in the database into the journal."""

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
        """Return whether the store has these bytes completely."""
        return open_store(self.settings).size(sha256) is not None


def final_state(url: str, settings: Settings) -> Snapshot:
    """Read all data for the checker from the database and the artifact store. Raises: psycopg.Error."""
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
