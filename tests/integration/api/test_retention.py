"""A job whose files and events expired, over HTTP."""

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text

from jobs.repository.database import Database
from jobs.retention.expiry import Expiry
from jobs.settings import Settings

_LIVE = {"Accept": "text/event-stream"}


@pytest.fixture
def expire(database: Database, settings: Settings) -> Callable[[], None]:
    """Lets the time of all finished jobs' files and events be over."""

    def expire() -> None:
        with database.transaction() as session:
            session.execute(text("UPDATE jobs SET finished_at = finished_at - interval '2 days'"))
        kept = {"retention_artifacts_seconds": 86_400.0, "retention_events_seconds": 86_400.0}
        Expiry(database=database, settings=settings.model_copy(update=kept)).run()

    return expire


@pytest.fixture
def expired(finished: str, expire: Callable[[], None]) -> str:
    """The id of a job that succeeded long ago."""
    expire()
    return finished


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_its_files_are_gone_and_that_is_said(client: httpx.Client, expired: str) -> None:
    job = client.get(f"/v1/jobs/{expired}").json()
    assert job["expired_at"].endswith("Z")
    assert (job["status"], job["summary"]) == ("succeeded", {"full_mean_error": 2.0})
    listed = client.get(f"/v1/jobs/{expired}/artifacts").json()["data"]
    assert len(listed) == 4, "what there was, with its digests"
    content = listed[0]["href"]
    for path in (content, f"/v1/jobs/{expired}/archive"):
        gone = client.get(path)
        assert problem(gone) == (410, "artifacts_expired")
        assert "Submit the job again" in gone.json()["detail"]
    assert client.head(content).status_code == 410
    assert client.get(content, headers={"Range": "bytes=0-1"}).status_code == 410
    assert client.get(f"/v1/jobs/{expired}/report").status_code == 200
    assert len(client.get(f"/v1/jobs/{expired}/layers").json()["data"]) == 3


def test_it_is_not_published(client: httpx.Client, expired: str) -> None:
    asked = client.post(f"/v1/jobs/{expired}/publications", json={"repo": "somebody/model"})
    assert problem(asked) == (410, "artifacts_expired")


def test_who_has_seen_the_job_hears_of_it(client: httpx.Client, finished: str, expire: Callable[[], None]) -> None:
    seen = client.get(f"/v1/jobs/{finished}")
    assert seen.json()["expired_at"] is None
    expire()
    again = client.get(f"/v1/jobs/{finished}", headers={"If-None-Match": seen.headers["ETag"]})
    assert again.status_code == 200
    assert again.json()["expired_at"] is not None


def test_its_log_still_ends_with_done(client: httpx.Client, expired: str) -> None:
    path = f"/v1/jobs/{expired}/events"
    [done] = client.get(path).json()["data"]
    assert done["type"] == "done"
    assert done["id"] > 1, "ids do not begin anew"
    for behind in (0, 1, done["id"] - 1):
        stream = client.get(path, headers={**_LIVE, "Last-Event-ID": str(behind)})
        assert stream.status_code == 200
        assert [line for line in stream.text.split("\n") if line.startswith(("id:", "event:"))] == [
            f"id: {done['id']}",
            "event: done",
        ]
    assert client.get(path, headers={**_LIVE, "Last-Event-ID": str(done["id"])}).status_code == 204
