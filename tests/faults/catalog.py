"""The jobs of the harness: their requests, and their expected results."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.faults.runner import BEHAVIOR, chain
from tests.sound_model import write_sound_model


@dataclass(frozen=True)
class Kind:
    """A kind of job: its model's behavior (None: the real engine), its expected end, and how often it is chosen."""

    name: str
    behavior: dict[str, Any] | None
    status: str = "succeeded"
    code: str | None = None
    weight: int = 0
    silent_seconds: float = 60.0  # how long one may say nothing while it is held

    def sha256(self, job_id: str) -> str | None:
        """Return the digest of the result that a job publishes; None if it is not known beforehand."""
        if self.behavior is None or "steps" not in self.behavior:
            return None
        return hashlib.sha256(chain(job_id, self.behavior["steps"]).encode()).hexdigest()


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("quick", {"kind": "steps", "steps": 3, "step_seconds": 0.05}, weight=10),
        Kind("steps", {"kind": "steps", "steps": 10, "step_seconds": 0.2}, weight=10),
        Kind("medium", {"kind": "steps", "steps": 20, "step_seconds": 0.25}, weight=3),
        Kind("long", {"kind": "steps", "steps": 40, "step_seconds": 0.25}, weight=1),
        Kind("poison", {"kind": "poison"}, status="failed", code="crash_loop", weight=1),
        Kind("memory", {"kind": "memory", "steps": 3, "step_seconds": 0.05}, weight=1),
        Kind("disk", {"kind": "disk"}, status="failed", code="disk_full", weight=1),
        Kind("tiny", None, silent_seconds=300.0),
    )
}

_TINY: Final[dict[str, Any]] = {
    "policy": {
        "preset": "trainable-smoothrot-w4a4",
        "search": {"alpha": [0.5], "q": [1.0], "layers": {"critical": 1, "normal": 1}},
        "training": {"steps": 20, "warmup": 2, "patience": 20},
    },
    "calibration": {"dataset": "pydoc", "samples": 8, "sequence_length": 32},
    "evaluation": {"perplexity": {"dataset": "pydoc", "tokens": 256, "sequence_length": 32}},
}


def write_models(models_dir: Path) -> None:
    """Write a directory under ``models_dir`` for every kind except the real one, whose checkpoint the caller writes."""
    for kind in KINDS.values():
        model = models_dir / kind.name
        model.mkdir(parents=True)
        if kind.behavior is not None:
            write_sound_model(model)
            (model / BEHAVIOR).write_text(json.dumps(kind.behavior))


def request(kind: str, key: str) -> dict[str, Any]:
    """Return the body of ``POST /v1/jobs``; the key is stored as metadata, so that the job can be recognized by it."""
    body: dict[str, Any] = {"model": {"source": "local", "id": kind}, "metadata": {"kind": kind, "key": key}}
    return {**body, **(_TINY if KINDS[kind].behavior is None else {})}
