"""What the command reads from ``QUANTRY_*`` variables: where the service is, and where one started here writes.

The service's own settings are its rooms' business; they read the same variables, handed on to the processes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantry.errors import QuantryError

_DEFAULT_HOST = "127.0.0.1"
_DEFAULT_PORT = 8000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where a service started here listens and writes. ``port`` 0 takes a free one; paths are absolute."""

    host: str
    port: int
    data_dir: Path
    models_dir: Path

    @property
    def logs_dir(self) -> Path:
        """One file for each process."""
        return self.data_dir / "logs"

    @property
    def state_file(self) -> Path:
        """Written when the service is ready, with its URL; removed when it stops."""
        return self.data_dir / "serve.json"


def serve_config(
    environment: Mapping[str, str] = os.environ,
    *,
    host: str | None = None,
    port: int | None = None,
    data_dir: Path | None = None,
) -> ServeConfig:
    """The configuration from the environment, under what the command line says.

    Raises:
        QuantryError: ``bad_input``, when the port is not one.
    """
    chosen_dir = data_dir or Path(environment.get("QUANTRY_DATA_DIR") or "var")
    absolute = chosen_dir.expanduser().absolute()
    models = environment.get("QUANTRY_MODELS_DIR")
    return ServeConfig(
        host=host or environment.get("QUANTRY_HOST") or _DEFAULT_HOST,
        port=_port_of(environment) if port is None else port,
        data_dir=absolute,
        models_dir=Path(models).expanduser().absolute() if models else absolute / "models",
    )


def service_url(environment: Mapping[str, str] = os.environ) -> str:
    """Where the service is expected: ``QUANTRY_URL``, or the host and port that 'quantry serve' would take."""
    if url := environment.get("QUANTRY_URL"):
        return url.rstrip("/")
    return url_of(environment.get("QUANTRY_HOST") or _DEFAULT_HOST, _port_of(environment))


def api_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """``QUANTRY_API_KEY``. There is no option for it: other users of a machine can read command lines."""
    return environment.get("QUANTRY_API_KEY") or None


def url_of(host: str, port: int) -> str:
    """The URL a client on this machine reaches a server bound to ``host`` by."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(host, host).strip("[]")  # noqa: S104 - a name for it, no bind
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _port_of(environment: Mapping[str, str]) -> int:
    text = environment.get("QUANTRY_PORT") or str(_DEFAULT_PORT)
    if not text.isdecimal() or int(text) > 65535:
        raise QuantryError("bad_input", f"QUANTRY_PORT is {text!r}.", hint="Give a number from 0 (any free) to 65535.")
    return int(text)
