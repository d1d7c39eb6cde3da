"""The subprocess that fetches from the Hub: ``python -m worker.download download.json --events-fd N``.

``download.json`` names a model or a data set.

With ``--token-fd M`` it also gets a Hub token; no other process of a job has one. It sends the same messages as the
runner: for a model first the commit of the revision, at the end a ``result`` with ``path`` and ``revision``.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Final

import httpx
import structlog
from pydantic import TypeAdapter

from jobs.observability.logs import configure_logging
from worker.download import problems
from worker.download.dataset import DatasetDownload
from worker.download.dataset_problems import as_dataset_error
from worker.download.download import Download
from worker.download.snapshot import Connection, Snapshot
from worker.subprocesses.messages import DatasetDownloadFile, DownloadFile, Error, EventWriter, Result
from worker.subprocesses.parent_death import die_with_parent
from worker.subprocesses.token_pipe import TOKEN_OPTION, read_token

_EXIT_FAILED: Final = 1
_FILE: Final[TypeAdapter[DownloadFile | DatasetDownloadFile]] = TypeAdapter(DownloadFile | DatasetDownloadFile)

logger = structlog.get_logger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Fetch the model that ``download.json`` names. The exit status is 0 after ``result``, and 1 after ``error``."""
    parser = argparse.ArgumentParser(prog="worker.download", description="Fetches a model or a data set from the Hub.")
    parser.add_argument("download_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument(TOKEN_OPTION, type=int, dest="token_fd")
    options = parser.parse_args(arguments)
    configure_logging()
    # Its lines contain whole addresses, and a signed address gives anyone access to a file.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    request = _FILE.validate_json(options.download_file.read_bytes())
    die_with_parent(request.parent_pid)
    events = EventWriter(options.events_fd)
    token = read_token(options.token_fd)
    try:
        snapshot = _fetch(request, Connection(token=token, patience_seconds=request.patience_seconds, events=events))
    except Exception as error:  # the top of the process: every failure must be reported to the supervisor
        events.send(_as_error(error, request, has_token=token is not None))
        # The error of a request contains its address, and a signed address gives anyone access to a file.
        logger.error("download_failed", error=type(error).__name__, exc_info=_safe_to_log(error))
        return _EXIT_FAILED
    events.send(Result(payload={"path": str(snapshot.directory), "revision": snapshot.commit}))
    return os.EX_OK


def _fetch(request: DownloadFile | DatasetDownloadFile, connection: Connection) -> Snapshot:
    if isinstance(request, DatasetDownloadFile):
        return DatasetDownload(request, connection).fetch()
    return Download(request, connection).fetch()


def _as_error(error: Exception, request: DownloadFile | DatasetDownloadFile, *, has_token: bool) -> Error:
    if isinstance(request, DatasetDownloadFile):
        return as_dataset_error(error, request, has_token=has_token)
    return problems.as_download_error(error, request, has_token=has_token)


def _safe_to_log(error: Exception) -> Exception | None:
    return None if isinstance(error, httpx.HTTPError) else error


if __name__ == "__main__":
    sys.exit(main())
