"""The gate: a fresh process loads a checkpoint as its card describes, and compares its logits with a reference.

    python -m quant_engine.checkpoint.verify DIRECTORY REFERENCE.safetensors

:mod:`~quant_engine.checkpoint.reload_check` alone loads a checkpoint with nothing online; our loader loads the others.
Every file also has to be unchanged since the export, because logits on a few tokens do not depend on every byte of an
embedding.

The reference holds ``input_ids`` and ``logits`` of the in-memory model, and as metadata the number of threads. The
command prints one JSON line. The exit status is 0 when max |Δ| = 0, 1 when it is not, and 2 when the
checkpoint can not be loaded.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open

from quant_engine.checkpoint import reload_check
from quant_engine.checkpoint.config import hadamard_order_of
from quant_engine.checkpoint.export import stored_hadamard
from quant_engine.checkpoint.hashes import changed_files
from quant_engine.checkpoint.loading import load
from quant_engine.checkpoint.quantry_section import read_config
from quant_engine.errors import EngineError, InvalidModel, VerificationFailed

_TIMEOUT_SECONDS: Final = 3600
_LOADER: Final = "quant_engine.checkpoint.load"


@dataclass(frozen=True)
class Verification:
    """The result of the fresh process.

    Attributes:
        versions: of Python and of every package that the process imported.
        loader: the function that loaded the checkpoint.
    """

    max_abs_difference: float
    tokens: int
    threads: int
    versions: dict[str, str]
    loader: str


def verify_in_fresh_process(checkpoint: Path, reference: Path) -> Verification:
    """Run the gate.

    Raises:
        VerificationFailed: the logits differ, the checkpoint can not be loaded, or a file is not as it was exported.
    """
    try:
        changed = changed_files(checkpoint)
    except InvalidModel as error:
        raise _failed(f"failed the gate: {error.detail}") from error
    if changed:
        raise _failed(f"failed the gate: not as exported: {', '.join(changed[:3])}")
    # The Hub's settings (a token, a cache) are removed: the gate loads a directory and needs no network.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # In a new process nothing of the model in memory can influence the comparison.
    finished = subprocess.run(  # noqa: S603  # our own interpreter and module, and paths that we made
        [sys.executable, *_program(checkpoint), str(checkpoint), str(reference)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        raise _failed(f"failed the gate, loaded in a fresh process: {_reason(finished)}")
    return Verification(**json.loads(finished.stdout))


def _program(checkpoint: Path) -> list[str]:
    """Return the arguments of the interpreter: a script without modules of this project where nothing is online."""
    # -P: no module is imported from the script's directory or the working directory.
    try:
        universal = _is_universal(checkpoint)
    except EngineError:
        universal = False  # the other program reports the error
    return ["-P", reload_check.__file__] if universal else ["-P", "-m", "quant_engine.checkpoint.verify"]


def _is_universal(checkpoint: Path) -> bool:
    return bool(read_config(checkpoint)["quantry"].get("online") == {})


def _failed(what: str) -> VerificationFailed:
    # Cut, because a library's message can be very long.
    return VerificationFailed(
        detail=f"The exported checkpoint {what}."[:1000],
        hint="The checkpoint is not published. Retry the job; if it fails again, report it with the job's policy.",
    )


def _reason(finished: subprocess.CompletedProcess[str]) -> str:
    # A process that was killed, or that failed before the comparison, prints no JSON.
    try:
        found = json.loads(finished.stdout)
    except ValueError:
        return f"exit status {finished.returncode}, {finished.stderr.strip()[-300:]}"
    return str(found.get("error") or f"max |Δ logits| = {found['max_abs_difference']}")


def compare(checkpoint: Path, reference: Path) -> Verification:
    """Load ``checkpoint`` in this process, as its card describes, and compare its logits with the reference's."""
    _check_stored_hadamards(checkpoint)
    if _is_universal(checkpoint):
        plain = reload_check.measure(checkpoint, reference, reload_check.plain, loader=reload_check.PLAIN)
        return Verification(**plain)
    return Verification(**reload_check.measure(checkpoint, reference, load, loader=_LOADER))


def _check_stored_hadamards(checkpoint: Path) -> None:
    """Check that the stored matrices, which only other runtimes read, equal those that our runtime applies."""
    for shard in checkpoint.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                order = hadamard_order_of(name)
                if order is not None and not torch.equal(file.get_tensor(name), stored_hadamard(order)):
                    raise InvalidModel(
                        detail=f"The stored matrix {name} is not the Hadamard matrix of order {order}.",
                        hint="Export the checkpoint again.",
                    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    checkpoint, reference = reload_check.paths("Compare a checkpoint's logits with a reference's.", arguments)
    try:
        found = compare(checkpoint, reference)
    except (EngineError, *reload_check.LOADING_ERRORS) as error:
        return reload_check.report(reload_check.failed(error))
    return reload_check.report(vars(found))


if __name__ == "__main__":
    raise SystemExit(main())
