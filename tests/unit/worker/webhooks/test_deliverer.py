"""What an answer means, and that a wrong setting of webhooks stops nothing but them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from jobs.settings import Settings
from jobs.webhooks.lease import Refusal
from worker.webhooks.deliverer import delivering, refusal_of
from worker.webhooks.transport import Answer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_DATABASE = "postgresql://127.0.0.1:1/none"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_a_success(status: int) -> None:
    assert refusal_of(Answer(status, "60"), NOW) is None


@pytest.mark.parametrize("status", [101, 301, 304, 400, 401, 404, 410, 429, 500, 503, 599])
def test_nothing_else_is(status: int) -> None:
    refusal = refusal_of(Answer(status, None), NOW)
    assert isinstance(refusal, Refusal)
    assert (refusal.http_status, refusal.gone, refusal.retry_after) == (status, status == 410, 0.0)
    assert str(status) in refusal.error
    assert ("redirects" in refusal.error) == (300 <= status < 400)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("60", 60.0),
        (" 60 ", 60.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 00:01:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 0.0),
        ("-60", 0.0),
        ("6e1", 0.0),
        ("٦٠", 0.0),
        ("", 0.0),
        ("9" * 400, 999_999_999.0),
    ],
)
def test_a_receiver_asks_for_time_in_seconds_or_by_date(told: str, seconds: float) -> None:
    refusal = refusal_of(Answer(503, told), NOW)
    assert refusal is not None
    assert refusal.retry_after == seconds


def test_a_wrong_setting_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, webhook_ca_file=tmp_path / "missing.pem")
    went_on = False
    with structlog.testing.capture_logs() as logs, delivering(NO_DATABASE, settings):
        went_on = True
    assert went_on
    assert [entry["event"] for entry in logs] == ["webhooks_disabled"]


def test_without_a_database_it_waits_and_stops_when_told(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        with delivering(NO_DATABASE, Settings(data_dir=tmp_path, webhook_concurrency=2)):
            pass
        assert all(entry["event"] == "webhook_claim_failed" for entry in logs)


def test_with_a_concurrency_of_zero_nothing_is_started(tmp_path: Path) -> None:
    with (
        structlog.testing.capture_logs() as logs,
        delivering(NO_DATABASE, Settings(data_dir=tmp_path, webhook_concurrency=0)),
    ):
        pass
    assert logs == []
