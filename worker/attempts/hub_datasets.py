"""A job's data sets on the Hub: which of its texts they are, and the commit that all its attempts use."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jobs.settings import Settings
from quant_engine.errors import DatasetNotFound
from quant_engine.interface.datasets import Purpose, characters_for, dataset_folder
from quant_engine.policy import HUB_DATASETS, Calibration, Dataset, Evaluation, HubDataset, JobRequest
from worker.attempts.hub_model import RevisionPin
from worker.attempts.workspace import Workspace
from worker.subprocesses.messages import DatasetDownloadFile

DOWNLOAD_FILE: Final = "dataset-{purpose}.json"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a run: the request's settings with every data set of the Hub at its commit, and their files."""

    calibration: Calibration
    evaluation: Evaluation
    fetched: Mapping[Purpose, Path] = field(default_factory=dict)


def fetch_texts(
    request: JobRequest, settings: Settings, workspace: Workspace, download: Callable[[str, Any], dict[str, Any]]
) -> Texts:
    """Fetch the data sets that a request has on the Hub.

    Args:
        download: runs the download that a file of this name and content describes, and returns its result.

    Raises:
        DatasetNotFound: the download says that the files are outside the cache.
    """
    fetched: dict[Purpose, Path] = {}
    pinned: dict[Purpose, HubDataset] = {}
    for purpose, dataset, tokens in _on_the_hub(request, settings):
        pin = RevisionPin(workspace.dataset_revision(purpose), None)
        file = _download_file(dataset, purpose, tokens, settings, pin.commit())
        payload = download(DOWNLOAD_FILE.format(purpose=purpose.value), file)
        pin.keep(str(payload["revision"]))
        pinned[purpose] = dataset.model_copy(update={"revision": str(payload["revision"])})
        # The path comes from a subprocess, so it is checked and not trusted.
        fetched[purpose] = _require_inside(Path(str(payload["path"])), settings.datasets_cache_dir)
    return Texts(
        calibration=request.calibration.model_copy(update=_update(pinned.get(Purpose.CALIBRATION))),
        evaluation=_evaluation(request.evaluation, pinned.get(Purpose.EVALUATION)),
        fetched=fetched,
    )


def hub_dataset(dataset: Dataset | None, settings: Settings) -> HubDataset | None:
    """Return the data set of the Hub that a request means; None for one that is here."""
    if isinstance(dataset, HubDataset):
        return dataset
    # A folder of the operator's goes before the Hub.
    if not isinstance(dataset, str) or dataset_folder(settings.datasets_dir, dataset) is not None:
        return None
    return HUB_DATASETS.get(dataset)


def _on_the_hub(request: JobRequest, settings: Settings) -> list[tuple[Purpose, HubDataset, int]]:
    """Return the purposes whose text is on the Hub, with the number of tokens that are needed of it."""
    calibration, perplexity = request.calibration, request.evaluation.perplexity
    texts: list[tuple[Purpose, Dataset | None, int]] = []
    # A job that only measures a model does not calibrate.
    if request.policy.task != "evaluate":
        tokens = calibration.samples * calibration.sequence_length
        texts.append((Purpose.CALIBRATION, calibration.dataset, tokens))
    if perplexity is not None:
        texts.append((Purpose.EVALUATION, perplexity.dataset, perplexity.tokens))
    found = ((purpose, hub_dataset(dataset, settings), tokens) for purpose, dataset, tokens in texts)
    return [(purpose, dataset, tokens) for purpose, dataset, tokens in found if dataset is not None]


def _download_file(
    dataset: HubDataset, purpose: Purpose, tokens: int, settings: Settings, commit: str | None
) -> DatasetDownloadFile:
    return DatasetDownloadFile(
        parent_pid=os.getpid(),
        dataset_id=dataset.hub,
        revision=commit or dataset.revision,
        config=dataset.config,
        split=dataset.split,
        purpose=purpose,
        characters=characters_for(tokens),
        cache_dir=settings.datasets_cache_dir,
        max_bytes=settings.max_dataset_bytes,
        patience_seconds=settings.hub_patience_seconds,
    )


def _evaluation(evaluation: Evaluation, pinned: HubDataset | None) -> Evaluation:
    if evaluation.perplexity is None:
        return evaluation
    return Evaluation(perplexity=evaluation.perplexity.model_copy(update=_update(pinned)))


def _update(pinned: HubDataset | None) -> dict[str, Any]:
    return {} if pinned is None else {"dataset": pinned}


def _require_inside(directory: Path, root: Path) -> Path:
    resolved = directory.resolve()
    if not resolved.is_relative_to(root.resolve()) or not resolved.is_dir():
        raise DatasetNotFound(
            detail="The downloaded data set is not where it was said to be.",
            hint="Submit the job again; if it happens twice, clear datasets-cache in the data directory.",
        )
    return resolved
