"""The results of a job as tables for a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from quantry.results import Layer

_WIDE: Final = 100


def layer_table(layers: Sequence[Layer], *, wide: bool = False) -> Table:
    """Return a table with one line for each layer: its settings, its held-out error, and the error of SmoothRot.

    ``wide`` adds α, the error of plain rounding and the signal-to-noise ratio, which do not fit into eighty columns.
    The layers that gave the search its score are marked: ``*`` critical, ``+`` normal.
    """
    marked = any(layer.selected for layer in layers)
    caption = "Searched on the layers marked * (critical) and + (normal)." if marked else None
    table = _plain_table("Held-out error of each layer", caption)
    table.add_column("block", justify="right", no_wrap=True)
    for heading in ("linear", "transform", "scales"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for heading in ("error", "SmoothRot", "gain", *(("α", "rounded", "SQNR") if wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        more = (_number(layer.alpha), _number(layer.rtn_error), _number(layer.sqnr_db, "{:.1f} dB")) if wide else ()
        table.add_row(
            {"critical": "* ", "normal": "+ "}.get(layer.selected or "", "") + str(layer.block),
            layer.name.rsplit(".", 1)[-1],
            layer.transform.replace("_", " "),
            layer.statistic or "",
            _number(layer.error),
            _number(layer.baseline_error),
            _number(layer.gain_percent, "{:+.1f}%"),
            *more,
            style="bold" if layer.selected else None,
        )
    return table


def print_layers(layers: Sequence[Layer], console: Console) -> None:
    """Print the layers' table, with all columns if the console is wide enough."""
    console.print(layer_table(layers, wide=console.width >= _WIDE))


def summary_table(summary: dict[str, Any]) -> Table:
    """Return a table of the whole job: mean errors next to SmoothRot's, perplexity and size before and after."""
    table = _plain_table("Against SmoothRot (α 0.5, absmax) and the original", None)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    gains = summary.get("gain_percent") or {}
    for scope, label in (("selected", "mean error, selected layers"), ("full", "mean error, all layers")):
        before, after = summary.get(f"baseline_{scope}_mean_error"), summary.get(f"{scope}_mean_error")
        gain = gains.get(scope)
        # A gain is a lower error. Adding 0.0 turns -0.0 into 0.0, which prints as "+0.0%".
        change = "—" if gain is None else f"{round(-gain, 1) + 0.0:+.1f}%"
        table.add_row(label, _number(before), _number(after), change)
    perplexity = summary.get("perplexity") or {}
    if perplexity:
        original, quantized = perplexity.get("original"), perplexity.get("quantized")
        table.add_row("perplexity of the model", _number(original), _number(quantized), _ratio(original, quantized))
    size = summary.get("bytes") or {}
    original, quantized = size.get("original"), size.get("quantized")
    table.add_row("bytes of the weights", _megabytes(original), _megabytes(quantized), _ratio(original, quantized))
    return table


def layers_as_csv(layers: Sequence[Layer]) -> str:
    """Return the rows as CSV with a header, in the order of the API's fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(Layer.model_fields), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(layer.model_dump() for layer in layers)
    return text.getvalue()


def _plain_table(title: str, caption: str | None) -> Table:
    table = Table(title=f"\n{title}", caption=caption, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    return table


def _number(value: float | None, form: str = "{:.4g}") -> str:
    return "—" if value is None else form.format(value).replace("e+0", "e")


def _megabytes(value: float | None) -> str:
    return "—" if value is None else f"{value / 1e6:.1f} MB"


def _ratio(before: float | None, after: float | None) -> str:
    return "—" if not before or after is None else f"× {after / before:.3f}"
