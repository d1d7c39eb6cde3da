"""What Prometheus gets of a worker: all its processes at one address, also after one of them died."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from quant_engine.policy import JobRequest
from tests.integration.worker.conftest import Office, eventually, family_of

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scraped(port: int) -> Samples:
    """Every sample by its name and labels."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    """One sample's value; 0 when there is none."""
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def ended(port: int, outcome: str) -> float:
    return of(scraped(port), "quantry_attempts_total", outcome=outcome)


def test_a_worker_tells_what_its_processes_did_and_keeps_it_when_they_die(office: Office, tmp_path: Path) -> None:
    port = free_port()
    worker = office.start_worker(QUANTRY_WORKER_METRICS_PORT=str(port), TMPDIR=str(tmp_path))
    first = office.submit("succeed")
    office.wait(first, "succeeded", "failed")
    eventually(lambda: ended(port, "succeeded") == 1)
    samples = scraped(port)
    assert of(samples, "quantry_claim_wait_seconds_count") == 1
    assert of(samples, "quantry_attempt_seconds_count", outcome="succeeded") == 1
    for stage, reused in (("resolve", "false"), ("load", "true"), ("train", "false"), ("publish", "false")):
        assert of(samples, "quantry_stage_seconds_count", stage=stage, reused=reused) == 1, stage
    assert of(samples, "quantry_stage_seconds_sum", stage="train", reused="false") == 0.5
    assert of(samples, "quantry_runner_peak_memory_bytes_count", device="cpu") == 1
    assert of(samples, "quantry_runner_peak_memory_bytes_sum", device="cpu") == 3e9
    for process in ("main", "pool", "sweeper"):
        assert of(samples, "quantry_worker_resident_memory_bytes", process=process) > 1e6, process
    assert of(samples, "process_open_fds") > 3
    assert not {name for name, _ in samples if name.startswith("quantry_") and "pid" in name}

    running = office.submit("hang")
    runner = office.runner_pid(running)
    child = psutil.Process(runner).ppid()
    os.kill(child, signal.SIGKILL)
    office.wait(running, "queued", seconds=40)
    office.commands.cancel_job(running, tenant="default")
    office.wait(running, "cancelled")
    second = office.submit("succeed")
    office.wait(second, "succeeded", "failed")
    eventually(lambda: ended(port, "succeeded") == 2)
    samples = scraped(port)
    assert of(samples, "quantry_swept_jobs_total", outcome="requeued") == 1, "counted by the sweeper"
    assert of(samples, "quantry_claim_wait_seconds_count") >= 3
    ids = {first, running, second}
    assert not any(value in ids for _, labels in samples for _, value in labels), "ids are no labels"

    assert port in {each.laddr.port for each in psutil.Process(worker.pid).net_connections() if each.status == "LISTEN"}
    for process in family_of(worker.pid)[1:]:
        listening = [each for each in process.net_connections() if each.status == "LISTEN"]
        assert listening == [], f"{process.cmdline()} holds the main process's port"
    worker.terminate()
    assert worker.wait(30) == 0
    assert list(tmp_path.glob("quantry-worker-metrics-*")) == []


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def test_a_port_that_is_taken_stops_no_job_and_every_line_has_the_jobs_ids(office: Office) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        office.start_worker(QUANTRY_WORKER_METRICS_PORT=str(taken.getsockname()[1]))
        body = {"model": {"source": "local", "id": "succeed"}, "policy": {"preset": "trainable-smoothrot-w4a4"}}
        request = JobRequest.model_validate(body)
        view, _ = office.commands.create_job(request, tenant="default", request_id="request-of-this-test")
        assert office.wait(view.id, "succeeded", "failed").status == "succeeded"
    log = office.settings.data_dir / "worker-0.log"
    eventually(lambda: any(line["event"] == "attempt_ended" for line in lines_of(log)))
    lines = lines_of(log)
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    assert [line["level"] for line in lines if line["event"] == "metrics_not_served"] == ["error"]
    of_the_job = [line for line in lines if line["event"] in {"job_claimed", "subprocess_started", "attempt_ended"}]
    assert len(of_the_job) == 3
    ids = {"job_id": view.id, "attempt": 1, "fence": 1, "request_id": "request-of-this-test"}
    assert all(ids.items() <= line.items() for line in of_the_job)
