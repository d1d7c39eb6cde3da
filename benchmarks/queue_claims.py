"""Measure the time of a claim in a very long queue, compared with an empty transaction on the same connection.

python -m benchmarks.queue_claims --jobs 100000 --tenants 1000 --claims 200 --json out.json

It uses a private PostgreSQL. Half of the jobs belong to one tenant. Claims are never ended, so each claim finds more
running jobs than the one before. ``places of 100 jobs`` is the query of one page of the list of jobs, and ``sweep`` is
what each worker does every 5 s. ``server`` is the time that PostgreSQL reports for the choice of a job. Times are
milliseconds of the wall clock.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from benchmarks.queue_figures import spread
from jobs.embedded import embedded_services
from jobs.job.lease import JobLeases
from jobs.repository import turns
from jobs.repository.database import Database
from jobs.repository.models import Job
from jobs.settings import Settings

_NO_BROKER: Final = "redis://127.0.0.1:1"  # never connected to: no nudge is sent
_FILL: Final = """
INSERT INTO jobs (id, tenant, status, created_at, max_queue_seconds, max_run_seconds, max_attempts,
                  model_source, model_id, model_revision, policy, policy_hash, options, spec)
SELECT 'job_' || lpad(to_hex(i), 24, '0'), 'tenant-' || (CASE WHEN i % 2 = 0 THEN 0 ELSE (i / 2) % :tenants END),
       'queued', clock_timestamp() - interval '1 hour' + i * interval '1 ms', 604800, 604800, 3,
       'local', 'tiny', 'main', jsonb_build_object('filler', repeat('x', 800)), '', '{}', '{}'
FROM generate_series(1, :jobs) AS i
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="quantry-claims-", ignore_cleanup_errors=True) as directory:
        settings = Settings(data_dir=Path(directory), database_url=None, broker_url=_NO_BROKER)
        with embedded_services(settings) as urls:
            found = measure(Database(urls.database_url), settings, options.jobs, options.tenants, options.claims)
    table = Table("ms", "median", "p95", "most", title=f"{options.jobs} queued jobs of {options.tenants} tenants")
    for name, row in found["milliseconds"].items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("median", "p95", "max")))
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(database: Database, settings: Settings, jobs: int, tenants: int, claims: int) -> dict[str, Any]:
    """Fill the queue and measure the time of each operation on it. The database is closed at the end."""
    _fill(database, jobs, tenants)
    leases = JobLeases(database, settings)
    with database.transaction() as session:
        page = list(session.scalars(select(Job.id).order_by(Job.created_at.desc(), Job.id.desc()).limit(100)))

    def within(question: Callable[[Session], object]) -> Callable[[], None]:
        def ask() -> None:
            with database.transaction() as session:
                question(session)

        return ask

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "empty transaction": (claims, within(lambda session: session.execute(text("SELECT 1")))),
        "claim": (claims, lambda: leases.claim("benchmark")),
        "place of one job": (20, within(lambda session: turns.queue_positions(session, page[:1]))),
        "places of 100 jobs": (20, within(lambda session: turns.queue_positions(session, page))),
        "sweep": (10, leases.sweep),
    }
    found = {name: spread([_timed(way) for _ in range(times)]) for name, (times, way) in ways.items()}
    found["choice of a job, server"] = spread([_server(database) for _ in range(20)])
    database.close()
    return {"jobs": jobs, "tenants": tenants, "cores": os.cpu_count(), "milliseconds": found}


def _fill(database: Database, jobs: int, tenants: int) -> None:
    with database.transaction() as session:
        session.execute(text(_FILL), {"jobs": jobs, "tenants": tenants})
        turns.tidy(session)
    # Without statistics PostgreSQL would plan for an empty table. VACUUM can not run in a transaction.
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _timed(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return 1e3 * (time.perf_counter() - began)


def _server(database: Database) -> float:
    """The time of planning and execution that EXPLAIN ANALYZE reports."""
    # EXPLAIN takes a text, so the statement is compiled with its values in it.
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own is untyped
    statement = select(turns.next_job()).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    with database.transaction() as session:
        (plan,) = session.scalars(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")).one()
        session.rollback()  # the statement locks the job that it chooses
    return float(plan["Planning Time"]) + float(plan["Execution Time"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--claims", type=int, default=200)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
