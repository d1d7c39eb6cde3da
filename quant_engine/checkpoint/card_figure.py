"""``layers.png``: every layer's error, and its baseline's. Equal rows give equal bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

FIGURE: Final = "layers.png"
_DPI: Final = 110
_WIDE: Final = 8.0
"""From this ratio between the largest and the smallest error on, the axis is logarithmic."""


def draw_layers(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure as PNG: by block, one line for each linear of a block, the baseline dashed in its colour."""
    # A user's matplotlibrc must not change what is published.
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(8.0, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for index, (role, own) in enumerate(_by_linear(rows).items()):
            blocks, colour = [row["block"] for row in own], f"C{index % 10}"
            axes.plot(blocks, _finite(own, "error"), marker="o", markersize=3.5, color=colour, label=role)
            axes.plot(blocks, _finite(own, "baseline_error"), linestyle="--", linewidth=0.9, color=colour)
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
        # The default metadata name matplotlib's version.
        figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def _by_linear(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        # Dollar signs and leading underscores mean something to matplotlib.
        found.setdefault(row["name"].rpartition(".")[2].replace("$", "").lstrip("_"), []).append(row)
    return found


def _finite(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The values, with a gap where there is none."""
    return [row[key] if row[key] is not None and math.isfinite(row[key]) else math.nan for row in rows]


def _is_wide(rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [value for key in ("error", "baseline_error") for value in _finite(rows, key) if value > 0.0]
    return bool(values) and max(values) > _WIDE * min(values) and len(values) == 2 * len(rows)
