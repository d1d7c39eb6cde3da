"""The Python client of a Quantry service (``from quantry import Quantry``), and the command ``quantry``.

======================  ====================================================================================
``quantry.client``      :class:`Quantry`: submit a job, follow it, download its files.
``quantry.results``     The answers of the service, as frozen types.
``quantry.errors``      :class:`QuantryError`, the one exception of the client.
``quantry.webhooks``    For receivers of webhooks: ``verify`` checks a message. Standard library only.
``quantry.cli``         The commands of ``quantry``.
``quantry.terminal``    Tables and progress on a terminal.
``quantry.service``     Runs the whole service on this machine. Needs ``pip install 'quantry[server,worker]'``.
======================  ====================================================================================

The names below are imported on first use. So a receiver that imports :mod:`quantry.webhooks` loads no HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

# For type checkers and editors, which do not run __getattr__.
if TYPE_CHECKING:
    from quant_engine.policy import JobRequest, Policy
    from quantry.client import Quantry
    from quantry.errors import FieldError, QuantryError
    from quantry.results import (
        Artifact,
        BytesProgress,
        Credential,
        Eta,
        Event,
        HubCommit,
        Job,
        Layer,
        Progress,
        Publication,
        Stage,
    )
    from quantry.webhook_calls import Delivery, Webhook

__all__ = [
    "Artifact",
    "BytesProgress",
    "Credential",
    "Delivery",
    "Eta",
    "Event",
    "FieldError",
    "HubCommit",
    "Job",
    "JobRequest",
    "Layer",
    "Policy",
    "Progress",
    "Publication",
    "Quantry",
    "QuantryError",
    "Stage",
    "Webhook",
]

_MODULES: Final = {
    "quant_engine.policy": ("JobRequest", "Policy"),
    "quantry.client": ("Quantry",),
    "quantry.errors": ("FieldError", "QuantryError"),
    "quantry.results": (
        *("Artifact", "BytesProgress", "Credential", "Eta", "Event", "HubCommit", "Job", "Layer", "Progress"),
        *("Publication", "Stage"),
    ),
    "quantry.webhook_calls": ("Delivery", "Webhook"),
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the module that defines ``name``, on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF[name]), name)
    # The next access finds the name itself, and does not call this function again.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
