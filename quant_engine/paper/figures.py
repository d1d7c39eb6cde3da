"""Draw the figures of the experiment from its report. This is the only module that imports matplotlib.

It uses figure objects on the Agg canvas, without the global state of pyplot. Equal reports give equal bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

Report = Mapping[str, Any]
Curves = Mapping[str, Sequence[Mapping[str, Any]]]

_DPI: Final = 144
_BASELINE: Final = "SmoothRot(0.5, max)"
_GRAY: Final = "0.45"
_WIDE: Final = 8.0
"""An axis is logarithmic if the largest error is more than this many times the smallest."""


def draw_figures(report: Report, curves: Curves, profile: Report, directory: Path) -> list[Path]:
    """Write every figure as PNG.

    Args:
        report: :func:`quant_engine.paper.experiment_report`.
        curves: for T1 and T2, each training's fields with ``curves``, one list of judgments per selected layer.
        profile: :func:`quant_engine.paper.profile_report`.

    Returns:
        The files, in the order of the experiment.
    """
    # A user's matplotlibrc must not change a published figure.
    with mpl.rc_context():
        mpl.rcdefaults()
        figures = {
            "n1-error-by-alpha": _alpha_figure(report),
            "n2-error-by-quantile": _quantile_figure(report),
            "n3-heat-map": _heat_map(report),
            "t1-t2-training-curves": _curves_figure(report, curves),
            "t3-error-by-layer": _replay_figure(report),
            "scale-profile": _profile_figure(profile),
        }
        return [_save(figure, directory / f"{name}.png") for name, figure in figures.items()]


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    # The default metadata contain matplotlib's version, and a new version must not change the bytes.
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
    return path


def _alpha_figure(report: Report) -> Figure:
    """N1: mean E against α, and each layer's E against its baseline's."""
    rows = sorted(report["families"]["N1"]["rows"], key=lambda row: row["alpha"])
    return _family_figure(report, rows, [row["alpha"] for row in rows], "N1: q = 1", _plain_axis("α"))


def _quantile_figure(report: Report) -> Figure:
    """N2: mean E against 1 − q on a logarithmic axis, which can not show q = 1; the line of the baseline shows it."""
    rows = sorted((row for row in report["families"]["N2"]["rows"] if row["q"] < 1.0), key=lambda row: row["q"])
    return _family_figure(report, rows, [1.0 - row["q"] for row in rows], "N2: α = 0.5", _tail_axis)


def _family_figure(
    report: Report, rows: Sequence[Report], at: Sequence[float], title: str, finish: Callable[[Axes], None]
) -> Figure:
    """Draw mean E on the left, and each selected layer's ratio to its baseline on the right."""
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(report["baseline"]["mean_error"], color=_GRAY, linestyle="--", label=_BASELINE)
    left.plot(at, [row["mean_error"] for row in rows], marker="o", markersize=3.5, label="test")
    left.plot(at, [row["mean_validation_error"] for row in rows], marker=".", linewidth=0.8, label="validation")
    left.set_ylabel("mean E over the selected layers")
    right.axhline(1.0, color=_GRAY, linestyle="--")
    for layer in report["layers"]:
        base = layer["baseline_error"] or 1.0  # a baseline of 0 can not be divided by
        right.plot(at, [row["errors"][layer["layer"]] / base for row in rows], marker=".", label=_layer_label(layer))
    right.set_ylabel("E / E of the baseline, test tokens")
    figure.suptitle(title)
    for axes in (left, right):
        _scale_errors(axes)
        finish(axes)
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def _scale_errors(axes: Axes) -> None:
    """Make the axis logarithmic if the values have a wide range, with plain numbers if it is below two decades."""
    values = [float(y) for line in axes.get_lines() for y in np.asarray(line.get_ydata()) if y > 0.0]
    ratio = max(values, default=1.0) / min(values, default=1.0)
    if ratio <= _WIDE:
        return
    axes.set_yscale("log")
    if ratio < 100.0:
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2.0, 1.0)))
        axes.yaxis.set_major_formatter(LogFormatter())


def _plain_axis(label: str) -> Callable[[Axes], None]:
    def finish(axes: Axes) -> None:
        axes.set_xlabel(label)

    return finish


