"""The worker's health command, asked of a real database."""

import socket
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from jobs.overview import Overview
from tests.integration.worker.conftest import Office
from worker.health import main, trouble


def beat(office: Office, hostname: str) -> None:
    office.keeper.beat_worker(f"{hostname}:1", hostname=hostname, pid=1, device="cpu")


def test_a_worker_of_this_machine_must_have_reported(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    beat(office, "another-machine")
    assert main(office.settings) == 1
    assert "has reported lately" in capsys.readouterr().err
    beat(office, socket.gethostname())
    assert main(office.settings) == 0
    assert capsys.readouterr().err == ""


def test_a_worker_that_takes_nothing_is_not_healthy(office: Office) -> None:
    overview = Overview(office.database, office.settings)
    beat(office, "here")
    soon, later = datetime.now(UTC), datetime.now(UTC) + timedelta(minutes=2)
    assert trouble(overview, "here", later) is None
    office.submit("succeed")
    assert trouble(overview, "here", soon) is None
    assert "1 jobs wait" in str(trouble(overview, "here", later))
    assert office.keeper.claim("here:1") is not None
    assert trouble(overview, "here", later) is None


def test_a_database_that_is_away_is_told(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    away = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    assert main(office.settings.model_copy(update={"database_url": away})) == 1
    assert "The database does not answer" in capsys.readouterr().err
