"""The gate's measurement: a checkpoint's logits on fixed tokens, beside the in-memory quantized model's.

    python -P quant_engine/checkpoint/reload_check.py DIRECTORY REFERENCE.safetensors

As a script it imports nothing of ours: a universal checkpoint is loaded by what everybody has, transformers and
compressed-tensors, in a process that never saw this project. Prints one JSON line; exit status 0 when max |Δ| = 0, 1
when it is not, 2 when the checkpoint can not be loaded.

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
    """What the gate finds of ``checkpoint`` loaded by ``load``.

    Args:
        reference: ``input_ids`` and ``logits``, and as metadata the number of threads they were computed with.
        loader: the name of ``load``, for the record.
    """
    with safe_open(reference, framework="pt") as file:
        threads = int(file.metadata()["threads"])
        input_ids_BT, expected_BTV = file.get_tensor("input_ids"), file.get_tensor("logits")
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
    """The model as everybody loads it."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", local_files_only=True)


def loaded_versions() -> dict[str, str]:
    """The version of Python and of every installed distribution that this process has imported anything of."""
    providers = importlib.metadata.packages_distributions()
    roots = {name.partition(".")[0] for name in sys.modules}
    names = sorted({distribution for root in roots for distribution in providers.get(root, ())})
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def report(found: dict[str, Any]) -> int:
    """Print what was found, and its exit status."""
    sys.stdout.write(json.dumps(found) + "\n")
    if "error" in found:
        return 2
    return 0 if found["max_abs_difference"] == 0.0 else 1


def failed(error: Exception) -> dict[str, Any]:
    """What :func:`report` says about a checkpoint that can not be loaded."""
    return {"error": f"{type(error).__name__}: {error}"[:500]}


def paths(description: str, arguments: list[str] | None) -> tuple[Path, Path]:
    """The command's two arguments."""
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
    if any(name.partition(".")[0] == "quant_engine" for name in sys.modules):
        return report({"error": "quant_engine was imported where only other people's code may load the checkpoint"})
    return report(found)


if __name__ == "__main__":
    raise SystemExit(_main())
