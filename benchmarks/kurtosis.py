"""Measure how well the kurtosis of a layer's weights predicts which of two transforms has the lower error.

python -m benchmarks.kurtosis --model DIR --run OUTPUT/adaptive-w4a4 --outlying CANDIDATE --typical CANDIDATE

It reads the errors of every site that ``benchmarks.accuracy`` stored for an adaptive preset, and fits sign and β to the
choices by lowest error. It prints the agreement, that of always taking the same transform, and the mean error E on
validation tokens of each rule. The defaults of ``selection.kind: "kurtosis"`` come from this benchmark.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from quant_engine.models import CheckpointSource, StreamedModel, model_sites, target_sites
from quant_engine.policy import PRESETS
from quant_engine.selection import ROLE_GROUPS, by_kurtosis, fit_kurtosis, weight_kurtosis


def main(arguments: list[str] | None = None) -> None:
    """Fit and print."""
    options = _parser().parse_args(arguments)
    found = fitted(options.model, options.run / "work" / "select", options.outlying, options.typical)
    Console().print_json(json.dumps(found))


def fitted(model_dir: Path, selections: Path, outlying: str, typical: str) -> dict[str, Any]:
    """Fit the rule, and return it with its agreement and the mean error of each rule."""
    source = CheckpointSource(model_dir)
    model = StreamedModel(source)
    sites = target_sites(model_sites(model.config, model.architecture), PRESETS["adaptive-w4a4"].policy)
    errors = {site.name: _errors(selections / f"{site.name}.selection.json") for site in sites}
    groups = {site.name: ROLE_GROUPS[site.role] for site in sites}
    kappas = {}
    for site in sites:
        stored = source.read([f"{reader}.weight" for reader in site.readers], dtype=model.dtype)
        kappas[site.name] = weight_kurtosis(list(stored.values()))
    labels = {name: each[outlying] < each[typical] for name, each in errors.items()}
    fit = fit_kurtosis(kappas, groups, labels)
    chosen = by_kurtosis(kappas, groups, sign=fit.sign, beta=fit.beta)
    share = sum(labels.values()) / len(labels)  # how often the outlying transform is better

    def mean(rule: dict[str, bool]) -> float:
        return sum(errors[name][outlying if rule[name] else typical] for name in errors) / len(errors)

    return {
        "sites": len(labels),
        "sign": fit.sign,
        "beta": fit.beta,
        "agreement": fit.agreement,
        "agreement_of_a_constant": max(share, 1.0 - share),
        "mean_error": {
            "lowest": mean(labels),
            "kurtosis": mean(chosen),
            outlying: mean(dict.fromkeys(errors, True)),
            typical: mean(dict.fromkeys(errors, False)),
        },
    }


def _errors(path: Path) -> dict[str, float]:
    return {row["name"]: row["error"] for row in json.loads(path.read_text())["candidates"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--run", type=Path, required=True, help="the directory of an adaptive run of benchmarks.accuracy"
    )
    parser.add_argument("--outlying", required=True, help="the name of a candidate in the selection files")
    parser.add_argument("--typical", required=True)
    return parser


if __name__ == "__main__":
    main()
