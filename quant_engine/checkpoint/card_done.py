"""Write what a run did as sentences for the card, from the data of :mod:`quant_engine.checkpoint.done`."""

from collections.abc import Mapping, Sequence
from typing import Any

from quant_engine.checkpoint.markdown import code, number, plain


def done_sentences(done: Mapping[str, Any]) -> list[str]:
    """Return Markdown lines, in the order in which the steps change a layer."""
    sentences = [f"Quantized: {_counted(done['quantized'])}."]
    if done["dense"]:
        sentences.append(f"Not quantized: {_counted(done['dense'])}.")
    sentences += [_scheme(each, alone=len(done["schemes"]) == 1) for each in done["schemes"]]
    sentences += [_transform(each) for each in done["transforms"]]
    online = done["online"]
    moved = f"the input of {_linears(online)}" if online else "nothing"
    sentences.append(f"Transformed at run time: {moved}.")
    for key, write in (("residual", _residual), ("search", _search), ("training", _training), ("tuning", _tuning)):
        if done[key] is not None:
            sentences.append(write(done[key]))
    if done["selection"]:
        chosen = ", ".join(f"{plain(name.replace('_', ' '))} in {count}" for name, count in done["selection"].items())
        sentences.append(f"Selection: of the inputs that linears share, {chosen}.")
    return sentences


def _linears(count: int) -> str:
    return f"{count} linear{'' if count == 1 else 's'}"


def _counted(linears: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {code(name)}" for name, count in linears.items()) or "nothing"


def _scheme(scheme: Mapping[str, Any], *, alone: bool) -> str:
    weights, activations = scheme["weights"], scheme["activations"]
    where = "" if alone else f"{_counted(scheme['linears'])}: "
    corrected = f" after a correction of {weights['correction']:g}" if weights["correction"] else ""
    ranges = {"none": "", "mse": ", ranges clipped to the smallest squared error", "learned": ", on learned ranges"}
    rounding = "GPTQ" if weights["rounding"] == "gptq" else "round to nearest"
    zero = "" if weights["symmetric"] else " and a zero point"
    text = f"weights in {weights['format']}, a scale for each {_scale(weights)}{zero}, {rounding}{corrected}"
    return f"{where or 'All of them: '}{text}{ranges[weights['ranges']]}; {_activations(activations)}."


def _activations(activations: Mapping[str, Any] | None) -> str:
    if activations is None:
        return "activations not rounded"
    clipped = ""
    if activations["clipped"]:
        clipped = f", clipped at {_span(activations['clip_ratios'])} of the largest value in {activations['clipped']}"
    zero = "" if activations["symmetric"] else " and a zero point"
    return f"activations in {activations['format']}, a scale for each {_scale(activations)}{zero}, at run time{clipped}"


def _scale(settings: Mapping[str, Any]) -> str:
    return f"group of {settings['group_size']}" if settings["group_size"] else str(settings["granularity"])


def _span(ends: Sequence[float]) -> str:
    low, high = (number(end) for end in ends)
    return low if low == high else f"{low} to {high}"


def _transform(transform: Mapping[str, Any]) -> str:
    alpha = "" if transform["alpha"] is None else f", α {_span(transform['alpha'])}"
    statistic = "" if transform["statistic"] is None else f", scales from {plain(transform['statistic'])}"
    if transform["statistic"] == "learned":
        statistic = ", learned scales"
    name = plain(transform["transform"].replace("_", " "))
    return f"Transform of {_linears(transform['linears'])}: {name}{alpha}{statistic}."


def _residual(residual: Mapping[str, Any]) -> str:
    heads = " and of every value head" if residual["value_heads"] else ""
    learned = "drawn by a seed"
    if residual["learned_steps"]:
        learned = f"learned in {residual['learned_steps']} steps"
    return f"Residual stream: a rotation of it{heads}, {learned}, fused into the weights."


def _search(search: Mapping[str, Any]) -> str:
    chosen = search["chosen"]
    if chosen is None:
        return "Search: each layer has its own best candidate, or the baseline; the table below has them."
    alpha = chosen.get("alpha") if isinstance(chosen, Mapping) else None
    named = plain(str(chosen)) if alpha is None else f"α {number(alpha)}"
    return f"Search: {named} was the best for the layers it was judged on; others have it where it beat the baseline."


def _training(training: Mapping[str, Any]) -> str:
    if training["kind"] == "scales":
        rate = "" if training["learning_rate"] is None else f", at rate {number(training['learning_rate'])}"
        return f"Training: {_linears(training['learned'])} ended with learned scales{rate}."
    return (
        f"Training: {training['blocks']} blocks, {_span(training['steps'])} steps each; "
        f"{training['improved']} ended better than they began, and the others were left as they began."
    )


def _tuning(tuning: Mapping[str, Any]) -> str:
    start, best = (number(each) for each in tuning["divergence"])
    if not tuning["kept"]:
        return f"Tuning: {tuning['steps']} steps made nothing better, so scales and norms are as they were rounded."
    return (
        f"Tuning: scales of the rounded weights, or norms, trained on the original's predictions and kept from step "
        f"{tuning['kept']} of {tuning['steps']}; the divergence from them fell from {start} to {best} on validation "
        "samples."
    )


def source_sentences(
    source: Mapping[str, Any] | None, oracle: Mapping[str, Any] | None, windows: Mapping[str, Any] | None
) -> list[str]:
    """Return lines about what was read: a quantized source, the comparison with transformers, and the windows' tokens.

    Args:
        source, oracle, windows: the parts of the report of these names; None where it has none.
    """
    sentences = []
    quantization = (source or {}).get("quantization")
    if quantization:
        stored, weights = (plain(str(quantization[key])) for key in ("format", "weights"))
        sentences.append(f"The base model is stored quantized ({stored}). Its weights were {weights}.")
    if oracle is not None:
        sentences.append(_oracle(oracle))
    for purpose, each in (windows or {}).items():
        if each is None:
            continue  # a job may measure nothing
        tokens = each.get("special_tokens")
        begin = " ".join(code(token) for token in tokens) if tokens else "no special token"
        sentences.append(f"Every window of the {plain(purpose)} begins with {begin}.")
    return sentences


def _oracle(oracle: Mapping[str, Any]) -> str:
    if oracle.get("compared") in (None, "none"):
        return "The reading of the base model was not compared with plain transformers."
    what = plain(str(oracle["compared"]))
    return (
        f"The base model as it was read here was compared with plain transformers {plain(str(oracle['transformers']))} "
        f"({what}): relative difference {number(oracle.get('relative_difference'), 2)} over the logits."
    )
