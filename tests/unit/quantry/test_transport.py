"""Retries, Retry-After, idempotency and problems, against a real server on loopback."""

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from quantry import FieldError, Quantry, QuantryError
from tests.unit.quantry.conftest import Answer, ScriptedServer, job_body, json_answer


def problem(code: str, status: int, **headers: str) -> Answer:
    return json_answer({"code": code, "detail": f"It is {code}.", "status": status}, status, **headers)


def test_a_post_is_repeated_with_the_same_key_and_body(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [Answer(drop=True), problem("unavailable", 503), json_answer(job_body("queued"), 202)]
    assert client.submit({"model": {"source": "local", "id": "tiny"}}).status == "queued"
    keys = {request.headers["idempotency-key"] for request in server.received}
    assert len(server.received) == 3
    assert len(keys) == 1
    assert len({request.body for request in server.received}) == 1


def test_two_posts_have_two_keys_and_a_given_key_is_kept(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body("queued"), 202)] * 3
    for key in (None, None, "mine"):
        client.submit({}, idempotency_key=key)
    first, second, third = (request.headers["idempotency-key"] for request in server.received)
    assert first != second
    assert third == "mine"


def test_the_api_key_is_sent_as_a_bearer(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body())]
    client.get("job_1")
    assert server.received[0].headers["authorization"] == "Bearer qk_test"


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_is_honored(
    client: Quantry, server: ScriptedServer, naps: list[float], status: int
) -> None:
    server.answers = [problem("busy", status, **{"Retry-After": "7"}), json_answer(job_body())]
    client.get("job_1")
    assert naps == [7.0]


def test_retry_after_as_a_date_is_honored(client: Quantry, server: ScriptedServer, naps: list[float]) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server.answers = [problem("busy", 503, **{"Retry-After": moment}), json_answer(job_body())]
    client.get("job_1")
    assert 17 <= naps[0] <= 20


def test_backoff_grows_without_retry_after(client: Quantry, server: ScriptedServer, naps: list[float]) -> None:
    server.answers = [problem("busy", 503)] * 3 + [json_answer(job_body())]
    client.get("job_1")
    assert [0.125 * 2**n <= nap <= 0.25 * 2**n for n, nap in enumerate(naps)] == [True] * 3


def test_the_last_refusal_is_raised(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [problem("unavailable", 503)] * 4
    with pytest.raises(QuantryError) as caught:
        client.get("job_1")
    assert (caught.value.code, caught.value.status, len(server.received)) == ("unavailable", 503, 4)


def test_a_wait_of_an_hour_is_not_taken(client: Quantry, server: ScriptedServer, naps: list[float]) -> None:
    server.answers = [problem("rate_limited", 429, **{"Retry-After": "3600"})]
    with pytest.raises(QuantryError, match="rate_limited"):
        client.get("job_1")
    assert naps == []


def test_a_conflict_is_repeated_only_while_the_key_is_in_flight(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [problem("idempotency_in_flight", 409, **{"Retry-After": "1"}), json_answer(job_body("queued"))]
    assert client.submit({}).id == "job_1"
    server.answers = [problem("invalid_state", 409, **{"Retry-After": "1"})]
    with pytest.raises(QuantryError, match="invalid_state"):
        client.cancel("job_1")


def test_a_problem_becomes_one_error_with_its_fields(client: Quantry, server: ScriptedServer) -> None:
    wrong = {"pointer": "/policy/x", "code": "extra_forbidden", "detail": "Unknown field."}
    body = {"code": "invalid_request", "detail": "The body is wrong.", "hint": "Mend it.", "errors": [wrong]}
    server.answers = [json_answer(body, 422)]
    with pytest.raises(QuantryError) as caught:
        client.submit({"policy": {"x": 1}})
    error = caught.value
    assert (error.code, error.detail, error.hint, error.status) == (
        "invalid_request",
        "The body is wrong.",
        "Mend it.",
        422,
    )
    assert error.errors == (FieldError(pointer="/policy/x", code="extra_forbidden", detail="Unknown field."),)
    assert len(server.received) == 1


def test_an_answer_of_something_else_is_named_as_such(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [Answer(status=404, body=b"<html>nothing here</html>")]
    with pytest.raises(QuantryError, match="http_404"):
        client.get("job_1")
    server.answers = [Answer(body=b"<html>welcome</html>")]
    with pytest.raises(QuantryError, match="bad_response"):
        client.get("job_1")


def test_nobody_there(naps: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Quantry(f"http://127.0.0.1:{port}", retries=2) as client, pytest.raises(QuantryError) as caught:
        client.get("job_1")
    assert caught.value.code == "unreachable"
    assert "quantry serve" in str(caught.value.hint)
    assert len(naps) == 2


@pytest.mark.parametrize("url", ["not a url", "http://[bad", "ftp://127.0.0.1/"])
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(QuantryError, match="bad_input"):
        Quantry(url).get("job_1")
