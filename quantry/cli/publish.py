"""``quantry publish``: push a finished job's checkpoint to the Hub, and follow the push."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from quantry.cli.console import Url, err, open_client, out
from quantry.client import Quantry
from quantry.errors import QuantryError, error_from_problem
from quantry.results import Job, Publication

_LINE_EVERY_SECONDS: Final = 15.0
# The exit status of shells after Ctrl-C: 128 + SIGINT.
_INTERRUPTED: Final = 130


def publish(
    job: Annotated[str, typer.Argument(help="The job's id, as submit printed it.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Created as private if it is missing.")],
    revision: Annotated[str, typer.Option(help="The branch; created from main if it is missing.")] = "main",
    credential: Annotated[str | None, typer.Option(help="A stored Hub token's id; default: the operator's.")] = None,
    url: Url = None,
    *,
    public: Annotated[bool, typer.Option("--public", help="Anyone may see the repository.")] = False,
) -> None:
    """Push a job's checkpoint to the Hub. Publishing the same files twice makes only one commit."""
    with open_client(url) as client:
        publication = client.publish(job, repo, private=not public, revision=revision, credential=credential)
        follow_publication(client, publication.id)


def hub_target(repo: str, *, credential: str | None) -> dict[str, Any]:
    """Return the request's ``output.hub``."""
    return {"repo": repo, **({} if credential is None else {"credential": credential})}


def follow_publications(client: Quantry, job: Job) -> None:
    """Follow the publications that the job's request asked for. Raises: QuantryError: one failed."""
    # The service lists the newest first.
    for publication in reversed(list(client.publications(job.id)) if _publishes(job) else []):
        follow_publication(client, publication.id)


def follow_publication(client: Quantry, publication_id: str) -> None:
    """Show the progress, and print the commit's URL at the end. Ctrl-C stops watching, not the push.

    Raises:
        QuantryError: the publication failed.
    """
    latest: Publication | None = None
    try:
        with _view(err) as show:
            for latest in client.publishing(publication_id):
                show(latest)
    except KeyboardInterrupt:
        err.print(f"Stopped watching; {publication_id} goes on.")
        raise typer.Exit(_INTERRUPTED) from None
    _conclude(latest)


def _conclude(publication: Publication | None) -> None:
    if publication is not None and publication.commit is not None:
        out.print(publication.commit.url, highlight=False, soft_wrap=True, markup=False)
        return
    if publication is not None and publication.error is not None:
        raise error_from_problem(publication.error)
    raise QuantryError("bad_response", "The publication ended without a commit.", hint="Look at the service's log.")


@contextmanager
def _view(console: Console) -> Iterator[Callable[[Publication], None]]:
    """Yield a function that shows progress: a live bar on a terminal, else lines."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=None)

        def show(publication: Publication) -> None:
            progress = publication.progress
            bar.update(
                task, description=escape(_phase(publication)), completed=progress.bytes_done, total=progress.bytes_total
            )

        yield show


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""
        self._next = 0.0

    def __call__(self, publication: Publication) -> None:
        phase = _phase(publication)
        if phase == self._shown and time.monotonic() < self._next:
            return
        self._shown, self._next = phase, time.monotonic() + _LINE_EVERY_SECONDS
        progress = publication.progress
        share = f"{progress.bytes_done / progress.bytes_total:4.0%}" if progress.bytes_total else "    "
        self._console.print(f"{share}  {phase}", markup=False, soft_wrap=True)


def _phase(publication: Publication) -> str:
    if publication.status == "queued" and publication.last_error is not None:
        return f"waits to try again: {publication.last_error.get('detail', 'the Hub is busy')}"
    return {"running": f"publishing to {publication.repo}"}.get(publication.status, publication.status)


def _publishes(job: Job) -> bool:
    asked = getattr(job, "output", None)
    return isinstance(asked, dict) and asked.get("hub") is not None
