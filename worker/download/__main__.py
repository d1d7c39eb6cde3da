"""The subprocess that fetches a model from the Hub: ``python -m worker.download download.json --events-fd N``.

With ``--token-fd M`` it also gets a Hub token; no other process of a job has one. It sends the same messages as the
runner: first the commit of the revision, at the end a ``result`` with ``path`` and ``revision``.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Final

import httpx
import structlog

from jobs.observability.logs import configure_logging
from worker.download import problems
from worker.download.download import Download
from worker.subprocesses.messages import DownloadFile, EventWriter, Result
from worker.subprocesses.parent_death import die_with_parent
from worker.subprocesses.token_pipe import TOKEN_OPTION, read_token

_EXIT_FAILED: Final = 1

logger = structlog.get_logger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Fetch the model that ``download.json`` names. The exit status is 0 after ``result``, and 1 after ``error``."""
    parser = argparse.ArgumentParser(prog="worker.download", description="Fetches one model from the Hub.")
    parser.add_argument("download_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument(TOKEN_OPTION, type=int, dest="token_fd")
    options = parser.parse_args(arguments)
    configure_logging()
    # Its lines contain whole addresses, and a signed address gives anyone access to a file.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    request = DownloadFile.model_validate_json(options.download_file.read_bytes())
    die_with_parent(request.parent_pid)
    events = EventWriter(options.events_fd)
    token = read_token(options.token_fd)
    try:
        snapshot = Download(request, token, events).fetch()
    except Exception as error:  # the top of the process: every failure must be reported to the supervisor
        events.send(problems.as_download_error(error, request, has_token=token is not None))
        # The error of a request contains its address, and a signed address gives anyone access to a file.
        logger.error("download_failed", error=type(error).__name__, exc_info=_safe_to_log(error))
        return _EXIT_FAILED
    events.send(Result(payload={"path": str(snapshot.directory), "revision": snapshot.commit}))
    return os.EX_OK


def _safe_to_log(error: Exception) -> Exception | None:
    return None if isinstance(error, httpx.HTTPError) else error


if __name__ == "__main__":
    sys.exit(main())
