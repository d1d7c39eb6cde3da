"""Compare a checkpoint's logits on fixed tokens with those of the in-memory quantized model, for the gate.

    python -P quant_engine/checkpoint/reload_check.py DIRECTORY REFERENCE.safetensors

As a script it imports no module of this project: a universal checkpoint is loaded with transformers and
compressed-tensors alone, as any user would. It prints one JSON line. The exit status is 0 when max |Δ| = 0, 1 when it
is not, and 2 when the checkpoint can not be loaded.

Shapes: B samples, T tokens, V vocabulary.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

PLAIN: Final = "transformers.AutoModelForCausalLM.from_pretrained"
LOADING_ERRORS: Final = (SafetensorError, OSError, ValueError, RuntimeError)


def measure(checkpoint: Path, reference: Path, load: Callable[[Path], Any], *, loader: str) -> dict[str, Any]:
    """Load ``checkpoint`` with ``load``, and return the gate's measurements.

    Args:
        reference: a file with ``input_ids`` and ``logits``; its metadata have the number of threads.
        loader: the name of ``load``, for the result.
    """
    with safe_open(reference, framework="pt") as file:
        threads = int(file.metadata()["threads"])
        input_ids_BT, expected_BTV = file.get_tensor("input_ids"), file.get_tensor("logits")
    # The number of threads decides how sums are split, and so their bits.
    torch.set_num_threads(threads)
    model = load(checkpoint)
    with torch.no_grad():
        logits_BTV = model(input_ids_BT, use_cache=False).logits
    difference = (logits_BTV.double() - expected_BTV.double()).abs().max()
    return {
        "max_abs_difference": float(torch.nan_to_num(difference, nan=float("inf"))),
        "tokens": input_ids_BT.numel(),
        "threads": threads,
        "versions": loaded_versions(),
        "loader": loader,
    }


def plain(checkpoint: Path) -> Any:
    """Load the model as any user of transformers does."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", local_files_only=True)


def loaded_versions() -> dict[str, str]:
    """Return the version of Python and of every distribution from which this process has imported a module."""
    providers = importlib.metadata.packages_distributions()
    roots = {name.partition(".")[0] for name in sys.modules}
    names = sorted({distribution for root in roots for distribution in providers.get(root, ())})
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def report(found: dict[str, Any]) -> int:
    """Print the result, and return the exit status."""
    sys.stdout.write(json.dumps(found) + "\n")
    if "error" in found:
        return 2
    return 0 if found["max_abs_difference"] == 0.0 else 1


def failed(error: Exception) -> dict[str, Any]:
    """Return the result for :func:`report` of a checkpoint that can not be loaded."""
    return {"error": f"{type(error).__name__}: {error}"[:500]}


def paths(description: str, arguments: list[str] | None) -> tuple[Path, Path]:
    """Parse the command's two arguments."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("reference", type=Path)
    options = parser.parse_args(arguments)
    return options.checkpoint, options.reference


def _main() -> int:
    checkpoint, reference = paths("Compare what from_pretrained gives with a reference's logits.", None)
    try:
        found = measure(checkpoint, reference, plain, loader=PLAIN)
    except LOADING_ERRORS as error:
        return report(failed(error))
    # The check proves that the checkpoint loads without this project, so none of its modules may be imported.
    if any(name.partition(".")[0] == "quant_engine" for name in sys.modules):
        return report({"error": "quant_engine was imported where only other people's code may load the checkpoint"})
    return report(found)


if __name__ == "__main__":
    raise SystemExit(_main())
