"""What a job found, as tables for a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from quantry.results import Layer

_WIDE: Final = 100


def layer_table(layers: Sequence[Layer], *, wide: bool = False) -> Table:
    """One line for each layer: what was chosen, and its held-out error beside SmoothRot's.

    ``wide`` adds α, plain rounding's error and the signal-to-noise ratio, for which eighty columns have no room. Layers
    that the search was scored on are marked: ``*`` critical, ``+`` normal.
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
    """The table, as wide as the console has room for."""
    console.print(layer_table(layers, wide=console.width >= _WIDE))


def summary_table(summary: dict[str, Any]) -> Table:
    """The whole job: mean errors against SmoothRot, perplexity and size before and after."""
    table = _plain_table("Against SmoothRot (α 0.5, absmax) and the original", None)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    gains = summary.get("gain_percent") or {}
    for scope, label in (("selected", "mean error, selected layers"), ("full", "mean error, all layers")):
        before, after = summary.get(f"baseline_{scope}_mean_error"), summary.get(f"{scope}_mean_error")
        gain = gains.get(scope)
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
    """The rows with a header, in the order of the contract's fields."""
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
