"""What a job found, as tables for a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from client.results import Layer


def layer_table(layers: Sequence[Layer]) -> Table:
    """One row for each layer: what was chosen, and its held-out error beside those of SmoothRot and of plain rounding.

    Layers that the search was scored on are marked: ``*`` critical, ``+`` normal.
    """
    marked = any(layer.selected for layer in layers)
    caption = "Searched on the layers marked * (critical) and + (normal)." if marked else None
    table = Table(title="Held-out error of each layer", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("block", justify="right")
    table.add_column("linear", overflow="fold")
    table.add_column("transform", overflow="fold")
    for heading in ("error", "SmoothRot", "gain", "rounded", "SQNR"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(
            {"critical": "* ", "normal": "+ "}.get(layer.selected or "", "") + str(layer.block),
            layer.name.rsplit(".", 1)[-1],
            describe_choice(layer),
            _number(layer.error),
            _number(layer.baseline_error),
            _number(layer.gain_percent, "{:+.1f} %"),
            _number(layer.rtn_error),
            _number(layer.sqnr_db, "{:.1f} dB"),
            style="bold" if layer.selected else None,
        )
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The whole job: mean errors against SmoothRot, perplexity and size before and after."""
    table = Table(title="Against SmoothRot (α 0.5, absmax)", title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    gains = summary.get("gain_percent") or {}
    for scope, label in (("selected", "mean error, selected layers"), ("full", "mean error, all layers")):
        before, after = summary.get(f"baseline_{scope}_mean_error"), summary.get(f"{scope}_mean_error")
        gain = gains.get(scope)
        change = "—" if gain is None else f"{-gain:+.1f} %"
        table.add_row(label, _number(before), _number(after), change)
    perplexity = summary.get("perplexity") or {}
    if perplexity:
        original, quantized = perplexity.get("original"), perplexity.get("quantized")
        table.add_row("perplexity of the model", _number(original), _number(quantized), _ratio(original, quantized))
    size = summary.get("bytes") or {}
    original, quantized = size.get("original"), size.get("quantized")
    table.add_row("bytes of the weights", _megabytes(original), _megabytes(quantized), _ratio(original, quantized))
    return table


def describe_choice(layer: Layer) -> str:
    """The transform with its parameters, in a few words."""
    details = [layer.statistic] if layer.statistic else []
    if layer.alpha is not None:
        details.append(f"α {layer.alpha:g}")
    return layer.transform + (f" ({', '.join(details)})" if details else "")


def layers_as_csv(layers: Sequence[Layer]) -> str:
    """The rows with a header, in the order of the contract's fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(Layer.model_fields), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(layer.model_dump() for layer in layers)
    return text.getvalue()


def _number(value: float | None, form: str = "{:.4g}") -> str:
    return "—" if value is None else form.format(value)


def _megabytes(value: float | None) -> str:
    return "—" if value is None else f"{value / 1e6:.1f} MB"


def _ratio(before: float | None, after: float | None) -> str:
    return "—" if not before or after is None else f"× {after / before:.3f}"
