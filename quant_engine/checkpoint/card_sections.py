"""Write the sections of a model card in Markdown. All text from other sources passes through :mod:`.markdown`."""

import math
from collections.abc import Sequence
from typing import Final

from quant_engine.checkpoint.card_done import done_sentences, source_sentences
from quant_engine.checkpoint.card_facts import INLINE, CardFacts
from quant_engine.checkpoint.card_figure import FIGURE
from quant_engine.checkpoint.card_policy import policy_sentences
from quant_engine.checkpoint.card_text import Loading
from quant_engine.checkpoint.engines import engine_notes
from quant_engine.checkpoint.hashes import CARD_DATA, CheckpointManifest
from quant_engine.checkpoint.license import OTHER
from quant_engine.checkpoint.markdown import code, code_cell, json_block, number, plain, table
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.evaluation.report import gain_percent, measured
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import policy_hash

LONG: Final = 24
"""With more layers than this the table is folded, and the worst ones are listed before it."""

_WORST: Final = 8
_NO_DATASETS: Final = {INLINE: "texts that came with the request", "self": "text that the base model wrote"}
_COLUMNS: Final = ("layer", "scheme", "transform", "α", "E", "baseline E", "gain %", "SQNR dB", "bytes")


def card_body(facts: CardFacts, linears: Sequence[QuantizedLinear], how: Loading, files: CheckpointManifest) -> str:
    """Return the card's text after the front matter."""
    schemes = ", ".join(sorted({row.scheme for row in facts.rows})) or "quantized"
    sections = [
        f"# {plain(facts.model_id)}, {plain(schemes)}",
        f"Quantized by Quantry: {len(linears)} linear layers, {how.online}.",
        f"## How to load it: {how.heading}\n\n{_how_to_load(facts, how)}",
        f"## What engines do with it\n\n{_engines(linears)}",
        f"## Base model\n\n{_base_model(facts)}",
        f"## What was done\n\n{_done(facts)}",
        f"## What was asked\n\n{_policy(facts)}",
        f"## Layers\n\n{_layers(facts.rows)}",
        f"## Perplexity\n\n{_perplexity(facts)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## Provenance\n\n{_provenance(facts, files)}",
    ]
    return "\n\n".join(sections) + "\n"


def _how_to_load(facts: CardFacts, how: Loading) -> str:
    version = plain(facts.versions["quantry"])
    needs = "" if how.plain else f"`quant_engine` is a package of Quantry; its version here was {version}.\n\n"
    return f"{needs}```python\n{how.code}\n```\n\n{how.text}"


def _engines(linears: Sequence[QuantizedLinear]) -> str:
    notes = engine_notes(linears)
    # The notes are our own Markdown, so only the bar, which ends a cell, is escaped.
    rows = [(each.engine, each.version, f"**{each.verdict}**", each.note.replace("|", "\\|")) for each in notes]
    return table(("engine", "checked with", "verdict", "what it does"), rows)


def _base_model(facts: CardFacts) -> str:
    commit = "none: a local model" if facts.revision is None else code_cell(facts.revision)
    rows = [
        ("model", code_cell(facts.model_id)),
        ("commit", commit),
        ("configuration and weights", code_cell(f"sha256:{facts.fingerprint}")),
        ("architecture", code_cell(facts.architecture)),
        ("dense tensors and scales", code_cell(facts.dtype)),
        ("license", _license(facts)),
    ]
    return table(("", ""), rows)


def _license(facts: CardFacts) -> str:
    if facts.license is None:
        return "not stated with the model; its own terms hold for this checkpoint too"
    named = facts.license.name if facts.license.id == OTHER and facts.license.name else facts.license.id
    link = "" if facts.license.link is None else f" ({plain(facts.license.link)})"
    return f"{plain(named)}{link}, the base model's"


def _done(facts: CardFacts) -> str:
    sentences = [*done_sentences(facts.done), *source_sentences(facts.source, facts.oracle, facts.windows)]
    # These name files and settings of the base model.
    changed = [f"Changed in a file of the base model: {plain(each)}." for each in facts.changed_files]
    return "\n".join(f"- {sentence}" for sentence in (*sentences, *changed))


def _policy(facts: CardFacts) -> str:
    sentences = "\n".join(f"- {sentence}" for sentence in policy_sentences(facts.policy))
    return f"{sentences}\n\n{_folded('The whole policy', json_block(facts.policy.model_dump(mode='json')))}"