def _tail_axis(axes: Axes) -> None:
    """Label the axis of 1 − q, on which q grows to the right."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("1 − q (q grows to the right; the dashed line is q = 1)")


def _heat_map(report: Report) -> Figure:
    """N3: mean E by α and q, with a mark on policies that explode."""
    rows = report["families"]["N3"]["rows"]
    alphas, quantiles = sorted({row["alpha"] for row in rows}), sorted({row["q"] for row in rows})
    by_place = {(row["alpha"], row["q"]): row for row in rows}
    gains = [[by_place[alpha, q]["gain_percent"] for q in quantiles] for alpha in alphas]
    figure = Figure(figsize=(2.6 + 0.95 * len(quantiles), 2.2 + 0.55 * len(alphas)), layout="constrained")
    axes = figure.subplots()
    # Without this limit explosions would leave one color for all other cells.
    limit = max(1.0, *(abs(each) for line in gains for each in line if each > -100.0))
    image = axes.imshow(gains, cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
    for row_index, alpha in enumerate(alphas):
        for column, q in enumerate(quantiles):
            row = by_place[alpha, q]
            text = f"{row['mean_error']:.4g}" + ("\nexplodes" if row["exploded"] else "")
            axes.text(column, row_index, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(quantiles)), [f"{q:.6g}" for q in quantiles])
    axes.set_yticks(range(len(alphas)), [f"{alpha:.4g}" for alpha in alphas])
    axes.set_xlabel("q")
    axes.set_ylabel("α")
    axes.set_title("N3: mean E over the selected layers")
    figure.colorbar(image, ax=axes, label=f"gain over {_BASELINE}, %")
    return figure


def _curves_figure(report: Report, curves: Curves) -> Figure:
    """T1 and T2: the lowest mean validation E so far. A layer that stopped early counts with its last value."""
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, trainings) in zip(panels, curves.items(), strict=True):
        for training in trainings:
            steps, means = _mean_curve(training["curves"])
            if steps:
                axes.plot(steps, means, linewidth=1.2, label=_training_label(training))
        axes.axhline(report["baseline"]["mean_validation_error"], color=_GRAY, linestyle="--", label=_BASELINE)
        _scale_errors(axes)
        axes.set_xlabel("step")
        axes.set_title(name)
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(fontsize=7)
    panels[0].set_ylabel("mean validation E so far (estimate)")
    return figure


def _mean_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> tuple[list[float], list[float]]:
    """The steps at which any trained layer was judged, and the mean over these layers of the lowest E until then."""
    judged = [curve for curve in curves if curve]
    steps = sorted({point["step"] for curve in judged for point in curve})
    if not steps:
        return [], []
    # Before its first judgment a layer counts with that judgment, so that the mean is always over all layers.
    lowest = [
        [
            min(point["validation_error"] for point in curve if point["step"] <= max(step, curve[0]["step"]))
            for step in steps
        ]
        for curve in judged
    ]
    return steps, [sum(column) / len(column) for column in zip(*lowest, strict=True)]


def _replay_figure(report: Report) -> Figure:
    """T3: every layer's E under the baseline and under the best configuration."""
    rows = report["T3"]["rows"]
    figure = Figure(figsize=(max(6.0, 2.0 + 0.32 * len(rows)), 4.2), layout="constrained")
    axes = figure.subplots()
    places = list(range(len(rows)))
    axes.bar([at - 0.2 for at in places], [row["baseline_error"] for row in rows], 0.4, color="0.65", label=_BASELINE)
    axes.bar([at + 0.2 for at in places], [row["error"] for row in rows], 0.4, color="C0", label="T3")
    errors = [row[key] for row in rows for key in ("baseline_error", "error") if row[key] > 0.0]
    if errors and max(errors) > _WIDE * min(errors):
        axes.set_yscale("log")
    axes.set_xticks(places, _tick_labels(rows), fontsize=8)
    axes.set_xlabel("block")
    axes.set_ylabel("E on test tokens")
    axes.set_title(f"T3: mean gain {report['T3']['gain_percent']:.1f} %")
    axes.legend(fontsize=8)
    return figure


def _profile_figure(profile: Report) -> Figure:
    """The scales of the worst layer, with the channels in the order of the baseline's scales."""
    order = sorted(range(len(profile["before"])), key=profile["before"].__getitem__)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    after = [profile["after"][channel] for channel in order]
    axes.plot(after, linestyle="none", marker=".", markersize=2.5, color="C0", label="after training (T3)")
    axes.plot([profile["before"][channel] for channel in order], color="0.2", linewidth=1.4, label=_BASELINE)
    axes.set_yscale("log")
    axes.set_xlabel("channel, in the order of the baseline's scale")
    axes.set_ylabel("s / geometric mean of s")
    axes.set_title(profile["layer"])
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def _layer_label(layer: Report) -> str:
    return f"block {layer['block']} ({layer['group']})"


def _tick_labels(rows: Sequence[Report]) -> list[str]:
    """The block of each row, with the last part of the layer's name if a block has several rows."""
    blocks = [row["block"] for row in rows]
    if len(set(blocks)) == len(blocks):
        return [str(block) for block in blocks]
    return [f"{row['block']}\n{row['layer'].rsplit('.', 1)[-1]}" for row in rows]


def _training_label(training: Report) -> str:
    start, rate = training["start"], f"rate {training['learning_rate']:.3g}"
    if start is None:
        return rate
    return f"α {start['alpha']:.4g}, q {start['q']:.5g}, {rate}"
