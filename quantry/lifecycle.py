"""``quantry cancel`` and ``quantry retry``: a job's end before its time, and what may come after its end."""

from typing import Annotated

import typer

from quantry.console import Url, err, open_client

JobId = Annotated[str, typer.Argument(help="The job's id, as submit printed it.")]


def cancel(job: JobId, url: Url = None) -> None:
    """Stop a job. It is certain to stop once this returns, also while no worker runs."""
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
    """Take a failed or cancelled job up again, from what its attempts left."""
    with open_client(url) as client:
        retried = client.retry(job, from_stage=from_stage)
    err.print(f"{retried.id} is queued again. Follow it with: quantry watch {retried.id}")
