"""``quantry demo``: one real job on a real model, over HTTP, with its results; then the service stops."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from quantry.client import Quantry
from quantry.environment import api_key
from quantry.errors import QuantryError, error_from_problem
from quantry.results import Job
from quantry.service.config import DemoSize, ServeConfig, serve_config
from quantry.service.processes import Process, ProcessSpec, describe_exit
from quantry.service.python import PYTHON, safe_environment
from quantry.service.serve import DEMO_MODEL, demo_model_spec
from quantry.terminal.tables import print_layers, summary_table
from quantry.terminal.watch import watch_job

_PRESET: Final = "trainable-smoothrot-w4a4"
_PROMPT: Final = "The capital of France is"
_START_SECONDS: Final = 240.0
_SAMPLE_SECONDS: Final = 300.0
_STEP_SECONDS: Final = 0.25
# The demo runs a service of its own: it must not use or disturb a service that the environment describes.
_NOT_HANDED_ON: Final = frozenset(
    {"QUANTRY_DATABASE_URL", "QUANTRY_BROKER_URL", "QUANTRY_HOST", "QUANTRY_PORT", "QUANTRY_URL"}
)


def run_demo(size: DemoSize, console: Console) -> None:
    """Run the whole demo, from the model to generated text.

    Raises:
        QuantryError: the first step that failed, with its reason.
        KeyboardInterrupt: the user or SIGTERM stopped it; all processes that it started have been stopped.
    """
    began = time.monotonic()
    # SIGTERM raises KeyboardInterrupt, so that it stops the demo in order, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = demo_config()
    environment = demo_environment(config)
    config.logs_dir.mkdir(parents=True, exist_ok=True)
    prepare_model(config, environment, console)
    with running_service(config, environment, console) as url, Quantry(url, api_key()) as client:
        job = quantize(client, demo_request(size), console)
        checkpoint = config.data_dir / "downloads" / job.id
        show_results(client, job, checkpoint, console)
        show_sample(checkpoint / "checkpoint", environment, console)
    console.print(f"The service has stopped. The demo took {time.monotonic() - began:.0f} s.")


def demo_config() -> ServeConfig:
    """Return the demo's configuration: ``QUANTRY_DATA_DIR`` or ``./var/demo``, any free port, shared models."""
    shared = serve_config()
    # A directory of its own beside that of 'quantry serve', which may run at the same time.
    own = shared.data_dir if os.environ.get("QUANTRY_DATA_DIR") else shared.data_dir / "demo"
    return replace(shared, host="127.0.0.1", port=0, data_dir=own)


def demo_environment(config: ServeConfig) -> dict[str, str]:
    """Return the environment of all processes that the demo starts."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
    return {
        **safe_environment(kept),
        "QUANTRY_HOST": config.host,
        "QUANTRY_PORT": str(config.port),
        "QUANTRY_DATA_DIR": str(config.data_dir),
        "QUANTRY_MODELS_DIR": str(config.models_dir),
        "PYTHONUNBUFFERED": "1",
    }


def demo_request(size: DemoSize) -> dict[str, Any]:
    """Return the request of the demo's job: the preset, with shorter training and the best available text."""
    dataset = demo_dataset()
    return {
        "model": {"source": "local", "id": DEMO_MODEL},
        "policy": {"preset": _PRESET, "training": {"steps": size.steps}},
        "calibration": {"dataset": dataset, "samples": size.samples, "sequence_length": size.sequence_length},
        "evaluation": {"perplexity": {"dataset": dataset, "tokens": size.perplexity_tokens}},
        "metadata": {"demo": "quantry"},
    }


def demo_dataset() -> str:
    """Return WikiText-2 if the operator has it, else the language reference that is part of Python."""
    datasets = os.environ.get("QUANTRY_DATASETS_DIR")
    return "wikitext2" if datasets and (Path(datasets).expanduser() / "wikitext2").is_dir() else "pydoc"


