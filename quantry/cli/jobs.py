"""The commands for one job: ``quantry submit``, ``watch``, ``cancel``, ``retry``, ``layers`` and ``download``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from quant_engine.policy import popular_presets
from quantry.cli.console import Url, err, open_client, out
from quantry.cli.publish import follow_publications, hub_target
from quantry.client import Quantry
from quantry.errors import QuantryError, error_from_problem
from quantry.results import Artifact, Job
from quantry.terminal.tables import layers_as_csv, print_layers, summary_table
from quantry.terminal.watch import watch_job

# The exit status of shells after Ctrl-C: 128 + SIGINT.
_INTERRUPTED: Final = 130

JobId = Annotated[str, typer.Argument(help="The job's id, as submit printed it.")]


def submit(
    model: Annotated[str, typer.Argument(help="local:NAME, or an id on the Hub.")],
    preset: Annotated[str | None, typer.Option(help="Such as w4a16. Without it, --policy has to name one.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A JSON file whose fields override the preset's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Calibration and evaluation text.")] = None,
    evaluation_dataset: Annotated[str | None, typer.Option(help="Evaluation text, if it is another one.")] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration samples.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of a sample.")] = None,
    credential: Annotated[
        str | None, typer.Option(help="A stored Hub token's id, for the model and for --publish.")
    ] = None,
    publish_to: Annotated[
        str | None,
        typer.Option("--publish", metavar="OWNER/NAME", help="Push the checkpoint there, private, at the end."),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="What to write besides the checkpoint: gguf-source, for llama.cpp.")
    ] = None,
    url: Url = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
) -> None:
    """Create a job; print its id."""
    sizes = {"samples": samples, "sequence_length": sequence_length}
    request: dict[str, Any] = {
        "model": model_reference(model, credential),
        "policy": read_policy(policy, preset),
        "calibration": {key: value for key, value in {"dataset": dataset, **sizes}.items() if value is not None},
    }
    if (evaluation := evaluation_dataset or dataset) is not None:
        request["evaluation"] = {"perplexity": {"dataset": evaluation}}
    output: dict[str, Any] = {"also": also} if also else {}
    if publish_to is not None:
        output["hub"] = hub_target(publish_to, credential=credential)
    if output:
        request["output"] = output
    with open_client(url) as client:
        job = client.submit(request)
        out.print(job.id, highlight=False)
        if watch:
            _watch(client, job.id)
        else:
            err.print(f"Follow it with: quantry watch {job.id}")


def watch(job: JobId, url: Url = None) -> None:
    """Follow a job to its end. Ctrl-C stops watching, not the job."""
    with open_client(url) as client:
        _watch(client, job)


def layers(
    job: JobId,
    url: Url = None,
    sort: Annotated[str | None, typer.Option(help="A field, such as -error: the largest error first.")] = None,
    *,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Show the error of each layer."""
    with open_client(url) as client:
        rows = client.layers(job, sort=sort)
    if csv:
        sys.stdout.write(layers_as_csv(rows))
    else:
        print_layers(rows, out)


def download(
    job: JobId,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Created if it is missing.")],
    url: Url = None,
) -> None:
    """Download a job's files; after an interruption, run it again to continue."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with open_client(url) as client, Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(artifact: Artifact, have: int) -> None:
            if artifact.id not in tasks:
                tasks[artifact.id] = bars.add_task(escape(artifact.path), total=artifact.bytes)
            bars.update(tasks[artifact.id], completed=have)

        paths = client.download(job, directory, on_bytes=show)
    for path in paths:
        out.print(str(path), highlight=False, soft_wrap=True, markup=False)


def cancel(job: JobId, url: Url = None) -> None:
    """Cancel a job. Once this returns, the job is certain to stop, also if no worker runs now."""
    with open_client(url) as client:
        cancelled = client.cancel(job)
    if cancelled.is_terminal:
        err.print(f"{job} is cancelled.")
    else:
        err.print(f"{job} is being cancelled: its worker stops it within seconds.")


def retry(
    job: JobId,
    from_stage: Annotated[
        str | None, typer.Option(help="Compute this stage and those after it anew, such as train.")
    ] = None,
    url: Url = None,
) -> None:
    """Queue a failed or cancelled job again; it resumes from the stages that are complete."""
    with open_client(url) as client:
        retried = client.retry(job, from_stage=from_stage)
    err.print(f"{retried.id} is queued again. Follow it with: quantry watch {retried.id}")


def model_reference(text: str, credential: str | None = None) -> dict[str, str]:
    """Return ``local:NAME``, ``hub:ID`` or ``ID`` as the request's ``model``, with the credential for it."""
    access = {} if credential is None else {"credential": credential}
    source, colon, name = text.partition(":")
    if not colon:
        return {"source": "hub", "id": text, **access}
    if source not in ("local", "hub"):
        remedy = "Write local:NAME, or an id on the Hub."
        raise QuantryError("bad_input", f"Unknown model source {source!r}.", hint=remedy)
    return {"source": source, "id": name, **access}


def read_policy(path: Path | None, preset: str | None) -> dict[str, Any]:
    """Return the file's fields, with the preset of the command line in place of the file's."""
    if path is None and preset is None:
        raise QuantryError("policy_required", popular_presets(), hint="Name one with --preset.")
    fields: Any = {}
    if path is not None:
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise QuantryError("bad_input", f"{path} is not JSON: {error}.", hint="Correct the file.") from error
        if not isinstance(fields, dict):
            raise QuantryError("bad_input", f"{path} holds no JSON object.", hint='Write {"targets": […], …}.')
    return fields if preset is None else {**fields, "preset": preset}


def _watch(client: Quantry, job_id: str) -> None:
    try:
        job = watch_job(client, job_id, err)
    except KeyboardInterrupt:
        err.print(f"Stopped watching; {job_id} goes on. Look again: quantry watch {job_id}")
        raise typer.Exit(_INTERRUPTED) from None
    _conclude(job)
    follow_publications(client, job)


def _conclude(job: Job) -> None:
    if job.status == "succeeded":
        out.print(summary_table(job.summary or {}))
        err.print(f"{job.id} succeeded. Its files: quantry download {job.id} DIR")
        return
    if job.error is not None:
        raise error_from_problem(job.error)
    raise QuantryError(job.status, f"{job.id} was {job.status}.", hint=f"Take it up again: quantry retry {job.id}")
