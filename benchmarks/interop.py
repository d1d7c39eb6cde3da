"""Check that two environments read each other's checkpoints, by the largest difference of their logits.

python -m benchmarks.interop --peer-python PEER/bin/python --checkpoint OURS --peer-checkpoint THEIRS --json out.json

The peer is a separate environment with llmcompressor, compressed-tensors and transformers. It runs a script that
imports none of our code, loads the directory with plain ``from_pretrained``, and writes its logits on fixed tokens. Our
logits are streamed block by block, as ``policy.preset: "evaluate"`` does. Both sides use the same number of threads.

Shapes: B sequences, T tokens, V vocabulary.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.models import CheckpointSource, StreamedModel, WeightSource
from quant_engine.stages.context.source import open_source

_TIMEOUT_SECONDS: Final = 1800
_PEER_SCRIPT: Final = """
import importlib.metadata, json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

directory, tokens, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True).eval()
with torch.no_grad():
    logits = model(load_file(tokens)["input_ids"], use_cache=False).logits
save_file({"logits": logits.contiguous()}, out)
packages = ("llmcompressor", "compressed-tensors", "transformers", "torch")
versions = {name: importlib.metadata.version(name) for name in packages}
foreign = sorted(name for name in sys.modules if name.split(".")[0] in ("quant_engine", "jobs", "worker"))
print(json.dumps({"versions": versions, "foreign": foreign}))
"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of one checkpoint, read on both sides.

    Attributes:
        writer: the side that wrote the checkpoint: ``ours`` or ``peer``.
        max_abs_difference: the largest difference of the logits; None if the peer could not read the checkpoint.
            ``error`` then holds the reason.
        max_abs_logit: the largest of the peer's logits, as a scale for the difference.
    """

    writer: str
    checkpoint: str
    format: str
    dtype: str
    tokens: int
    max_abs_difference: float | None
    max_abs_logit: float | None
    versions: dict[str, str]
    error: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print a table and JSON. Return 0 if all logits are equal bit for bit, else 1."""
    options = _parser().parse_args(arguments)
    if not options.checkpoint and not options.peer_checkpoint:
        _parser().error("give --checkpoint, --peer-checkpoint, or both")
    pairs = [("ours", each) for each in options.checkpoint] + [("peer", each) for each in options.peer_checkpoint]
    found = [_compare(writer, directory, options) for writer, directory in pairs]
    _print_table(found)
    text = json.dumps([asdict(each) for each in found], indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if all(each.max_abs_difference == 0.0 for each in found) else 1


def _compare(writer: str, directory: Path, options: argparse.Namespace) -> Comparison:
    base = CheckpointSource(directory)
    section = base.stored_config.get("quantization_config") or {}
    if base.stored_config.get("quantry", {}).get("online"):
        raise SystemExit(f"{directory} has online transforms; the peer's from_pretrained would ignore them silently.")
    source = open_source(base)
    ids_BT = _fixed_ids(int(source.config["vocab_size"]), options.tokens)
    peer_BTV, versions, error = _peer_logits(options.peer_python.absolute(), directory, ids_BT)
    difference = None
    if peer_BTV is not None:
        # In fp64, so that the subtraction itself is not rounded.
        difference = float((_streamed_logits(source, ids_BT).double() - peer_BTV.double()).abs().max())
    return Comparison(
        writer=writer,
        checkpoint=directory.resolve().name,
        format=str(section.get("format", "dense")),
        dtype=str(source.dtype).removeprefix("torch."),
        tokens=ids_BT.numel(),
        max_abs_difference=difference,
        max_abs_logit=None if peer_BTV is None else float(peer_BTV.abs().max()),
        versions=versions,
        error=error,
    )


def _fixed_ids(vocabulary: int, tokens: int) -> Tensor:
    """The token ids [2, T] of two fixed sequences."""
    return torch.randint(0, vocabulary, (2, tokens // 2), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _streamed_logits(source: WeightSource, ids_BT: Tensor) -> Tensor:
    model = StreamedModel(source, dtype=source.dtype)
    entered = model.enter(ids_BT)
    hidden_BTD = entered.hidden_BTD
    for index in range(model.blocks):
        with model.block(index) as block:
            hidden_BTD = block(hidden_BTD, **entered.layer_arguments[index])
    return model.leave(hidden_BTD)


def _peer_logits(python: Path, directory: Path, ids_BT: Tensor) -> tuple[Tensor | None, dict[str, str], str | None]:
    """Return the peer's logits [B, T, V] and the versions of its packages, or the last line of its error.

    The interpreter runs isolated (``-I``) in an empty directory, so nothing of this checkout is on its path.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tokens, out = Path(scratch, "tokens.safetensors"), Path(scratch, "logits.safetensors")
        save_file({"input_ids": ids_BT}, tokens)
        places = [str(directory.resolve()), str(tokens), str(out), str(torch.get_num_threads())]
        finished = subprocess.run(  # noqa: S603  # the interpreter that the caller names, and a script of ours
            [str(python), "-I", "-", *places],
            input=_PEER_SCRIPT,
            capture_output=True,
            text=True,
            cwd=scratch,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if finished.returncode != 0:
            return None, {}, finished.stderr.strip().rpartition("\n")[2][-300:]
        # Only the last line is ours: the peer's packages may print before it.
        said: dict[str, Any] = json.loads(finished.stdout.strip().rpartition("\n")[2])
        if said["foreign"]:
            raise SystemExit(
                f"The peer's interpreter imported {', '.join(said['foreign'])}: it is not a separate environment."
            )
        return load_file(out)["logits"], said["versions"], None


def _print_table(found: Sequence[Comparison]) -> None:
    print(f"{'writer':<7} {'checkpoint':<28} {'format':<22} {'tokens':>6} {'max |logit|':>12} {'max |Δ|':>10}")
    for each in found:
        difference = each.error if each.max_abs_difference is None else f"{each.max_abs_difference:10.3g}"
        logit = "" if each.max_abs_logit is None else f"{each.max_abs_logit:.4g}"
        print(f"{each.writer:<7} {each.checkpoint:<28} {each.format:<22} {each.tokens:6} {logit:>12} {difference}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", type=Path, required=True, help="the interpreter of the peer's environment")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="a universal export of ours")
    parser.add_argument("--peer-checkpoint", type=Path, action="append", default=[], help="one that the peer wrote")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
