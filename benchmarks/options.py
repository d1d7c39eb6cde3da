"""The common options of the benchmarks that run the whole pipeline, and the run that these options describe."""

import argparse
import os
from pathlib import Path

from quant_engine.pipeline import RunSpec
from quant_engine.policy import Calibration, Evaluation, Output, Perplexity, Policy


def pipeline_parser(
    description: str | None, *, samples: int, sequence_length: int, holdout: float
) -> argparse.ArgumentParser:
    """Return a parser of the common options with these defaults."""
    # Only the first line of a module docstring is a short description.
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    datasets = os.environ.get("QUANTRY_DATASETS_DIR")
    parser.add_argument("--model", type=Path, required=True, help="a dense safetensors checkpoint")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dataset", default="wikitext2", help="a directory under --datasets, or pydoc")
    parser.add_argument("--datasets", type=Path, default=None if datasets is None else Path(datasets))
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--sequence-length", type=int, default=sequence_length)
    parser.add_argument("--holdout", type=float, default=holdout)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser


def run_spec(options: argparse.Namespace, policy: Policy, perplexity: Perplexity | None) -> RunSpec:
    """Return the run of ``policy`` that the options describe."""
    return RunSpec(
        model_dir=options.model,
        policy=policy,
        calibration=Calibration(
            dataset=options.dataset,
            samples=options.samples,
            sequence_length=options.sequence_length,
            seed=options.seed,
            holdout=options.holdout,
        ),
        evaluation=Evaluation(perplexity=perplexity),
        output=Output(),
        datasets_dir=options.datasets,
        device=options.device,
    )
