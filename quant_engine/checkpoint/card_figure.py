"""Draw ``layers.png``: every layer's error, and that of its baseline. Equal rows give equal bytes."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quant_engine.interface.layers import LayerRow

FIGURE: Final = "layers.png"
_DPI: Final = 110
_WIDE: Final = 8.0
"""The axis is logarithmic above this ratio between the largest and the smallest error."""


def draw_layers(rows: Sequence[LayerRow], path: Path) -> None:
    """Write the figure as PNG: errors over blocks, one line for each linear of a block, its baseline dashed."""
    # A user's matplotlibrc must not change what is published.
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(8.0, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for index, (role, own) in enumerate(_by_linear(rows).items()):
            blocks, color = [row.block for row in own], f"C{index % 10}"
            axes.plot(blocks, _finite(row.error for row in own), marker="o", markersize=3.5, color=color, label=role)
            axes.plot(blocks, _finite(row.baseline_error for row in own), linestyle="--", linewidth=0.9, color=color)
        axes.plot([], [], linestyle="--", linewidth=0.9, color="0.3", label="SmoothRot(0.5, max)")
        axes.set_xlabel("block")
        axes.set_ylabel("E on held-out tokens")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if _is_wide(rows):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0.0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        # The default metadata contain matplotlib's version, so equal rows would give other bytes with another version.
        figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def _by_linear(rows: Sequence[LayerRow]) -> dict[str, list[LayerRow]]:
    found: dict[str, list[LayerRow]] = {}
    for row in rows:
        # matplotlib reads dollar signs as formulas, and hides labels with a leading underscore.
        found.setdefault(row.name.rpartition(".")[2].replace("$", "").lstrip("_"), []).append(row)
    return found


def _finite(values: Iterable[float | None]) -> list[float]:
    """Return the values with NaN, which is drawn as a gap, where a value is missing."""
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


def _is_wide(rows: Sequence[LayerRow]) -> bool:
    # A logarithmic axis has no place for zeros and gaps, so all values have to be positive.
    both = [*(row.error for row in rows), *(row.baseline_error for row in rows)]
    values = [value for value in _finite(both) if value > 0.0]
    return bool(values) and max(values) > _WIDE * min(values) and len(values) == 2 * len(rows)
