"""A job whose texts are data sets of the Hub, through the real download and the real engine."""

import json
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from jobs.settings import Settings
from tests.hub_server import Hub, HubModel, serve_hub
from tests.integration.worker.conftest import TENANT, Office
from tests.tiny_models import write_tiny_model
from worker.outcomes import Outcome
from worker.subprocesses.environment import RUNNER

CHAT = "someone/talks"
WIKITEXT = "Salesforce/wikitext"
CONFIG = "wikitext-2-raw-v1"
DIES = (sys.executable, "-c", "raise SystemExit(3)")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
JOB: dict[str, Any] = {
    "policy": {"preset": "w8a8"},
    "calibration": {"dataset": {"hub": CHAT, "split": "train_sft"}, "samples": 8, "sequence_length": 16},
    "evaluation": {"perplexity": {"dataset": "wikitext2", "tokens": 64, "sequence_length": 16}},
}


def parquet(**columns: list[Any]) -> bytes:
    file = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What is the class of object number {number}?"},
        {"role": "assistant", "content": "It is the class that its type names, and no other one."},
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    talks = parquet(prompt_id=["x"] * 20, messages=[talk(number) for number in range(20)])
    lines = parquet(text=["", " = Objects = \n", *("Objects have a class, a type and a value.\n" for _ in range(20))])
    card = {"configs": [{"config_name": CONFIG, "data_files": [{"split": "test", "path": f"{CONFIG}/test-*"}]}]}
    datasets = {
        CHAT: HubModel(files={"data/train_sft-00000-of-00001.parquet": talks}),
        WIKITEXT: HubModel(files={f"{CONFIG}/test-00000-of-00001.parquet": lines}, card=card, sha="c" * 40),
    }
    with serve_hub(Hub(datasets=datasets)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The machine computes while it beats: a longer lease, so that the claim is not lost."""
    return settings.model_copy(update={"lease_seconds": 15.0})


@pytest.fixture
def model(office: Office) -> Path:
    """A tiny model with a chat template."""
    directory = write_tiny_model(office.settings.models_dir / "tiny", layers=1)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_job_reads_data_sets_of_the_hub_at_the_commits_that_its_first_attempt_found(office: Office, hub: Hub) -> None:
    job_id = office.submit("tiny", **JOB)
    assert office.supervisor(runner=DIES).run_next() is Outcome.CRASHED
    requests = len(hub.requests)
    hub.datasets[CHAT].move({"train_sft.jsonl": json.dumps({"text": "moved"}).encode()}, "b" * 40)
    time.sleep(0.2)  # longer than the delay of a retry
    assert office.supervisor(runner=RUNNER).run_next() is Outcome.SUCCEEDED
    assert len(hub.requests) == requests, "the files of both commits were there"
    report = office.queries.get_report(job_id, tenant=TENANT)
    assert report["calibration"]["dataset"] == {
        "hub": CHAT,
        "config": None,
        "split": "train_sft",
        "revision": "a" * 40,
        "column": None,
    }
    assert report["evaluation"]["perplexity"]["dataset"]["hub"] == WIKITEXT
    assert report["evaluation"]["perplexity"]["dataset"]["revision"] == "c" * 40
    assert report["perplexity"]["quantized"]["predicted"] > 0
    assert not any("/api/models/" in line for line in hub.requests)


def test_a_job_that_only_measures_fetches_no_calibration_text_and_the_hubs_answer_is_the_jobs(
    office: Office, hub: Hub
) -> None:
    del hub.datasets[WIKITEXT]
    evaluation = {"perplexity": {"dataset": "wikitext2", "tokens": 64}}
    job_id = office.submit(
        "succeed", policy={"preset": "evaluate"}, calibration=JOB["calibration"], evaluation=evaluation
    )
    assert office.supervisor().run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == ("dataset_not_found", "user")
    assert WIKITEXT in job.error["detail"]
    assert [(stage.name, stage.status) for stage in job.stages] == [("resolve", "failed")]
    assert not any(CHAT in line for line in hub.requests)
