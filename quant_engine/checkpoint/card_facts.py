"""The facts in a model card, as values. The card's bytes depend on them alone, and not on a time or a place."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from quant_engine.checkpoint.license import License
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import Policy, policy_hash

CARD_DATA_VERSION: Final = 1
INLINE: Final = "inline"
"""Stands for texts that came with a request. The texts themselves are not published."""


@dataclass(frozen=True, kw_only=True)
class CalibrationFacts:
    """The calibration. ``sha256`` covers its settings and the resulting token windows.

    Attributes:
        samples, sequence_length: of the windows that were really used.
        fitted: the samples that something was fitted to or chosen by; the others measured the layers' errors alone.
    """

    dataset: str
    samples: int
    sequence_length: int
    fitted: int
    holdout: float
    seed: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class PerplexityFacts:
    """Perplexity: exp of the mean negative log-likelihood per token, over ``tokens`` of ``dataset`` in windows.

    Attributes:
        quantized: with integer inputs rounded as engines round them.
        compressed_tensors: in compressed-tensors' own forward, where that rounds inputs differently.
        predicted: the tokens whose likelihood was measured.
        computed_in: the type and the device of Quantry's own forward.
    """

    dataset: str
    tokens: int
    sequence_length: int
    original: float
    quantized: float
    compressed_tensors: float | None
    predicted: int
    computed_in: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All facts of a card except the list of files.

    Attributes:
        model_id: the base model.
        revision: its commit on the Hub; None for a model that is not from the Hub.
        fingerprint: SHA-256 over its configuration and weights.
        architecture: its class in transformers.
        dtype: of the dense tensors and the scales.
        original_bytes: of its weight files.
        perplexity: None where it was not measured.
        rows: one for each quantized linear, as ``/v1/jobs/{id}/layers`` returns them, in forward order.
        done: what was done, as :func:`quant_engine.checkpoint.done.what_was_done` returns it; ``policy`` is what was
            asked.
        changed_files: a sentence for each change of a file that is copied from the base model.
        windows, source, oracle: the parts of the report of these names; None where it has none.
        versions: of the packages that made the checkpoint.
        license: of the base model, and so of this checkpoint; None where it is not known.
    """

    model_id: str
    revision: str | None
    fingerprint: str
    architecture: str
    dtype: str
    original_bytes: int
    policy: Policy
    calibration: CalibrationFacts
    perplexity: PerplexityFacts | None
    rows: Sequence[LayerRow]
    versions: Mapping[str, str]
    license: License | None
    done: Mapping[str, Any]
    changed_files: Sequence[str] = ()
    windows: Mapping[str, Any] | None = None
    source: Mapping[str, Any] | None = None
    oracle: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the facts in the form of ``quantry.json``."""
        return {
            "format_version": CARD_DATA_VERSION,
            "model": {
                "id": self.model_id,
                "revision": self.revision,
                "fingerprint": f"sha256:{self.fingerprint}",
                "architecture": self.architecture,
                "dtype": self.dtype,
                "bytes": self.original_bytes,
                "license": None if self.license is None else asdict(self.license),
            },
            "policy": self.policy.model_dump(mode="json"),
            "policy_hash": policy_hash(self.policy),
            "done": dict(self.done),
            "changed_files": list(self.changed_files),
            "windows": self.windows,
            "source": self.source,
            "oracle": self.oracle,
            "calibration": asdict(self.calibration),
            "perplexity": None if self.perplexity is None else asdict(self.perplexity),
            "versions": dict(self.versions),
            "layers": [row.model_dump() for row in self.rows],
        }
