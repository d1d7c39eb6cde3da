"""Repeat the experiment of arXiv 2606.09927 on a model: layer choice, N1 to T3, and Table I with the published gains.

python -m benchmarks.paper --model DIR --dataset wikitext2 --datasets DIR --output DIR

It runs the pipeline with the preset ``paper-2606.09927``. With the same options and ``--output`` an interrupted run
continues. ``OUTPUT/result`` holds the report and the checkpoint, ``OUTPUT/work/search`` the experiment's files and
figures. The paper uses a full batch (``--batch-tokens 0``). The default is a minibatch, because a full batch takes too
long on a CPU.
"""

import argparse
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bars import Bars
from benchmarks.options import pipeline_parser, run_spec
from quant_engine.pipeline import RunSpec, run
from quant_engine.policy import Perplexity, Policy, resolve_policy
from quant_engine.stages.paper.stage import paper_figures, paper_report

PRESET = "paper-2606.09927"


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment, then print the table and the paths of the figures."""
    options = _parser().parse_args(arguments)
    console = Console()
    work = options.output / "work"
    with Progress(console=console) as bars:
        run(_spec(options), work_dir=work, output_dir=options.output / "result", observer=Bars(bars))
    report = paper_report(work / "search")
    console.print(paper_table(report))
    console.print(_replay_line(report))
    for path in paper_figures(work / "search"):
        console.print(str(path), soft_wrap=True)


def paper_table(report: dict[str, Any]) -> Table:
    """Table I: E on test tokens for each selected layer, the mean, our gains, and the published gains."""
    content, published = report["table"], report["published"]
    table = Table("layer", "group", *content["columns"], title="E on test tokens, selected layers")
    for row in content["rows"]:
        table.add_row(row["layer"], row["group"], *(f"{row[name]:.2f}" for name in content["columns"]))
    table.add_section()
    table.add_row("mean", "", *(f"{content['mean'][name]:.2f}" for name in content["columns"]))
    table.add_row("gain, %", "", *(f"{content['gain_percent'][name]:.2f}" for name in content["columns"]))
    gains = published["gain_percent"]
    table.add_row("published, %", "", *(f"{gains[name]:.2f}" if name in gains else "" for name in content["columns"]))
    return table


def _replay_line(report: dict[str, Any]) -> str:
    replay, published = report["T3"], report["published"]["T3"]
    return (
        f"T3, all {len(replay['rows'])} layers: {replay['baseline_mean_error']:.2f} → {replay['mean_error']:.2f} "
        f"({-replay['gain_percent']:+.1f} %; guarded {-replay['guarded_gain_percent']:+.1f} %; "
        f"published {-published['gain_percent']:+.1f} %)"
    )


def _spec(options: argparse.Namespace) -> RunSpec:
    search: dict[str, Any] = {"kind": "paper", "steps": options.steps, "patience": options.patience, "top": options.top}
    search["batch_tokens"] = options.batch_tokens or None  # null is the full batch
    perplexity = None
    if options.perplexity_tokens:
        perplexity = Perplexity(dataset=options.dataset, tokens=options.perplexity_tokens)
    policy = resolve_policy(Policy.model_validate({"preset": PRESET, "search": search}))
    return run_spec(options, policy, perplexity)


def _parser() -> argparse.ArgumentParser:
    parser = pipeline_parser(__doc__, samples=256, sequence_length=128, holdout=0.2)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--patience", type=int, default=80)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=384, help="0: the paper's full batch")
    parser.add_argument("--perplexity-tokens", type=int, default=0, help="0: no perplexity")
    return parser


if __name__ == "__main__":
    main()
