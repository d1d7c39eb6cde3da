"""Measure the speed of each Hadamard backend as a ratio to the dense matrix product.

python -m benchmarks.hadamard --width 1536 --rows 4096 --json out.json

Every round runs all backends, so a change of the machine's speed affects all of them. The result is the median over the
rounds. Shapes: N rows, D = width.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_engine.hadamard import BACKENDS, hadamard_backend, hadamard_matrix, hadamard_order, hadamard_transform

_DENSE = "dense"


def main() -> None:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args()
    x_ND = torch.randn(options.rows, options.width, device=options.device)
    ways = _ways(x_ND)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for way in ways.values():
            way()  # not timed: the first call also builds what later calls reuse
        for _ in range(options.rounds):
            for name, way in ways.items():
                seconds[name].append(_timed(way, options.device))
    result = _result(seconds, options)
    for name, row in result["ways"].items():
        print(f"{name:<12} {1e3 * row['median_seconds']:9.2f} ms   {row['speed_against_dense']:7.2f} × dense")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _ways(x_ND: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The dense product and every backend that supports this tensor."""
    width = x_ND.shape[-1]
    order = hadamard_order(width)
    dense_DD = torch.kron(torch.eye(width // order, dtype=torch.float64), hadamard_matrix(order)).to(x_ND)
    ways: dict[str, Callable[[], Tensor]] = {_DENSE: lambda: x_ND @ dense_DD.T}
    for backend in BACKENDS.values():
        if backend.supports(x_ND.reshape(-1, order)):
            ways[backend.name] = _forced(backend.name, x_ND, order)
    return ways


def _forced(name: str, x_ND: Tensor, order: int) -> Callable[[], Tensor]:
    def way() -> Tensor:
        with hadamard_backend(name):
            return hadamard_transform(x_ND, order=order)

    return way


def _timed(way: Callable[[], Tensor], device: str) -> float:
    started = time.perf_counter()
    way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()  # kernels run asynchronously, so the call alone returns too early
    return time.perf_counter() - started


def _result(seconds: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    ways = {}
    for name, times in seconds.items():
        # Ratios within a round, because both times were taken at nearly the same speed of the machine.
        ratios = [dense / mine for dense, mine in zip(seconds[_DENSE], times, strict=True)]
        ways[name] = {
            "median_seconds": statistics.median(times),
            "speed_against_dense": statistics.median(ratios),
        }
    return {
        "rows": options.rows,
        "width": options.width,
        "rounds": options.rounds,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ways": ways,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
