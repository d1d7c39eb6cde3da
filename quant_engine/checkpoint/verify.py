"""The gate: a fresh process loads a checkpoint as its card says and compares its logits with the in-memory model's.

    python -m quant_engine.checkpoint.verify DIRECTORY REFERENCE.safetensors

The reference holds ``input_ids`` and ``logits``, and as metadata the number of threads. Prints one JSON line; exit
status 0 when max |Δ| = 0, 1 when it is not, 2 when the checkpoint can not be loaded.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from quant_engine.checkpoint.config import hadamard_order_of
from quant_engine.checkpoint.export import stored_hadamard
from quant_engine.checkpoint.loading import load
from quant_engine.checkpoint.section import read_config
from quant_engine.errors import EngineError, UnsafeCheckpoint, VerificationFailed

_PACKAGES: Final = ("torch", "transformers", "compressed-tensors", "safetensors")
_TIMEOUT_SECONDS: Final = 3600


@dataclass(frozen=True)
class Verification:
    """What the fresh process found."""

    max_abs_difference: float
    tokens: int
    threads: int
    versions: dict[str, str]


def verify_in_fresh_process(checkpoint: Path, reference: Path) -> Verification:
    """Run the gate.

    Raises:
        VerificationFailed: the logits differ, or the checkpoint can not be loaded.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    finished = subprocess.run(  # noqa: S603  # our own interpreter and module, and paths that we made
        [sys.executable, "-m", "quant_engine.checkpoint.verify", str(checkpoint), str(reference)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if finished.returncode == 0:
        return Verification(**json.loads(finished.stdout))
    raise VerificationFailed(
        detail=f"The exported checkpoint, loaded in a fresh process, failed the gate: {_reason(finished)}.",
        hint="The checkpoint is not published. Retry the job; if it fails again, report it with the job's policy.",
    )


def _reason(finished: subprocess.CompletedProcess[str]) -> str:
    try:
        found = json.loads(finished.stdout)
    except ValueError:
        return f"exit status {finished.returncode}, {finished.stderr.strip()[-300:]}"
    return str(found.get("error") or f"max |Δ logits| = {found['max_abs_difference']}")


def compare(checkpoint: Path, reference: Path) -> Verification:
    """Load ``checkpoint`` here and compare its logits with the reference's."""
    with safe_open(reference, framework="pt") as file:
        threads = int(file.metadata()["threads"])
        input_ids_BT, expected_BTV = file.get_tensor("input_ids"), file.get_tensor("logits")
    torch.set_num_threads(threads)
    _check_stored_hadamards(checkpoint)
    model = _loaded_as_the_card_says(checkpoint)
    with torch.no_grad():
        logits_BTV = model(input_ids_BT, use_cache=False).logits
    difference = (logits_BTV.double() - expected_BTV.double()).abs().max()
    return Verification(
        max_abs_difference=float(torch.nan_to_num(difference, nan=float("inf"))),
        tokens=input_ids_BT.numel(),
        threads=threads,
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
    )


def _loaded_as_the_card_says(checkpoint: Path) -> Any:
    """By transformers alone where nothing is online, else by our loader."""
    if read_config(checkpoint)["quantry"].get("online") != {}:
        return load(checkpoint)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", local_files_only=True)


def _check_stored_hadamards(checkpoint: Path) -> None:
    """The matrices that other runtimes read, and ours does not, have to be the ones that our runtime applies."""
    for shard in checkpoint.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                order = hadamard_order_of(name)
                if order is not None and not torch.equal(file.get_tensor(name), stored_hadamard(order)):
                    raise UnsafeCheckpoint(
                        detail=f"The stored matrix {name} is not the Hadamard matrix of order {order}.",
                        hint="Export the checkpoint again.",
                    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare a checkpoint's logits with a reference's.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("reference", type=Path)
    options = parser.parse_args(arguments)
    try:
        found = compare(options.checkpoint, options.reference)
    except (EngineError, SafetensorError, OSError, ValueError, RuntimeError) as error:
        sys.stdout.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}) + "\n")
        return 2
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0 if found.max_abs_difference == 0.0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
