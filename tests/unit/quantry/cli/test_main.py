"""The command, as a process: what it sends, what it prints, how it fails."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from quantry.cli.jobs import model_reference, read_policy
from quantry.cli.main import error_line
from quantry.errors import FieldError, QuantryError
from tests.unit.quantry.conftest import Answer, ScriptedServer, job_body, json_answer

LAYER = {
    "name": "model.layers.0.mlp.down_proj",
    "block": 0,
    "role": "down_proj",
    "scheme": "W4A4",
    "transform": "rotation",
    "error": 1.5,
}


def environment(server: ScriptedServer) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")}
    return {**inherited, "QUANTRY_URL": server.url, "QUANTRY_API_KEY": "qk_env"}


def quantry(server: ScriptedServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantry", *arguments],
        env=environment(server),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def page(*rows: dict[str, Any]) -> Answer:
    return json_answer({"data": rows, "has_more": False, "next_cursor": None})


def test_submit_sends_the_request_and_prints_the_id(server: ScriptedServer, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"targets": ["up_proj"], "training": null}')
    server.answers = [json_answer(job_body("queued"), 202)]
    options = ("--policy", str(policy), "--preset", "smoothrot-w4a4", "--dataset", "wikitext2", "--samples", "64")
    done = quantry(server, "submit", "local:tiny", *options, "--also", "gguf-source")
    assert (done.returncode, done.stdout) == (0, "job_1\n")
    assert "quantry watch job_1" in done.stderr
    assert json.loads(server.received[0].body) == {
        "model": {"source": "local", "id": "tiny"},
        "policy": {"targets": ["up_proj"], "training": None, "preset": "smoothrot-w4a4"},
        "calibration": {"dataset": "wikitext2", "samples": 64},
        "evaluation": {"perplexity": {"dataset": "wikitext2"}},
        "output": {"also": ["gguf-source"]},
    }
    assert server.received[0].headers["authorization"] == "Bearer qk_env"


def test_submit_may_measure_on_another_text(server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body("queued"), 202)]
    done = quantry(
        server, "submit", "local:tiny", "--preset", "w4a16", "--dataset", "self", "--evaluation-dataset", "pydoc"
    )
    assert done.returncode == 0
    sent = json.loads(server.received[0].body)
    assert (sent["calibration"], sent["evaluation"]) == ({"dataset": "self"}, {"perplexity": {"dataset": "pydoc"}})


def test_a_refusal_is_one_line_with_code_place_and_remedy(server: ScriptedServer) -> None:
    wrong = {"pointer": "/policy/search/q/0", "code": "less_than_equal", "detail": "Must be at most 1."}
    problem = {"code": "invalid_request", "detail": "The request is wrong.", "hint": "Mend it.", "errors": [wrong]}
    server.answers = [json_answer(problem, 422)]
    done = quantry(server, "submit", "org/model", "--preset", "w4a16")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error [invalid_request]: The request is wrong. /policy/search/q/0: Must be at most 1. Mend it."
    ]


def test_retry_names_the_stage_and_says_how_to_follow(server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body("queued", retries=1), 202)]
    done = quantry(server, "retry", "job_1", "--from-stage", "train")
    assert (done.returncode, done.stdout) == (0, "")
    assert "quantry watch job_1" in done.stderr
    [sent] = server.received
    assert (sent.method, sent.path, json.loads(sent.body)) == ("POST", "/v1/jobs/job_1/retry", {"from_stage": "train"})


@pytest.mark.parametrize(("command", "status"), [("cancel", "succeeded"), ("retry", "running")])
def test_what_the_state_does_not_allow_is_one_line(server: ScriptedServer, command: str, status: str) -> None:
    problem = {"code": "invalid_state", "detail": f"The job is {status}.", "errors": []}
    server.answers = [json_answer(problem, 409)]
    done = quantry(server, command, "job_1")
    assert (done.returncode, done.stderr) == (1, f"error [invalid_state]: The job is {status}.\n")


@pytest.mark.parametrize(("status", "told"), [("cancelled", "is cancelled"), ("cancelling", "is being cancelled")])
def test_cancel_says_how_far_it_is(server: ScriptedServer, status: str, told: str) -> None:
    server.answers = [json_answer(job_body(status), 202)]
    done = quantry(server, "cancel", "job_1")
    assert done.returncode == 0
    assert told in done.stderr


def test_a_policy_file_that_is_not_there(server: ScriptedServer) -> None:
    done = quantry(server, "submit", "org/model", "--policy", "/nowhere/policy.json")
    assert done.returncode == 1
    assert done.stderr.startswith("error [os_error]: [Errno 2] No such file or directory: '/nowhere/policy.json'")


def test_submit_and_watch_to_the_end(server: ScriptedServer) -> None:
    summary = {"selected_mean_error": 7.0, "baseline_selected_mean_error": 10.0, "gain_percent": {"selected": 30.0}}
    stream = (
        b'id: 1\nevent: job.status\ndata: {"status": "running"}\n\n'
        b'id: 2\nevent: progress\ndata: {"fraction": 0.5, "stage": "train"}\n\n'
        b"id: 3\nevent: done\ndata: {}\n\n"
    )
    server.answers = [
        json_answer(job_body("queued"), 202),
        json_answer(job_body("queued")),
        Answer(body=stream),
        json_answer(job_body("succeeded", summary=summary)),
    ]
    done = quantry(server, "submit", "local:tiny", "--preset", "w4a16", "--watch")
    assert done.returncode == 0
    assert done.stdout.startswith("job_1\n")
    assert "-30.0%" in done.stdout
    assert done.stderr.splitlines()[:3] == ["  0%  queued", "  0%  starting", " 50%  train"]
    assert "job_1 succeeded" in done.stderr


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"status": "failed", "error": {"code": "no_matching_layer", "detail": "No layer.", "hint": "Try x."}},
            "error [no_matching_layer]: No layer. Try x.",
        ),
        (
            {"status": "cancelled"},
            "error [cancelled]: job_1 was cancelled. Take it up again: quantry retry job_1",
        ),
    ],
)
def test_watching_a_job_that_did_not_succeed(server: ScriptedServer, fields: dict[str, Any], line: str) -> None:
    server.answers = [json_answer(job_body(**fields))]
    done = quantry(server, "watch", "job_1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [line]


def test_ctrl_c_stops_watching_and_says_that_the_job_goes_on(server: ScriptedServer) -> None:
    hold = threading.Event()
    running = b'id: 1\nevent: job.status\ndata: {"status": "running"}\n\n'
    training = b'id: 2\nevent: progress\ndata: {"fraction": 0.5, "stage": "train"}\n\n'
    started = Answer(body=running + training, hold=hold)
    server.answers = [json_answer(job_body()), started]
    with subprocess.Popen(
        [sys.executable, "-m", "quantry", "watch", "job_1"],
        env=environment(server),
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stderr is not None
        while "train" not in (line := watching.stderr.readline()):
            assert line
        watching.send_signal(signal.SIGINT)
        rest = watching.stderr.read()
        assert watching.wait(20) == 130
    hold.set()
    assert rest.splitlines()[-1] == "Stopped watching; job_1 goes on. Look again: quantry watch job_1"
    assert [request.method for request in server.received] == ["GET", "GET"]


def test_layers_as_a_table_and_as_csv(server: ScriptedServer) -> None:
    server.answers = [page(LAYER), page(LAYER)]
    table = quantry(server, "layers", "job_1", "--sort=-error")
    assert "down_proj" in table.stdout
    assert "sort=-error" in server.received[0].path
    lines = quantry(server, "layers", "job_1", "--csv").stdout.splitlines()
    assert lines[0].startswith("name,block,role,scheme,transform,")
    assert lines[1].startswith("model.layers.0.mlp.down_proj,0,down_proj,W4A4,rotation,")


def test_download_prints_where_the_files_are(server: ScriptedServer, tmp_path: Path) -> None:
    artifact = {
        "id": "art_1",
        "name": "report.json",
        "path": "report.json",
        "bytes": 2,
        "sha256": hashlib.sha256(b"{}").hexdigest(),
        "media_type": "application/json",
        "href": "/v1/artifacts/art_1/content",
    }
    server.answers = [page(artifact), Answer(body=b"{}")]
    done = quantry(server, "download", "job_1", str(tmp_path / "new"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/new/report.json\n")
    assert (tmp_path / "new" / "report.json").read_bytes() == b"{}"


def test_help_and_usage(server: ScriptedServer) -> None:
    assert "submit" in quantry(server, "--help").stdout
    done = quantry(server, "layers")
    assert done.returncode == 2
    assert "Missing argument" in done.stderr


def test_models_are_named_by_source() -> None:
    assert model_reference("org/name") == {"source": "hub", "id": "org/name"}
    assert model_reference("hub:org/name") == {"source": "hub", "id": "org/name"}
    assert model_reference("local:name") == {"source": "local", "id": "name"}
    with pytest.raises(QuantryError, match="Unknown model source 's3'"):
        model_reference("s3:bucket")


def test_a_policy_file_may_name_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"preset": "rtn-w4a4"}')
    assert read_policy(path, None) == {"preset": "rtn-w4a4"}
    assert read_policy(path, "other") == {"preset": "other"}
    with pytest.raises(QuantryError, match="w4a16") as refused:
        read_policy(None, None)
    assert refused.value.code == "policy_required"
    for text in ("[1]", "{"):
        path.write_text(text)
        with pytest.raises(QuantryError, match="bad_input"):
            read_policy(path, None)


def test_an_error_line_does_not_repeat_itself() -> None:
    same = FieldError(pointer="/model/id", code="model_not_found", detail="No such model.")
    error = QuantryError("model_not_found", "No such model.", (same,), hint="List them.")
    assert error_line(error) == "error [model_not_found]: No such model. List them."
