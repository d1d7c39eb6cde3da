"""``quantry webhooks``, as a person uses it: what it sends, and what it shows."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from quantry.cli import console
from quantry.cli.main import app
from tests.unit.quantry.conftest import ScriptedServer, json_answer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 — the specification's example
URL = "https://hooks.example.com/quantry"
HOOK: dict[str, Any] = {
    "id": "wh_1",
    "object": "webhook.endpoint",
    "url": URL,
    "description": "",
    "events": ["job.succeeded", "job.failed"],
    "enabled": True,
    "disabled_reason": None,
    "failing_since": None,
    "previous_secret_until": None,
    "created_at": "2026-01-01T12:00:00.000Z",
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "object": "webhook.delivery",
    "webhook_id": "wh_1",
    "type": "job.failed",
    "status": "pending",
    "attempts": 2,
    "last_status": 500,
    "last_error": "The receiver answered with HTTP status 500.",
    "created_at": "2026-01-01T12:00:00.000Z",
    "last_attempt_at": "2026-01-01T12:00:05.000Z",
    "next_attempt_at": "2026-01-01T12:05:05.000Z",
    "finished_at": None,
    "payload": {"type": "job.failed"},
}


def quantry(server: ScriptedServer, *arguments: str) -> tuple[str, str]:
    """(standard output, standard error) of a command that succeeds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(console.out, "width", 200)  # made when it was imported, as wide as the terminal was then
        done = CliRunner().invoke(
            app, ["webhooks", *arguments], env={"QUANTRY_URL": server.url}, catch_exceptions=False
        )
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_adding_one_shows_its_secret(server: ScriptedServer) -> None:
    server.answers = [json_answer({**HOOK, "secret": SECRET}, 201)]
    out, _ = quantry(server, "add", URL, "--event", "job.succeeded", "--event", "job.failed", "--description", "mine")
    assert out.split() == ["wh_1", SECRET]
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/webhooks")
    assert json.loads(request.body) == {
        "url": URL,
        "events": ["job.succeeded", "job.failed"],
        "description": "mine",
    }
    assert request.headers["idempotency-key"]


def test_without_events_the_service_chooses(server: ScriptedServer) -> None:
    server.answers = [json_answer({**HOOK, "secret": SECRET}, 201)]
    quantry(server, "add", URL)
    assert json.loads(server.received[0].body) == {"url": URL}


def test_they_are_listed_with_their_state(server: ScriptedServer) -> None:
    hooks = [
        {**HOOK, "id": "wh_3", "enabled": False, "disabled_reason": "gone"},
        {**HOOK, "id": "wh_2", "failing_since": "2026-01-02T03:04:05.000Z"},
        HOOK,
    ]
    server.answers = [json_answer({"data": hooks, "has_more": False, "next_cursor": None})]
    out, _ = quantry(server, "list")
    gone, failing, fine = out.splitlines()[1:]
    assert "wh_3" in gone
    assert "disabled (gone)" in gone
    assert "failing since 2026-01-02 03:04" in failing
    assert "job.succeeded job.failed" in fine
    assert URL in fine


def test_deliveries_say_what_went_wrong(server: ScriptedServer) -> None:
    server.answers = [json_answer({"data": [MESSAGE], "has_more": False, "next_cursor": None})]
    out, _ = quantry(server, "deliveries", "wh_1", "--status", "pending")
    for part in ("msg_1", "job.failed", "pending", "2", "12:00:05", "12:05:05", "HTTP status 500"):
        assert part in out
    assert server.received[0].path.startswith("/v1/webhooks/wh_1/deliveries?")
    assert "status=pending" in server.received[0].path


@pytest.mark.parametrize(
    ("arguments", "method", "path", "answer", "shown"),
    [
        (["remove", "wh_1"], "DELETE", "/v1/webhooks/wh_1", {}, "wh_1 is gone"),
        (["test", "wh_1"], "POST", "/v1/webhooks/wh_1/test", MESSAGE, "msg_1"),
        (["redeliver", "wh_1", "msg_1"], "POST", "/v1/webhooks/wh_1/deliveries/msg_1/redeliver", MESSAGE, "msg_1"),
        (["rotate", "wh_1"], "POST", "/v1/webhooks/wh_1/rotate", {**HOOK, "secret": SECRET}, SECRET),
    ],
)
def test_each_command_is_one_request(
    server: ScriptedServer, arguments: list[str], method: str, path: str, answer: dict[str, Any], shown: str
) -> None:
    server.answers = [json_answer(answer)]
    out, err = quantry(server, *arguments)
    assert shown in out + err
    (request,) = server.received
    assert (request.method, request.path) == (method, path)
