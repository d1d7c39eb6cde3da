"""Compare perplexity, layer errors and time of presets on one model with one protocol.

python -m benchmarks.accuracy --model DIR --datasets DIR --output DIR best-w4a4 quarot-w4a4

The calibration uses 32 × 512 tokens of WikiText-2's validation text, a tenth of which is held out for layer errors. The
perplexity is that of the first 16 windows of 512 tokens of its test text. Every preset runs through the whole pipeline,
including the gate. ``OUTPUT/accuracy.json`` stores the figures of every preset that was run with this ``--output``. A
finished run is not repeated, and an interrupted run continues. With a label, fields of a preset's policy can be
replaced: ``'best-w4a4:untrained={"training": null}'``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bars import Bars
from benchmarks.options import pipeline_parser, run_spec
from quant_engine.pipeline import RunSpec, run
from quant_engine.policy import Perplexity, Policy, resolve_policy

_FILE = "accuracy.json"


def main(arguments: list[str] | None = None) -> None:
    """Run the presets that have no figures yet, then print the table."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    for request in options.presets:
        name, _, overrides = request.partition("=")
        if name not in _figures(options.output):
            _measure(options, name, json.loads(overrides or "{}"), console)
    console.print(accuracy_table(_figures(options.output)))


def accuracy_table(figures: dict[str, dict[str, Any]]) -> Table:
    """One row for each run."""
    columns = ("perplexity", "× original", "mean E", "gain, %", "selected, %", "bytes", "minutes")
    table = Table("preset", *columns, title="Held-out accuracy")
    for name, each in figures.items():
        gain = each["gain_percent"]
        table.add_row(
            name,
            f"{each['perplexity']['quantized']:.2f}",
            f"{each['ratio']:.3f}",
            f"{each['full_mean_error']:.1f}",
            f"{gain['full']:.1f}",
            f"{gain['selected']:.1f}",
            f"{each['bytes']['quantized'] / 1e6:.0f} MB",
            f"{each['seconds'] / 60:.1f}",
        )
    return table


def _measure(options: argparse.Namespace, name: str, overrides: dict[str, Any], console: Console) -> None:
    console.rule(name)
    began = time.monotonic()
    directory = options.output / name.replace(":", "+")
    with Progress(console=console) as bars:
        observer = Bars(bars)
        spec = _spec(options, name.partition(":")[0], overrides)
        result = run(spec, work_dir=directory / "work", output_dir=directory / "result", observer=observer)
    figures = {key: value for key, value in result.summary.items() if key != "policy"}
    perplexity = figures["perplexity"]
    figures |= {
        "chosen": result.summary["policy"],
        "policy_hash": result.report["policy_hash"],
        "overrides": overrides,
        "ratio": perplexity["quantized"] / perplexity["original"],
        "stages": observer.seconds,
        "seconds": time.monotonic() - began,
    }
    # Written after every preset, so that an interruption loses only the preset that is running.
    written = _figures(options.output) | {name: figures}
    (options.output / _FILE).write_text(json.dumps(written, indent=1) + "\n")


def _figures(output: Path) -> dict[str, dict[str, Any]]:
    path = output / _FILE
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _spec(options: argparse.Namespace, preset: str, overrides: dict[str, Any]) -> RunSpec:
    perplexity = Perplexity(dataset=options.dataset, tokens=options.perplexity_tokens, sequence_length=512)
    return run_spec(options, resolve_policy(Policy.model_validate({"preset": preset, **overrides})), perplexity)


def _parser() -> argparse.ArgumentParser:
    parser = pipeline_parser(__doc__, samples=32, sequence_length=512, holdout=0.1)
    parser.add_argument("presets", nargs="+", help="PRESET, or PRESET[:LABEL]={policy fields as JSON}")
    parser.add_argument("--perplexity-tokens", type=int, default=8192)
    return parser


if __name__ == "__main__":
    main()
