"""Write the model card of a checkpoint, and the same facts as data.

``README.md`` states what loads the checkpoint, how accurate it is and where it comes from. ``quantry.json`` has the
same facts as data, and ``layers.png`` shows the layers' errors. Equal facts and files give equal bytes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCard, ModelCardData

from quant_engine.checkpoint.card_facts import CardFacts
from quant_engine.checkpoint.card_figure import FIGURE, draw_layers
from quant_engine.checkpoint.card_sections import card_body
from quant_engine.checkpoint.card_text import Loading, loading
from quant_engine.checkpoint.hashes import CARD, CARD_DATA, CheckpointManifest, checkpoint_manifest
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.quantry_section import Reach
from quant_engine.policy import HUB_DATASETS

_HUB_NAMES: Final = {name: dataset.hub for name, dataset in HUB_DATASETS.items()}


def write_card(directory: Path, facts: CardFacts, linears: Sequence[QuantizedLinear]) -> None:
    """Complete a checkpoint: write the plot, ``quantry.json``, and last the card, which lists every other file.

    Args:
        directory: the checkpoint, with all its other files.
        linears: every quantized linear.
    """
    if facts.rows:
        draw_layers(facts.rows, directory / FIGURE)
    # Two lists, because a file can not contain its own hash: quantry.json lists neither itself nor the card.
    files = checkpoint_manifest(directory, without=(CARD, CARD_DATA))
    _write_card_data(directory / CARD_DATA, facts, files)
    card = model_card(facts, linears, checkpoint_manifest(directory, without=(CARD,)))
    card.save(directory / CARD)


def model_card(facts: CardFacts, linears: Sequence[QuantizedLinear], files: CheckpointManifest) -> ModelCard:
    """Return the card.

    Args:
        files: every file but the card.
    """
    how = loading(linears)
    front_matter = _front_matter(facts, how).to_yaml()
    return ModelCard(f"---\n{front_matter}\n---\n\n{card_body(facts, linears, how, files)}")


def _front_matter(facts: CardFacts, how: Loading) -> ModelCardData:
    schemes = sorted({row.scheme.lower() for row in facts.rows})
    # The Hub looks the base model up, so only a model of the Hub is named.
    base: dict[str, Any] = (
        {} if facts.revision is None else {"base_model": facts.model_id, "base_model_relation": "quantized"}
    )
    name = facts.calibration.dataset
    # The name of a data set of the Hub has an owner, which no other name has.
    dataset = name if "/" in name else _HUB_NAMES.get(name)
    rotated = ["hadamard"] if how.reach is Reach.HADAMARD else []
    return ModelCardData(
        **base,
        **_license(facts),
        # The Hub shows how this library loads the model; the code of transformers would drop what is online.
        library_name="transformers" if how.plain else "quantry",
        pipeline_tag="text-generation",
        tags=["quantry", "quantized", "compressed-tensors", *schemes, *rotated],
        datasets=None if dataset is None else [dataset],
    )


def _license(facts: CardFacts) -> dict[str, Any]:
    if facts.license is None:
        return {}
    named = {"license": facts.license.id, "license_name": facts.license.name, "license_link": facts.license.link}
    return {key: value for key, value in named.items() if value is not None}


def _write_card_data(path: Path, facts: CardFacts, files: CheckpointManifest) -> None:
    content = _finite(facts.as_json()) | {"files": [asdict(file) for file in files.files]}
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
