"""Where a service that is started here listens and writes, from ``QUANTRY_*`` variables; and the demo's size.

The API and the worker have settings of their own; they read the same variables, which are handed on to the processes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantry.environment import DEFAULT_HOST, port_of


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


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo does: small enough for two cores, large enough to be the real thing."""

    samples: int = 96
    steps: int = 40
    perplexity_tokens: int = 4096
    sequence_length: ClassVar[int] = 128


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
        host=host or environment.get("QUANTRY_HOST") or DEFAULT_HOST,
        port=port_of(environment) if port is None else port,
        data_dir=absolute,
        models_dir=Path(models).expanduser().absolute() if models else absolute / "models",
    )
