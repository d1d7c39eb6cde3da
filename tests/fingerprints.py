"""The SHA-256 of every file that a small seeded run of each preset writes, to check that a refactoring keeps all bits.

``python -m tests.fingerprints before.json`` writes the list. After the change, ``python -m tests.fingerprints
after.json --against before.json`` compares, prints the differences and exits with 1 if there are any. The hashes are
valid on one machine only, because another processor rounds differently.
"""

import argparse
import hashlib
import json
import pydoc_data.topics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch

from quant_engine.interface.layers import LayerRow
from quant_engine.pipeline import RunSpec, run
from quant_engine.policy import Calibration, Evaluation, InlineTexts, Output, Perplexity, Policy, resolve_policy
from quant_engine.policy.presets import PRESETS
from tests.tiny_models import write_tiny_model

_TEXT: Final = "\n".join(sorted(pydoc_data.topics.topics.values()))
_SHORT: Final[dict[str, dict[str, Any]]] = {
    "paper-2606.09927": {
        "search": {"kind": "paper", "alpha": [0.4, 0.5], "q": [0.99, 1.0], "top": 1, "learning_rates": [0.01]}
    },
    "trainable-smoothrot-w4a4": {
        "training": {"steps": 20, "learning_rates": [0.01], "batch_tokens": 64},
        "search": {"alpha": [0.45, 0.5], "q": [0.99, 1.0]},
    },
    "spinquant-w4a4": {"training": {"steps": 2}},
    "flatquant-w4a4": {"training": {"steps": 6}},
    "omniquant-w4a4": {"training": {"steps": 6}},
    "best-w4a4": {"training": {"steps": 3}, "tuning": {"steps": 3}},
    "hadamard-w4a4": {"tuning": {"steps": 3}},
    "w4a16": {"tuning": {"steps": 3}},
    "w4a16-g128": {"tuning": {"steps": 3}, "weights": {"group_size": 32}},
    "w4a8-fp8": {"tuning": {"steps": 3}},
    "nvfp4": {"tuning": {"steps": 3}},
    "mxfp4": {"tuning": {"steps": 3}},
}
_VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "kurtosis": {"preset": "adaptive-w4a4", "selection": {"kind": "kurtosis"}},
    "differentiable": {"preset": "adaptive-w4a4", "selection": {"kind": "differentiable"}},
    "mixed-overrides": {
        "preset": "w8a8",
        "overrides": [{"match": "*.down_proj", "weights": {"format": "int4", "rounding": "gptq"}}],
    },
}
"""What no preset asks for."""


class _Silent:
    """An observer that ignores all reports."""

    def stage_started(self, name: str, unit: str, total: int) -> None: ...
    def stage_advanced(self, name: str, done: int, total: int) -> None: ...
    def stage_finished(self, name: str, seconds: float, reused: bool) -> None: ...
    def layer_completed(self, row: LayerRow) -> None: ...
    def metric(self, name: str, value: float) -> None: ...
    def log(self, message: str) -> None: ...


def main() -> int:
    """Run every preset, write the list, and compare it with an earlier one."""
    parser = argparse.ArgumentParser(prog="tests.fingerprints", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path, help="an earlier list, to compare with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny_model(Path(scratch, "model"), hidden=128, intermediate=256, outliers=True)
        for name, policy in _policies().items():
            for low_memory in (False, True):
                key = f"{name} (low memory)" if low_memory else name
                found[key] = _fingerprint(model, policy, Path(scratch, "runs", key), low_memory=low_memory)
                print(key, len(found[key]), "files", flush=True)  # noqa: T201 — a script's progress
    options.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return 0 if options.against is None else _compare(json.loads(options.against.read_text()), found)


def _policies() -> dict[str, Policy]:
    asked = {name: {"preset": name, **_SHORT.get(name, {})} for name in PRESETS} | _VARIANTS
    return {name: resolve_policy(Policy.model_validate(fields)) for name, fields in asked.items()}


def _fingerprint(model: Path, policy: Policy, directory: Path, *, low_memory: bool) -> dict[str, str]:
    measured = Perplexity(dataset=InlineTexts(texts=(_TEXT[100_000:104_000],)), tokens=128, sequence_length=32)
    spec = RunSpec(
        model_dir=model,
        policy=policy,
        calibration=Calibration(dataset=InlineTexts(texts=(_TEXT[:3200],)), samples=8, sequence_length=32),
        evaluation=Evaluation(perplexity=measured),
        output=Output(),
        model_id="tiny",
        low_memory=low_memory,
    )
    output = directory / "output"
    run(spec, work_dir=directory / "work", output_dir=output, observer=_Silent())
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def _compare(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    differing = [
        f"{preset}: {path}"
        for preset in sorted(before.keys() | after.keys())
        for path in sorted(before.get(preset, {}).keys() | after.get(preset, {}).keys())
        if before.get(preset, {}).get(path) != after.get(preset, {}).get(path)
    ]
    print("\n".join(differing) or f"The same bits: {sum(map(len, after.values()))} files.")  # noqa: T201 — the verdict
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
