"""The subprocess that publishes on the Hub: ``python -m worker.publishing publish.json --events-fd N --token-fd M``.

The token comes over the second descriptor and is used only in the ``Authorization`` header of requests to the Hub. The
messages are those of the runner; the ``result`` carries ``sha``, ``url`` and ``created_repo``. The process exits with 0
after it, and with 1 after ``error``.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from huggingface_hub import HfApi

from jobs.observability.logs import configure_logging
from quant_engine.interface.stages import PUBLISH
from worker.publishing.commit import HubUpload
from worker.publishing.errors import publish_error
from worker.publishing.http import Meter, install
from worker.publishing.request import PublishFile
from worker.subprocesses.messages import EventWriter, Result, StageAdvanced
from worker.subprocesses.parent_death import die_with_parent
from worker.subprocesses.token_pipe import read_token

_PROGRESS_SECONDS: Final = 0.5
_EXIT_FAILED: Final = 1

logger = structlog.get_logger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Publish the checkpoint that ``publish.json`` describes."""
    parser = argparse.ArgumentParser(prog="worker.publishing", description="Publishes one checkpoint on the Hub.")
    parser.add_argument("publish_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--token-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    configure_logging()
    for name in ("httpx", "huggingface_hub"):  # their lines contain presigned addresses, which are secrets for an hour
        logging.getLogger(name).setLevel(logging.CRITICAL)
    token = read_token(options.token_fd)
    request = PublishFile.model_validate_json(options.publish_file.read_bytes())
    die_with_parent(request.parent_pid)
    events = EventWriter(options.events_fd)
    meter = Meter()
    install(meter)
    upload = HubUpload(HfApi(token=token, library_name="quantry"), request, meter)
    try:
        with _reporting(upload, events):
            published = upload.run()
    except Exception as error:  # noqa: BLE001 — the top of the process: every failure must be reported
        reported = publish_error(error, request)
        events.send(reported)
        # A traceback of the Hub client contains presigned addresses too, so only types and places are logged.
        logger.error("publication_failed", code=reported.code, causes=_chain(error))
        return _EXIT_FAILED
    events.send(Result(payload={"sha": published.sha, "url": published.url, "created_repo": published.created_repo}))
    return os.EX_OK


@contextmanager
def _reporting(upload: HubUpload, events: EventWriter) -> Iterator[None]:
    """Send the number of uploaded bytes about twice a second, until the ``with`` block ends."""
    over = threading.Event()

    def report() -> None:
        total = upload.request.bytes
        events.send(StageAdvanced(name=PUBLISH.name, done=upload.bytes_done(), total=total))

    def watch() -> None:
        while not over.wait(_PROGRESS_SECONDS):
            report()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        report()


def _chain(error: BaseException) -> str:
    """Return the types of an error and its causes, with the line that raised each, but without their texts."""
    names = []
    cause: BaseException | None = error
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        names.append(f"{type(cause).__name__} at {place}")
        cause = cause.__cause__ or cause.__context__
    return " from ".join(names)


if __name__ == "__main__":
    sys.exit(main())
