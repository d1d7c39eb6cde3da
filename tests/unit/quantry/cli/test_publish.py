"""``quantry publish`` and ``submit --publish``: what they send, and how they follow a push to its end."""

import json
import subprocess
import sys
from typing import Any

import pytest

from quantry import Quantry
from quantry.cli.publish import follow_publication, follow_publications
from quantry.errors import QuantryError
from quantry.results import Job
from tests.unit.quantry.cli.test_main import environment
from tests.unit.quantry.conftest import ScriptedServer, job_body, json_answer

COMMIT = {"sha": "a" * 40, "url": "https://hub.example/me/tiny/commit/aaaa"}
PROBLEM = {"code": "repo_is_public", "detail": "me/tiny is public.", "hint": "Make it private.", "category": "user"}


def publication(status: str = "queued", done: int = 0, **fields: Any) -> dict[str, Any]:
    """A publication as the contract shows it."""
    return {
        "id": "pub_1",
        "object": "publication",
        "job_id": "job_1",
        "status": status,
        "is_terminal": status in ("succeeded", "failed"),
        "repo": "me/tiny",
        "private": True,
        "revision": "main",
        "attempt": 1,
        "progress": {"bytes_done": done, "bytes_total": 10},
        "commit": None,
        "error": None,
        "last_error": None,
        "created_at": "2026-01-01T00:00:00.000Z",
        **fields,
    }


def test_publish_follows_the_push_and_prints_the_commit(server: ScriptedServer) -> None:
    away = {"code": "hub_unreachable", "detail": "The Hub did not answer."}
    server.answers = [
        json_answer(publication(), 202),
        json_answer(publication(last_error=away), ETag='"1"', **{"Retry-After": "0"}),
        json_answer(publication("succeeded", 10, commit=COMMIT), ETag='"2"'),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "quantry", "publish", "job_1", "me/tiny", "--public", "--credential", "cred_1"],
        env=environment(server),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{COMMIT['url']}\n"), done.stderr
    assert "waits to try again: The Hub did not answer." in done.stderr
    assert json.loads(server.received[0].body) == {
        "repo": "me/tiny",
        "private": False,
        "revision": "main",
        "credential": "cred_1",
    }
    assert server.received[0].path == "/v1/jobs/job_1/publications"
    assert [request.path for request in server.received[1:]] == ["/v1/publications/pub_1"] * 2
    assert server.received[2].headers["if-none-match"] == '"1"'


def test_submit_asks_for_the_push_in_the_job_itself(server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body("queued"), 202)]
    arguments = ("submit", "local:tiny", "--preset", "w4a16", "--publish", "me/tiny", "--credential", "cred_1")
    done = subprocess.run(
        [sys.executable, "-m", "quantry", *arguments],
        env=environment(server),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(server.received[0].body)["output"] == {"hub": {"repo": "me/tiny", "credential": "cred_1"}}


def test_a_failed_push_is_an_error(server: ScriptedServer, client: Quantry) -> None:
    server.answers = [json_answer(publication("failed", error=PROBLEM))]
    with pytest.raises(QuantryError) as failed:
        follow_publication(client, "pub_1")
    assert (failed.value.code, failed.value.hint) == ("repo_is_public", "Make it private.")


def test_only_a_job_that_publishes_is_asked_for_publications(server: ScriptedServer, client: Quantry) -> None:
    follow_publications(client, Job.model_validate(job_body("succeeded", output={"hub": None})))
    assert server.received == []
    server.answers = [
        json_answer({"data": [publication()], "has_more": False, "next_cursor": None}),
        json_answer(publication("succeeded", 10, commit=COMMIT)),
    ]
    follow_publications(client, Job.model_validate(job_body("succeeded", output={"hub": {"repo": "me/tiny"}})))
    assert [request.path.partition("?")[0] for request in server.received] == [
        "/v1/jobs/job_1/publications",
        "/v1/publications/pub_1",
    ]


def test_a_failed_push_can_be_retried(server: ScriptedServer, client: Quantry) -> None:
    server.answers = [json_answer(publication(), 202)]
    assert client.retry_publication("pub_1").status == "queued"
    assert server.received[0].path == "/v1/publications/pub_1/retry"
    assert server.received[0].headers["idempotency-key"]
