"""The facts of the model card. They are known before the export, so they are an input of that stage."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quant_engine.calibration import split_samples
from quant_engine.checkpoint.card_facts import INLINE, CalibrationFacts, CardFacts, PerplexityFacts
from quant_engine.checkpoint.copied_files import changed_files
from quant_engine.checkpoint.license import source_license
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import Dataset, HubDataset, InlineMessages, InlineTexts
from quant_engine.stages.calibrate import read_windows
from quant_engine.stages.choose_plans import ChosenPlans
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.text import resolved_dataset
from quant_engine.stages.evaluate import SECOND
from quant_engine.stages.stage import digest_of
from quant_engine.windows import Windows

_PACKAGES: Final = ("quantry", "torch", "transformers", "compressed-tensors")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of the earlier stages.

    Attributes:
        rows: the layer rows, measured with the exported weights.
        perplexity: as :func:`quant_engine.stages.evaluate.read_perplexity` returns it; None where it was not measured.
        calibrated: the directory of ``calibrate``.
        choices: the results of search, training and selection.
        tuning: the losses of stage ``tune``; None where it did not run.
        windows, source, oracle, gguf_source: the parts of the report of these names, where it has them.
    """

    rows: Sequence[LayerRow] = ()
    perplexity: Mapping[str, Mapping[str, Any]] | None = None
    calibrated: Path | None = None
    choices: ChosenPlans | None = None
    tuning: Mapping[str, Any] | None = None
    windows: Mapping[str, Any] | None = None
    source: Mapping[str, Any] | None = None
    oracle: Mapping[str, Any] | None = None
    gguf_source: Mapping[str, Any] | None = None


def card_facts(run: Run, measured: Measured, done: Mapping[str, Any]) -> CardFacts:
    """The facts of the card, without times and paths, so that a resumed run gives the same bytes."""
    spec = run.spec
    return CardFacts(
        model_id=spec.model_id or spec.model_dir.name,
        revision=spec.revision,
        fingerprint=run.base.fingerprint,
        architecture=run.model.architecture.class_name,
        dtype=str(run.source.dtype).removeprefix("torch."),
        original_bytes=run.base.weight_bytes,
        policy=spec.policy,
        calibration=_calibration(run, measured.calibrated),
        perplexity=_perplexity(run, measured.perplexity),
        rows=measured.rows,
        versions={package: _version(package) for package in _PACKAGES},
        license=source_license(run.base.files),
        done=done,
        changed_files=changed_files(run.base.files),
        windows=measured.windows,
        source=measured.source,
        oracle=measured.oracle,
        gguf_source=measured.gguf_source,
    )


def _calibration(run: Run, calibrated: Path | None) -> CalibrationFacts:
    settings = run.spec.calibration
    windows = None if calibrated is None else read_windows(calibrated)
    shape = (settings.samples, settings.sequence_length) if windows is None else (len(windows), windows.length)
    return CalibrationFacts(
        dataset=dataset_name(run, settings.dataset),
        samples=shape[0],
        sequence_length=shape[1],
        fitted=split_samples(shape[0], settings.holdout).training,
        holdout=settings.holdout,
        seed=settings.seed,
        sha256=None if windows is None else _calibration_hash(run, windows),
    )


def _calibration_hash(run: Run, windows: Windows) -> str:
    """SHA-256 over the settings and the token windows [S, T]."""
    # The name of the data set is left out: equal tokens are the same calibration, wherever the text came from.
    settings = run.spec.calibration.model_dump(mode="json", exclude={"dataset"})
    tokens = hashlib.sha256(windows.ids_ST.contiguous().numpy().tobytes()).hexdigest()
    # Padding is no token, whatever fills it; a window's tokens come first, so their number says which are tokens.
    lengths = windows.valid_ST.sum(dim=1).tolist() if windows.padded else None
    return digest_of({"settings": settings, "shape": list(windows.ids_ST.shape), "tokens": tokens, "lengths": lengths})


def _perplexity(run: Run, found: Mapping[str, Any] | None) -> PerplexityFacts | None:
    settings = run.spec.evaluation.perplexity
    if found is None or settings is None:
        return None
    return PerplexityFacts(
        dataset=dataset_name(run, settings.dataset),
        tokens=settings.tokens,
        sequence_length=settings.sequence_length,
        original=found["original"]["perplexity"],
        quantized=found["quantized"]["perplexity"],
        compressed_tensors=None if found[SECOND] is None else found[SECOND]["perplexity"],
        predicted=found["quantized"]["predicted"],
        computed_in=f"{_computed_in(found['original']['dtype'], found['quantized']['dtype'])} on {run.spec.device}",
    )


def _computed_in(original: str, quantized: str) -> str:
    return quantized if original == quantized else f"{original} before and {quantized} after"


def dataset_name(run: Run, dataset: Dataset | None) -> str:
    """A name of the data set that may be published."""
    resolved = resolved_dataset(run, dataset)
    if isinstance(resolved, HubDataset):
        return resolved.hub
    # Texts that came with a request stay the requester's, so the card does not describe them.
    return INLINE if isinstance(resolved, InlineTexts | InlineMessages) else resolved


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "from source"
