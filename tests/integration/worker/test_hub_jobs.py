"""Jobs on the Hub's models: one commit for all attempts, stored tokens, and tokens nowhere but on the wire."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from structlog.testing import capture_logs

from jobs.job.commands import JobCommands
from jobs.job.nudge import SilentNudger
from tests.hub_server import TOKEN, Fault, Hub, HubModel, serve_hub
from tests.integration.worker.conftest import TENANT, Office, command_of, eventually
from tests.sound_model import sound_files
from worker.outcomes import Outcome
from worker.subprocesses.environment import CHECK

ID = "someone/tiny"
FILES = sound_files(num_hidden_layers=1)
WEIGHTS = "GET /someone/tiny/resolve/" + "a" * 40 + "/model.safetensors"
DIES = (sys.executable, "-c", "raise SystemExit(3)")
BUSY = Fault(match=WEIGHTS, status=429, headers={"Retry-After": "60"}, times=9)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(Hub(models={ID: HubModel(files=FILES)})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def hub_model(**fields: Any) -> dict[str, Any]:
    return {"model": {"source": "hub", "id": ID, "revision": "main", **fields}}


def store_token(office: Office, token: str = TOKEN) -> str:
    return office.credentials.create(tenant=TENANT, name="test", token=SecretStr(token)).id


def downloads() -> list[psutil.Process]:
    """The download processes that this one has started."""
    return [child for child in psutil.Process().children() if "worker.download" in command_of(child)]


def error_code(office: Office, job_id: str) -> str | None:
    error = office.job(job_id).error
    return None if error is None else str(error["code"])


@contextmanager
def running(run: Callable[[], Outcome | None]) -> Iterator[list[Outcome | None]]:
    """``run`` in a thread; what it returns is in the list when the block has ended."""
    outcomes: list[Outcome | None] = []
    thread = threading.Thread(target=lambda: outcomes.append(run()))
    thread.start()
    try:
        yield outcomes
    finally:
        thread.join(60)


def test_a_job_runs_on_the_commit_that_its_first_attempt_resolved(office: Office, hub: Hub) -> None:
    job_id = office.submit(**hub_model())
    assert office.supervisor(runner=DIES).run_next() is Outcome.CRASHED
    hub.models[ID].move(FILES, "b" * 40)
    time.sleep(0.2)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    job = office.job(job_id)
    assert (job.attempt, job.model.resolved_revision) == (2, "a" * 40)
    assert office.queries.get_report(job_id, tenant=TENANT)["model"] == {"id": ID, "revision": "a" * 40}
    assert job.stages[0].name == "resolve"


def test_a_killed_download_is_gone_on_with_though_main_has_moved(office: Office, hub: Hub) -> None:
    hub.faults = [Fault(match=WEIGHTS, cut_after=100_000), BUSY]
    job_id = office.submit(**hub_model())
    with running(office.supervisor().run_next) as first:
        eventually(lambda: len(hub.ranges("model.safetensors")) == 2)
        eventually(lambda: office.job(job_id).model.resolved_revision == "a" * 40)
        downloads()[0].kill()
    assert first == [Outcome.CRASHED]
    hub.models[ID].move({**FILES, "model.safetensors": b"v" * 300_000}, "b" * 40)
    hub.faults.clear()
    (office.work(job_id) / "1" / "revision").unlink()  # as on another machine, which has only the database's word
    time.sleep(0.2)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    assert office.job(job_id).model.resolved_revision == "a" * 40
    assert hub.ranges("model.safetensors") == ["", "bytes=100000-", "bytes=100000-"]
    cached = office.settings.data_dir / "models-cache" / ID / ("a" * 40)
    assert {path.name: path.read_bytes() for path in cached.iterdir()} == FILES


def test_a_job_that_waits_for_a_busy_hub_says_so_and_can_be_cancelled(office: Office, hub: Hub) -> None:
    hub.faults = [BUSY]
    job_id = office.submit(**hub_model())
    with running(office.supervisor().run_next) as outcomes:
        eventually(lambda: any("429" in str(event.data) for event in office.events(job_id) if event.type == "log"))
        office.commands.cancel_job(job_id, tenant=TENANT)
        cancelled = time.monotonic()
    assert outcomes == [Outcome.CANCELLED]
    assert time.monotonic() - cancelled < 15
    assert downloads() == []


def test_a_job_on_a_gated_model_fails_with_a_remedy(office: Office, hub: Hub) -> None:
    hub.models[ID].access = "gated"
    job_id = office.submit(**hub_model())
    assert office.supervisor().run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == ("model_gated", "user")
    assert [(stage.name, stage.status) for stage in job.stages] == [("resolve", "failed")]


def test_a_credential_that_was_deleted_meanwhile(office: Office, hub: Hub) -> None:
    credential = store_token(office)
    job_id = office.submit(**hub_model(credential=credential))
    office.credentials.delete(credential, tenant=TENANT)
    assert office.supervisor().run_next() is Outcome.FAILED
    assert error_code(office, job_id) == "credential_not_found"
    assert not hub.requests


def test_a_jobs_credential_goes_before_the_operators_token(
    office: Office, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models[ID].access = "gated"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    job_id = office.submit(**hub_model(credential=store_token(office, "hf_wrong")))
    assert office.supervisor().run_next() is Outcome.FAILED
    assert error_code(office, job_id) == "hub_token_refused"


@pytest.mark.parametrize(("source", "access"), [("credential", "gated"), ("operator", "private")])
def test_a_token_opens_a_model_and_is_nowhere_to_be_read(
    office: Office, hub: Hub, monkeypatch: pytest.MonkeyPatch, source: str, access: str
) -> None:
    hub.models[ID].access = access
    # The first wait gives time to look around, the refused request a traceback to log.
    hub.faults = [Fault(match=WEIGHTS, status=429, headers={"Retry-After": "2"}), Fault(match=WEIGHTS, cut_after=9)]
    fields = {"credential": store_token(office)} if source == "credential" else {}
    if source == "operator":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    job_id = office.submit(**hub_model(**fields))
    supervisor = office.supervisor(runner=DIES)  # a crash leaves all of the attempt's files
    with capture_logs() as logged, running(supervisor.run_next) as outcomes:
        eventually(lambda: bool(hub.ranges("model.safetensors")))
        (process,) = downloads()
        seen = "\n".join([*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())])
        everywhere = _command_lines()
    assert outcomes == [Outcome.CRASHED]
    assert any(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in hub.received)
    places = {
        "the download's arguments and environment": seen,
        "every process's arguments": everywhere,
        "the worker's log": str(logged),
        "the events": json.dumps([event.data for event in office.events(job_id)], default=str),
        "the job": office.job(job_id).model_dump_json(),
        "the database": _stored(office),
        **_files(office.settings.data_dir),
    }
    assert "--token-fd" in seen
    assert job_id in places["the database"]
    assert {"runner.log", "download.json", "model.safetensors"} <= {Path(place).name for place in places}
    assert [place for place, content in places.items() if TOKEN in content] == []


def _command_lines() -> str:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return "\n".join(found)


def _stored(office: Office) -> str:
    """Every row of every table, as text; the names come from the catalog."""
    with office.database.transaction() as session:
        names = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        rows = [row for name in names for row in session.scalars(text(f'SELECT t::text FROM "{name}" t'))]  # noqa: S608
    return "\n".join(rows)


def _files(directory: Path) -> dict[str, str]:
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {os.fspath(path): path.read_bytes().decode(errors="replace") for path in found}


def test_a_text_that_is_too_short_is_told_before_a_byte_of_the_weights_arrives(
    office: Office, hub: Hub, tmp_path: Path
) -> None:
    # Rows are counted with the model's own tokenizer, in a process of the engine.
    (tmp_path / "data" / "rows").mkdir(parents=True)
    (tmp_path / "data" / "rows" / "train.jsonl").write_text('{"text": "the the the"}\n' * 20)
    office.settings = office.settings.model_copy(update={"datasets_dir": tmp_path / "data"})
    office.commands = JobCommands(office.database, office.settings, office.store, SilentNudger())
    fields = {"calibration": {"dataset": "rows"}, "evaluation": {"perplexity": None}, "policy": {"preset": "w8a8"}}
    job_id = office.submit(**hub_model(), **fields)
    assert office.supervisor(check=CHECK).run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == ("not_enough_text", "user")
    assert [(stage.name, stage.status) for stage in job.stages] == [("resolve", "failed")]
    assert hub.ranges("model.safetensors") == []


def test_a_model_of_another_class_is_told_before_a_byte_of_its_weights_arrives(office: Office, hub: Hub) -> None:
    hub.models[ID] = HubModel(files=sound_files(num_hidden_layers=1) | {"config.json": b'{"model_type": "gpt2"}'})
    job_id = office.submit(**hub_model())
    assert office.supervisor().run_next() is Outcome.FAILED
    assert error_code(office, job_id) == "unsupported_architecture"
    assert hub.ranges("model.safetensors") == []
