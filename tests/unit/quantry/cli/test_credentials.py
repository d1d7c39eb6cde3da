"""``quantry credentials``, as a process: what it sends and shows, and where a token never is."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantry.cli.credentials import read_token
from quantry.errors import QuantryError
from tests.unit.quantry.cli.test_main import environment
from tests.unit.quantry.conftest import ScriptedServer, job_body, json_answer

TOKEN = "hf_hunter2"  # noqa: S105 — opens nothing
CREDENTIAL = {
    "id": "cred_1",
    "object": "credential",
    "name": "mine [x]",
    "kind": "hub",
    "created_at": "2026-01-01T12:00:00.000Z",
    "last_used_at": None,
}


def quantry(server: ScriptedServer, *arguments: str, said: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "quantry", *arguments],
        env=environment(server),
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_token_is_piped_in_and_never_shown(server: ScriptedServer) -> None:
    server.answers = [json_answer(CREDENTIAL, 201)]
    done = quantry(server, "credentials", "add", "mine", said=f"{TOKEN}\n")
    assert (done.returncode, done.stdout) == (0, "cred_1\n")
    assert TOKEN not in done.stderr
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/credentials")
    assert json.loads(request.body) == {"name": "mine", "kind": "hub", "token": TOKEN}
    assert request.headers["idempotency-key"]


def test_a_refusal_does_not_show_the_token(server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    server.answers = [json_answer({"code": "invalid_fields", "detail": "No."}, 422)]
    done = quantry(server, "credentials", "add", "mine", "--token-file", str(file))
    assert done.returncode == 1
    assert done.stderr == "error [invalid_fields]: No.\n"


def test_credentials_are_listed_and_removed(server: ScriptedServer) -> None:
    used = {**CREDENTIAL, "id": "cred_2", "last_used_at": "2026-01-02T03:04:05.000Z"}
    server.answers = [
        json_answer({"data": [used, CREDENTIAL], "has_more": False, "next_cursor": None}),
        json_answer({}, 204),
    ]
    shown = quantry(server, "credentials", "list").stdout
    assert shown.index("cred_2") < shown.index("cred_1")
    assert "mine [x]" in shown
    assert "2026-01-02 03:04" in shown
    assert "never" in shown
    assert quantry(server, "credentials", "rm", "cred_1").returncode == 0
    assert (server.received[-1].method, server.received[-1].path) == ("DELETE", "/v1/credentials/cred_1")


def test_a_submitted_model_names_its_credential(server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body("queued"), 202)]
    assert quantry(server, "submit", "org/gated", "--preset", "w4a16", "--credential", "cred_1").returncode == 0
    assert json.loads(server.received[0].body)["model"] == {"source": "hub", "id": "org/gated", "credential": "cred_1"}


def test_where_a_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"\n{TOKEN}\n")
    assert read_token(file) == TOKEN
    assert read_token(None, io.StringIO(f"{TOKEN}\nmore\n")) == TOKEN
    with pytest.raises(QuantryError, match="no token"):
        read_token(None, io.StringIO("\n"))