def prepare_model(config: ServeConfig, environment: dict[str, str], console: Console) -> None:
    """Make ``local:smollm2-135m`` if it is missing, and print each step."""
    spec = replace(demo_model_spec(config, environment), announces=True)
    process = Process(spec, config.logs_dir)
    try:
        for line in process.lines():
            console.print(f"Model: {line}", highlight=False, soft_wrap=True)
        if (code := process.wait()) != 0:
            raise process.failure(f"ended with {describe_exit(code)}")
    finally:
        process.stop()


@contextmanager
def running_service(config: ServeConfig, environment: dict[str, str], console: Console) -> Iterator[str]:
    """Run 'quantry serve' as a child of this process for the block, and yield its URL.

    Raises:
        QuantryError: ``start_failed``, also if it did not stop with exit code 0.
    """
    # SIGTERM, not SIGKILL, when this process dies: the service has children of its own to stop in order.
    spec = ProcessSpec(
        name="serve",
        arguments=("-m", "quantry", "serve", "--no-demo-model"),
        environment=environment,
        death_signal=signal.SIGTERM,
        grace_seconds=60.0,
    )
    process = Process(spec, config.logs_dir)
    try:
        url = _await_url(process, config)
        console.print(f"Service: {url} (files in {config.data_dir})", highlight=False, soft_wrap=True)
        yield url
    finally:
        process.stop()
    if process.exit_code != 0:
        raise process.failure(f"stopped with {describe_exit(process.exit_code or 0)}")


def quantize(client: Quantry, request: dict[str, Any], console: Console) -> Job:
    """Submit the request and follow the job until it has succeeded."""
    for stale in client.jobs(metadata=request["metadata"]):
        if not stale.is_terminal:
            # The job of a demo that was killed: the new job must not wait for it.
            client.cancel(stale.id)
    job = client.submit(request)
    data = request["calibration"]
    console.print(
        f"Job: {job.id}, {_PRESET} on local:{DEMO_MODEL}, calibrated on "
        f"{data['samples']} × {data['sequence_length']} tokens of {data['dataset']}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        job = watch_job(client, job.id, console)
    except KeyboardInterrupt:
        client.cancel(job.id)
        raise
    if job.status == "succeeded":
        return job
    if job.error is not None:
        raise error_from_problem(job.error)
    raise QuantryError(job.status, f"{job.id} was {job.status}.")


def show_results(client: Quantry, job: Job, directory: Path, console: Console) -> None:
    """Print the layers' errors and the summary, and download the files."""
    print_layers(client.layers(job.id), console)
    console.print(summary_table(job.summary or {}))
    client.download(job.id, directory)
    console.print(f"Checkpoint: {directory / 'checkpoint'}", highlight=False, soft_wrap=True)


def show_sample(checkpoint: Path, environment: dict[str, str], console: Console) -> None:
    """Print text from the downloaded checkpoint; the process that generates it gets only the checkpoint."""
    command = [*PYTHON, "-m", "worker.generate_sample", str(checkpoint), "--prompt", _PROMPT]
    try:
        done = subprocess.run(  # noqa: S603 - constants, and a path made here
            command, env=environment, capture_output=True, text=True, check=False, timeout=_SAMPLE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise QuantryError("sample_failed", f"No text within {_SAMPLE_SECONDS:g} s from {checkpoint}.") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise QuantryError("sample_failed", f"The checkpoint {checkpoint} does not generate text: {reason}")
    console.print(f"Sample: {done.stdout.strip()}", highlight=False, soft_wrap=True, markup=False)


def _await_url(process: Process, config: ServeConfig) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.exit_code is not None:
            raise process.failure("ended while starting")
        try:
            state = json.loads(config.state_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            state = {}
        if state.get("pid") == process.pid:  # not the file of an earlier run
            return str(state["url"])
        time.sleep(_STEP_SECONDS)
    raise process.failure(f"was not ready within {_START_SECONDS:g} s")
