"""What a run did, as plain data for the card and the report. It is made from results, and never from the policy.

A policy says what was asked. Targets may match less than somebody expects, a selection may choose something else, a
training may stop early, and what can not run online is left out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import ActivationQuantization, WeightQuantization


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The results of search, training and selection.

    Attributes:
        search: as the report has it: ``scope`` and ``chosen``; None without a search.
        blocks: the losses of each block, where blocks were trained.
        learning_rate: at which the scales were trained, where all layers share one.
        selected: the name of the candidate that was chosen, for each site; empty without a selection.
        tuning: the losses of the tuning after rounding; None without one.
        residual: ``learned_steps`` and ``value_heads`` of the rotation of the residual stream; None without one.
        learned_clips: the linears whose weights were rounded on learned ranges.
    """

    search: Mapping[str, Any] | None = None
    blocks: Mapping[str, Mapping[str, Any]] | None = None
    learning_rate: float | None = None
    selected: Mapping[str, str] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    residual: Mapping[str, Any] | None = None
    learned_clips: frozenset[str] = frozenset()


def what_was_done(
    linears: Sequence[QuantizedLinear], dense: Iterable[str], rows: Sequence[LayerRow], choices: Choices
) -> dict[str, Any]:
    """Return the facts as JSON.

    Args:
        linears: every quantized linear, as it is exported.
        dense: the names of all other linears.
        rows: the layers' rows; empty where nothing was measured.
    """
    return {
        "quantized": _by_part(linear.name for linear in linears),
        "dense": _by_part(dense),
        "schemes": _schemes(linears, choices.learned_clips),
        "transforms": _transforms(rows),
        "online": sum(linear.online.transforms for linear in linears),
        "residual": None if choices.residual is None else dict(choices.residual),
        "search": None if choices.search is None else {key: choices.search.get(key) for key in ("scope", "chosen")},
        "training": _training(rows, choices),
        "tuning": _tuning(choices.tuning),
        "selection": dict(sorted(Counter(choices.selected.values()).items())),
    }


def _by_part(names: Iterable[str]) -> dict[str, int]:
    """Count linears by the last part of their names, in the order of their first."""
    return dict(Counter(name.rpartition(".")[2] for name in names))


def _schemes(linears: Sequence[QuantizedLinear], learned: frozenset[str]) -> list[dict[str, Any]]:
    groups: dict[tuple[WeightQuantization, ActivationQuantization, bool], list[QuantizedLinear]] = {}
    for linear in linears:
        # The ratios of clips are listed, so they do not separate linears.
        activations = linear.activations.model_copy(update={"clip": "none", "clip_ratio": 1.0})
        groups.setdefault((linear.weights, activations, linear.name in learned), []).append(linear)
    return [
        {
            "linears": _by_part(each.name for each in members),
            "weights": _weights(weights, learned=is_learned),
            "activations": _activations(activations, members),
        }
        for (weights, activations, is_learned), members in groups.items()
    ]


def _weights(weights: WeightQuantization, *, learned: bool) -> dict[str, Any]:
    group = weights.format.group_size or weights.group_size
    gptq = weights.rounding == "gptq"
    return {
        "format": weights.format.value,
        "granularity": "group" if group else weights.granularity,
        "group_size": group,
        "symmetric": weights.symmetric,
        "rounding": weights.rounding,
        "correction": weights.gptq.correction if gptq else 0.0,
        "ranges": "learned" if learned else weights.clip,
    }


def _activations(activations: ActivationQuantization, members: Sequence[QuantizedLinear]) -> dict[str, Any] | None:
    if not activations.format.quantizes:
        return None
    clips = [each.online.clip_ratio for each in members if each.online.clip_ratio < 1.0]
    return {
        "format": activations.format.value,
        "granularity": "group" if activations.format.group_size else activations.granularity,
        "group_size": activations.format.group_size or activations.group_size,
        "symmetric": activations.symmetric,
        "clipped": len(clips),
        "clip_ratios": [min(clips), max(clips)] if clips else None,
    }


def _transforms(rows: Sequence[LayerRow]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str | None], list[LayerRow]] = {}
    for row in rows:
        groups.setdefault((row.transform, row.statistic), []).append(row)
    found = []
    for (transform, statistic), members in groups.items():
        alphas = [row.alpha for row in members if row.alpha is not None]
        span = [min(alphas), max(alphas)] if alphas else None
        found.append({"transform": transform, "statistic": statistic, "alpha": span, "linears": len(members)})
    return sorted(found, key=lambda each: -int(each["linears"]))


def _training(rows: Sequence[LayerRow], choices: Choices) -> dict[str, Any] | None:
    if choices.blocks:
        # The last judgment is the last step, or the one at which the block stopped.
        last = [curve["curve"][-1]["step"] for curve in choices.blocks.values() if curve["curve"]]
        kept = [curve["best_step"] for curve in choices.blocks.values()]
        return {
            "kind": "block",
            "blocks": len(kept),
            "steps": [min(last), max(last)] if last else [0, 0],
            "improved": sum(step > 0 for step in kept),
        }
    if choices.learning_rate is not None or any(row.statistic == "learned" for row in rows):
        learned = sum(row.statistic == "learned" for row in rows)
        return {"kind": "scales", "learning_rate": choices.learning_rate, "learned": learned}
    return None


def _tuning(tuning: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if tuning is None:
        return None
    steps = tuning["curve"][-1]["step"] if tuning["curve"] else 0
    return {"steps": steps, "kept": tuning["best_step"], "divergence": [tuning["start_loss"], tuning["best_loss"]]}
