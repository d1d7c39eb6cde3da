"""Measure what four bits of GGUF cost the original, and what they cost behind fused diagonals (``gguf-source``).

python -m benchmarks.gguf_source --model DIR --datasets DIR --output DIR

One job runs with ``output.also: ["gguf-source"]``: by default with L2 diagonals in front of o_proj and down_proj, and
rounding to nearest. Then every linear of the blocks of the original, and of ``gguf-source/``, is quantized and
dequantized by the ``gguf`` package's own quantizer, and the perplexity of all four models is measured in fp32. The
embedding and the head stay as they are. ``OUTPUT/gguf_source.json`` stores the figures. An interrupted run continues.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from benchmarks.bars import Bars
from benchmarks.options import pipeline_parser, run_spec
from quant_engine.evaluation.perplexity import perplexity
from quant_engine.models import CheckpointSource, StreamedModel
from quant_engine.pipeline import RunSpec, run
from quant_engine.policy import Output, Perplexity, Policy, resolve_policy
from quant_engine.stages.context.run import prepare_run
from quant_engine.stages.context.windows import evaluation_windows_of
from quant_engine.windows import Windows

_FILE: Final = "gguf_source.json"
_POLICY: Final = json.dumps(
    {
        "preset": "smoothrot-w4a4",
        "targets": ["o_proj", "down_proj"],
        "online": "none",
        "transform": {"kind": "smooth", "alpha": 0.5, "statistic": {"kind": "l2"}},
    }
)


def main(arguments: list[str] | None = None) -> None:
    """Run the job, measure both models, and print and write the figures."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as bars:
        observer = Bars(bars)
        spec = _spec(options)
        result = options.output / "result"
        report = run(spec, work_dir=options.output / "work", output_dir=result, observer=observer).report
        longest = Perplexity(dataset=options.dataset, tokens=512 * max(options.windows), sequence_length=512)
        context = prepare_run(spec, work_dir=options.output / "work", observer=observer)
        (windows,) = evaluation_windows_of(context, longest)
    figures = {
        "format": options.format,
        "policy_hash": report["policy_hash"],
        "gguf_source": report["gguf_source"],
        "perplexity": {
            count: {
                "original": _measured(options.model, windows[:count], options.format),
                "fused": _measured(result / "gguf-source", windows[:count], options.format),
            }
            for count in options.windows
        },
    }
    (options.output / _FILE).write_text(json.dumps(figures, indent=1) + "\n")
    console.print(gguf_table(figures))


def gguf_table(figures: dict[str, Any]) -> Table:
    """One row for each model and number of windows."""
    table = Table("windows of 512", "model", "perplexity", figures["format"], title="GGUF")
    for count, models in figures["perplexity"].items():
        for name, each in models.items():
            table.add_row(str(count), name, f"{each['dense']:.3f}", f"{each['quantized']:.3f}")
    return table


def round_trip(w_OI: Tensor, name: str) -> Tensor:
    """Return the values of a weight's codes in a format of GGUF, in fp32. Raises: KeyError: there is no such format."""
    kind = gguf.GGMLQuantizationType[name]
    codes = gguf.quants.quantize(w_OI.float().cpu().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(codes, kind).copy())


def _measured(directory: Path, windows: Windows, name: str) -> dict[str, float]:
    """Return the perplexity of the model of ``directory`` in fp32, before and after its linears are quantized."""
    model = StreamedModel(CheckpointSource(directory))
    readers: dict[str, Callable[[int], Mapping[str, Tensor]] | None] = {
        "dense": None,
        "quantized": lambda block: _rounded(model.read_block(block), name),
    }
    return {
        key: perplexity(model, [windows], read=read, on_block=lambda: None).perplexity for key, read in readers.items()
    }


def _rounded(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    # In a block only linears have matrices.
    return {key: round_trip(value, name) if value.ndim == 2 else value for key, value in state.items()}


def _spec(options: argparse.Namespace) -> RunSpec:
    policy = resolve_policy(Policy.model_validate(json.loads(options.policy)))
    spec = run_spec(options, policy, None)
    return RunSpec(**{**vars(spec), "output": Output(also=("gguf-source",))})


def _parser() -> argparse.ArgumentParser:
    parser = pipeline_parser(__doc__, samples=32, sequence_length=512, holdout=0.1)
    parser.add_argument("--policy", default=_POLICY, help="as JSON; its diagonals are fused")
    parser.add_argument("--format", default="Q4_0", help="a format that the gguf package can quantize to")
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[3, 16], help="windows of 512 tokens of the test text"
    )
    return parser


if __name__ == "__main__":
    main()
