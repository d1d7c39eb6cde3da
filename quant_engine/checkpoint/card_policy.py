"""Describe a policy, which is what was asked, in sentences.

There is one function for each kind of search, training and selection.
"""

from collections.abc import Callable
from typing import Any, Final

from quant_engine.checkpoint.markdown import code
from quant_engine.policy import (
    ActivationQuantization,
    BlockTraining,
    Differentiable,
    GridSearch,
    Kurtosis,
    LowestError,
    PaperExperiment,
    Policy,
    RotationTraining,
    Training,
    Transform,
    TransformKind,
    Tuning,
    WeightQuantization,
)
from quant_engine.policy.selection import Candidate

_ONLINE: Final = {
    "none": "nowhere: what does not fuse is left out",
    "inner": "inside the attention and the feed-forward alone",
    "all": "wherever it does not fuse",
}


def policy_sentences(policy: Policy) -> list[str]:
    """Return the policy as Markdown lines, in the order in which the steps change a layer."""
    ignored = f"; not {_codes(policy.ignore)}" if policy.ignore else ""
    sentences = [
        f"Preset: {code(policy.preset) if policy.preset else 'none, every field given'}.",
        f"Layers: {_codes(policy.targets)}{ignored}.",
        f"Weights: {_weights(policy.weights)}.",
        f"Activations: {_activations(policy.activations)}.",
        f"Transform: {_transform(policy.transform)}; computed at run time {_ONLINE[policy.online]}.",
    ]
    if policy.residual is not None:
        heads = " and of every value head" if policy.residual.heads else ""
        sentences.append(
            f"Residual stream: a rotation of it{heads}, fused into the weights (seed {policy.residual.seed})."
        )
    for label, choice in (
        ("Search", policy.search),
        ("Training", policy.training),
        ("Tuning", policy.tuning),
        ("Selection", policy.selection),
    ):
        if choice is not None:
            sentences.append(f"{label}: {_CHOICES[type(choice)](choice)}.")
    if policy.overrides:
        sentences.append(f"Other settings for {_codes([each.match for each in policy.overrides])}.")
    return sentences


def _weights(weights: WeightQuantization) -> str:
    if weights.format.bits is None:
        return "not quantized"
    scales = f"group of {weights.group_size}" if weights.group_size else weights.granularity
    rounding = "GPTQ" if weights.rounding == "gptq" else "round to nearest"
    corrected = f" after a correction of {weights.gptq.correction:g}" if _is_corrected(weights) else ""
    clipped = ", ranges clipped to the smallest squared error" if weights.clip == "mse" else ""
    zero = "" if weights.symmetric else " and a zero point"
    return f"{weights.format.value}, a scale for each {scales}{zero}, {rounding}{corrected}{clipped}"


def _is_corrected(weights: WeightQuantization) -> bool:
    return weights.rounding == "gptq" and weights.gptq.correction > 0


def _activations(activations: ActivationQuantization) -> str:
    if activations.format.bits is None:
        return "not quantized"
    clipped = ", clipped where a search found it best" if activations.clip == "search" else ""
    if activations.clip_ratio < 1.0:
        clipped = f", clipped at {activations.clip_ratio:g} of the largest value"
    scale = f"group of {activations.group_size}" if activations.group_size else activations.granularity
    zero = "" if activations.symmetric else " and a zero point"
    return f"{activations.format.value}, rounded at run time, a scale for each {scale}{zero}{clipped}"


def _transform(transform: Transform) -> str:
    name = transform.kind.value.replace("_", " ")
    if transform.orders == "power_of_two":
        name += " of orders that are powers of two"
    if transform.permutation != "none":
        name += f" over a fused {transform.permutation} permutation of the feed-forward"
    if not transform.kind.scales_channels:
        return name
    statistic = transform.statistic
    parameter = {"quantile": f"({statistic.q:g})", "lp": f"({statistic.p:g})"}.get(statistic.kind, "")
    return f"{name}, α {transform.alpha:g} on {statistic.kind}{parameter}"


def _candidate(candidate: Candidate) -> str:
    return candidate.value.replace("_", " ") if isinstance(candidate, TransformKind) else _transform(candidate)


def _grid(search: GridSearch) -> str:
    size = len(search.alpha) * (len(search.q) + len(search.p) + search.l2)
    scope = "one for all layers" if search.scope == "shared" else "one for each layer"
    return f"{size} scale policies, {scope}"


def _scales(training: Training) -> str:
    rates = ", ".join(f"{rate:g}" for rate in training.learning_rates)
    return f"channel scales, at most {training.steps} steps at rate {rates}"


def _blocks(training: BlockTraining) -> str:
    learned = ", ".join(each.replace("_", " ") for each in training.learn)
    return f"{learned} of a block together, {training.steps} steps on {training.inputs} inputs"


def _tuning(tuning: Tuning) -> str:
    return f"{' and '.join(tuning.learn)} of the rounded model on the original's predictions, {tuning.steps} steps"


def _lowest(selection: LowestError) -> str:
    return f"for each layer, the lowest error among {'; '.join(map(_candidate, selection.candidates))}"


def _kurtosis(selection: Kurtosis) -> str:
    outlying, typical = _candidate(selection.outlying), _candidate(selection.typical)
    return f"by the kurtosis of a layer's weights: {outlying} where it is outlying, {typical} elsewhere"


def _differentiable(selection: Differentiable) -> str:
    return f"for each layer, by learned weights over {'; '.join(map(_candidate, selection.candidates))}"


_CHOICES: Final[dict[type, Callable[[Any], str]]] = {
    GridSearch: _grid,
    PaperExperiment: lambda _: "the experiment families of arXiv 2606.09927",
    Training: _scales,
    BlockTraining: _blocks,
    RotationTraining: lambda each: f"the residual rotation, {each.steps} steps of Cayley SGD",
    Tuning: _tuning,
    LowestError: _lowest,
    Kurtosis: _kurtosis,
    Differentiable: _differentiable,
}


def _codes(names: Any) -> str:
    return ", ".join(code(name) for name in names)
