"""The settings of a client from ``QUANTRY_*`` variables: the address of the service, and its API key."""

import os
from collections.abc import Mapping
from typing import Final

from quantry.errors import QuantryError

DEFAULT_HOST: Final = "127.0.0.1"
_DEFAULT_PORT: Final = 8000


def service_url(environment: Mapping[str, str] = os.environ) -> str:
    """Return the service's URL: ``QUANTRY_URL``, or the host and port that 'quantry serve' would use."""
    if url := environment.get("QUANTRY_URL"):
        return url.rstrip("/")
    return url_of(environment.get("QUANTRY_HOST") or DEFAULT_HOST, port_of(environment))


def api_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return ``QUANTRY_API_KEY``. No option gives it, because other users of a machine can read command lines."""
    return environment.get("QUANTRY_API_KEY") or None


def url_of(host: str, port: int) -> str:
    """Return the URL at which a client on this machine reaches a server that is bound to ``host``."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(host, host).strip("[]")  # noqa: S104 - a name for it, no bind
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def port_of(environment: Mapping[str, str]) -> int:
    """Return ``QUANTRY_PORT``, or the default port.

    Raises:
        QuantryError: ``bad_input``, if it is not a port.
    """
    text = environment.get("QUANTRY_PORT") or str(_DEFAULT_PORT)
    if not text.isdecimal() or int(text) > 65535:
        raise QuantryError("bad_input", f"QUANTRY_PORT is {text!r}.", hint="Give a number from 0 (any free) to 65535.")
    return int(text)
