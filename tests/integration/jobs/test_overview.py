"""What scrapes and probes ask, again and again, must not read every job there ever was."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from jobs.repository import overview
from jobs.repository.database import Database


@pytest.mark.parametrize(
    "ask",
    [
        overview.count_unfinished,
        overview.count_finished,
        overview.busy_owners,
        lambda s: overview.queue_health(s, 30.0),
    ],
)
def test_an_index_serves_every_question_about_jobs(database: Database, ask: Callable[[Session], Any]) -> None:
    asked: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", remember)
    try:
        with database.transaction() as session:
            ask(session)
    finally:
        event.remove(database.engine, "before_cursor_execute", remember)
    about_jobs = [(statement, parameters) for statement, parameters in asked if "FROM jobs" in statement]
    assert about_jobs
    with database.engine.connect() as connection:
        connection.execute(
            text("SET enable_seqscan = off")
        )  # the tables are empty: only a plan that must will read all
        for statement, parameters in about_jobs:
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
            assert "Seq Scan on jobs" not in plan, plan
