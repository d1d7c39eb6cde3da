"""What every command of ``quantry`` shares: its two consoles, and the service that it talks to."""

from typing import Annotated

import typer
from rich.console import Console

from quantry.client import Quantry
from quantry.environment import api_key, service_url

out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Url = Annotated[str | None, typer.Option("--url", help="The service; default QUANTRY_URL, or where serve listens.")]


def open_client(url: str | None) -> Quantry:
    """A client of the service at ``url``, or of the one that the environment names."""
    return Quantry(url or service_url(), api_key())
