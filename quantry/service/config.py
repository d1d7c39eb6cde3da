"""The address and directories of a service that is started here, from ``QUANTRY_*`` variables; and the demo's size.

The API and the worker have settings of their own. They read the same variables, which their processes inherit.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantry.environment import DEFAULT_HOST, port_of


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The address and directories of a service started here. ``port`` 0 takes a free one; paths are absolute."""

    host: str
    port: int
    data_dir: Path
    models_dir: Path

    @property
    def logs_dir(self) -> Path:
        """The directory of log files, one for each process."""
        return self.data_dir / "logs"

    @property
    def state_file(self) -> Path:
        """The file with the URL and the process id; written when the service is ready, removed when it stops."""
        return self.data_dir / "serve.json"


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """The size of the demo: small enough for two cores, large enough for a real result."""

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
    """Return the configuration: the options of the command line first, then the environment.

    Raises:
        QuantryError: ``bad_input``, if the port is not valid.
    """
    chosen_dir = data_dir or Path(environment.get("QUANTRY_DATA_DIR") or "var")
    # Absolute, because the child processes may have another current directory.
    absolute = chosen_dir.expanduser().absolute()
    models = environment.get("QUANTRY_MODELS_DIR")
    return ServeConfig(
        host=host or environment.get("QUANTRY_HOST") or DEFAULT_HOST,
        port=port_of(environment) if port is None else port,
        data_dir=absolute,
        models_dir=Path(models).expanduser().absolute() if models else absolute / "models",
    )