def _layers(rows: Sequence[LayerRow]) -> str:
    if not rows:
        return "No layer was measured."
    legend = (
        "E is ‖Y − Q(X')Q(W')ᵀ‖ (Frobenius norm) on tokens that nothing was fitted to or chosen by; the baseline is "
        "SmoothRot(0.5, max) with round to nearest on the same grids; bytes are the packed weights and their scales."
    )
    plot = f"![The error of every layer, and its baseline's, by block]({FIGURE})"
    whole = _layer_table(rows)
    if len(rows) > LONG:
        worst = sorted(rows, key=_normalized, reverse=True)[:_WORST]
        whole = f"The {_WORST} layers with the largest normalised error:\n\n{_layer_table(worst)}\n\n" + _folded(
            f"All {len(rows)} layers", whole
        )
    return f"{_means(rows)}\n\n{plot}\n\n{legend}\n\n{whole}"


def _means(rows: Sequence[LayerRow]) -> str:
    error = sum(measured(row.error) for row in rows) / len(rows)
    baseline = sum(measured(row.baseline_error) for row in rows) / len(rows)
    gain = gain_percent(error, baseline)
    return f"Mean E over {len(rows)} layers: {number(error)}, baseline {number(baseline)}, gain {_percent(gain)} %."


def _normalized(row: LayerRow) -> float:
    value = row.error_normalized
    # A layer without a finite error counts as the worst.
    return value if value is not None and math.isfinite(value) else math.inf


def _layer_table(rows: Sequence[LayerRow]) -> str:
    cells = [
        (
            code_cell(row.name),
            plain(row.scheme),
            plain(row.transform),
            number(row.alpha),
            number(row.error),
            number(row.baseline_error),
            _percent(row.gain_percent),
            _percent(row.sqnr_db),
            f"{row.bytes:,}",
        )
        for row in rows
    ]
    return table(_COLUMNS, cells, right=range(3, len(_COLUMNS)))


_SECOND_GRID: Final = (
    "Integer inputs were rounded as engines round them: a token's absmax is 127 steps at eight bits, 7 at four. "
    "compressed-tensors' own forward, which plain `from_pretrained` runs, takes half a step more; its perplexity is {}."
)


def _perplexity(facts: CardFacts) -> str:
    found = facts.perplexity
    if found is None:
        return "Not measured."
    ratio = found.quantized / found.original if found.original else math.nan
    setting = f"{_dataset(found.dataset)}, {found.tokens:,} tokens in windows of {found.sequence_length}"
    engine = f"Quantry {plain(facts.versions['quantry'])} in {plain(found.computed_in)}"
    rows = [(number(found.original, 6), number(found.quantized, 6), number(ratio))]
    measured_by = f"({found.predicted:,} of them predicted), measured by {engine}"
    measured = f"On {setting} {measured_by}.\n\n" + table(("before", "after", "ratio"), rows, right=range(3))
    if found.compressed_tensors is None:
        return measured
    # Two figures for one checkpoint have to be explained where they stand.
    return f"{measured}\n\n{_SECOND_GRID.format(number(found.compressed_tensors, 6))}"


def _dataset(name: str) -> str:
    return _NO_DATASETS.get(name) or code(name)


def _limits(facts: CardFacts) -> str:
    calibration = facts.calibration
    limits = [
        f"Calibrated on {calibration.samples:,} samples of {calibration.sequence_length:,} tokens of "
        f"{_dataset(calibration.dataset)}, of which {calibration.fitted:,} to fit and to choose; text of another "
        "kind or language may lose more.",
        "Measured by layer errors and perplexity alone: no task accuracy, and nothing about safety or bias.",
        "What the base model can not do or must not be used for holds here as well.",
    ]
    if facts.perplexity is None:
        limits[1] = "Measured by layer errors alone: no perplexity, no task accuracy, nothing about safety or bias."
    elif facts.perplexity.dataset == calibration.dataset != INLINE:
        limits.append("Calibrated and evaluated on parts of one data set, which flatters the perplexity.")
    return "\n".join(f"- {limit}" for limit in limits)


def _provenance(facts: CardFacts, files: CheckpointManifest) -> str:
    calibration = facts.calibration
    rows = [
        ("policy", code_cell(policy_hash(facts.policy))),
        ("calibration: settings and tokens", code_cell(f"sha256:{calibration.sha256}" if calibration.sha256 else "")),
        ("seed", str(calibration.seed)),
        *((plain(package), plain(version)) for package, version in sorted(facts.versions.items())),
    ]
    listed = [(code_cell(file.path), f"{file.bytes:,}", code_cell(file.sha256)) for file in files.files]
    total = sum(file.bytes for file in files.files)
    size = (
        f"{total:,} bytes in all; the base model's weights are {facts.original_bytes:,}. "
        f"`{CARD_DATA}` holds the same facts as data."
    )
    return f"{table(('', ''), rows)}\n\n{table(('file', 'bytes', 'SHA-256'), listed, right=(1,))}\n\n{size}"


def _folded(title: str, content: str) -> str:
    """Return ``content`` folded under ``title``."""
    # Inside of ``details`` Markdown is recognized only between empty lines.
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"


def _percent(value: float | None) -> str:
    return number(None) if value is None or not math.isfinite(value) else f"{value:.2f}"
