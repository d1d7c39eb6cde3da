"""The subprocess that fetches a model from the Hub: ``python -m worker.download download.json --events-fd N``.

With a token it is also given ``--token-fd M``; nothing else of a job's processes holds one. Speaks the runner
protocol: it reports the commit of the revision first, and its ``result`` carries ``path`` and ``revision``.
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
    """Fetch one model as ``download.json`` says. Exit 0 after ``result``, 1 after ``error``."""
    parser = argparse.ArgumentParser(prog="worker.download", description="Fetches one model from the Hub.")
    parser.add_argument("download_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument(TOKEN_OPTION, type=int, dest="token_fd")
    options = parser.parse_args(arguments)
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines show whole addresses, and signed ones open files
    request = DownloadFile.model_validate_json(options.download_file.read_bytes())
    die_with_parent(request.parent_pid)
    events = EventWriter(options.events_fd)
    token = read_token(options.token_fd)
    try:
        snapshot = Download(request, token, events).fetch()
    except Exception as error:  # the process's edge: whatever it is, the supervisor must hear of it
        events.send(problems.as_download_error(error, request, has_token=token is not None))
        # What a request raised names its address, and a signed one opens a file to anybody.
        logger.error("download_failed", error=type(error).__name__, exc_info=_safe_to_log(error))
        return _EXIT_FAILED
    events.send(Result(payload={"path": str(snapshot.directory), "revision": snapshot.commit}))
    return os.EX_OK


def _safe_to_log(error: Exception) -> Exception | None:
    return None if isinstance(error, httpx.HTTPError) else error


if __name__ == "__main__":
    sys.exit(main())
