"""What other engines do with a checkpoint: one statement for each engine, for the model card.

The statements are data, and name the version that they were checked against and how: *run* is what our tests do,
*routed* is an engine's own scheme routing, executed on our configurations, *read* is its source. docs/serving.md has
them as a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.section import Reach, reach

Verdict = Literal["runs", "differs", "refuses", "wrong"]


@dataclass(frozen=True)
class EngineNote:
    """What one engine does with one checkpoint.

    Attributes:
        engine: its name.
        version: what the statement was checked against.
        verdict: "runs" as measured; "differs": runs with other roundings; "refuses" to load; "wrong": loads, and gives
            wrong logits.
        note: one or two plain sentences.
    """

    engine: str
    version: str
    verdict: Verdict
    note: str


_VERSIONS: Final = {"transformers": "5.17.0", "vLLM": "0.33.0", "SGLang": "0.5.23"}

_BY_REACH: Final[dict[Reach, dict[str, tuple[Verdict, str]]]] = {
    Reach.ANYWHERE: {
        "transformers": ("runs", "from_pretrained gives the quantized model's logits."),
        "vLLM": ("differs", "Its own kernels round activations, so logits differ slightly."),
        "SGLang": ("differs", "Its own kernels round activations, so logits differ slightly."),
    },
    Reach.HADAMARD: {
        "transformers": ("wrong", "from_pretrained drops the online rotations without an error; use our loader."),
        "vLLM": ("differs", "It finds the rotations in transform_config and rounds activations by its own kernels."),
        "SGLang": ("wrong", "It never reads transform_config."),
    },
    Reach.LOADER: dict.fromkeys(
        _VERSIONS, ("refuses", "The number types are spelled so that it stops: only our loader applies the transforms.")
    ),
}


def engine_notes(linears: Sequence[QuantizedLinear]) -> tuple[EngineNote, ...]:
    """One statement for each engine."""
    statements = _BY_REACH[reach(linears)]
    return tuple(EngineNote(engine, version, *statements[engine]) for engine, version in _VERSIONS.items())
