"""The command ``python -P -m api --fd N``, which serves the API on a listening socket that the parent process passes.

``uvicorn api.main:app`` also serves the API, on a socket that it opens. But it puts the current directory first on the
path, and a folder ``api`` or ``jobs`` of another project in that directory would then be imported. This command does
not do that, and with ``-P`` neither does Python.
"""

import argparse
from typing import Final

import uvicorn

from api.http_protocol import BoundedHttp

_STOP_SECONDS: Final = 5


def main() -> None:
    """Serve until SIGINT or SIGTERM; open connections then have a few seconds to end."""
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve the API.")
    parser.add_argument("--fd", type=int, required=True, help="the number of the listening socket")
    uvicorn.run("api.main:app", fd=parser.parse_args().fd, http=BoundedHttp, timeout_graceful_shutdown=_STOP_SECONDS)


if __name__ == "__main__":
    main()
