"""The two consoles and the connection to the service, which all commands of ``quantry`` share."""

from typing import Annotated

import typer
from rich.console import Console

from quantry.client import Quantry
from quantry.environment import api_key, service_url

# Results go to standard output, for pipes; everything else goes to standard error.
out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Url = Annotated[str | None, typer.Option("--url", help="The service; default QUANTRY_URL, or where serve listens.")]


def open_client(url: str | None) -> Quantry:
    """Return a client of the service at ``url``, or of the service that the environment names."""
    return Quantry(url or service_url(), api_key())
