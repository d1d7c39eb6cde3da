"""Run one stage: write its files into a partial directory, list them in a manifest, and rename the directory.

``work_dir/<stage>/`` exists only when it is complete. Its ``manifest.json`` holds a digest of the stage's inputs and
the SHA-256 of every output. A stage whose manifest matches is reused. If an attempt is killed, the next one continues
in ``work_dir/<stage>.partial/`` if the inputs are the same. Stages that work file by file skip the files that exist.
Stages that send samples through the blocks also read the samples' latest hidden states
(:mod:`quant_engine.resume_state`). Such states are temporary: no manifest lists them, and a finished stage has none.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quant_engine.atomic_write import TEMPORARY, atomic_write
from quant_engine.errors import disk_full_as_error
from quant_engine.interface.layers import LayerRow
from quant_engine.interface.observer import Observer
from quant_engine.interface.stages import require_stage
from quant_engine.resume_state import SUFFIX, remove_states

FORMAT: Final = 1
"""Increased whenever the meaning of a stage's files changes, so that no old file is reused."""

_MANIFEST: Final = "manifest.json"
_INPUTS: Final = "taken-up.digest"
"""The file with the digest of the inputs of a partial stage. Versions without states used another name, so their
partial directories are not continued."""


class StageProgress:
    """Reports the progress of one stage to the observer."""

    def __init__(self, observer: Observer, name: str, total: int) -> None:
        self._observer = observer
        self._name = name
        self._total = total
        self._done = 0

    def advance(self, units: int = 1) -> None:
        """Report that ``units`` more are finished."""
        self.reach(self._done + units)

    def reach(self, done: int) -> None:
        """Report that ``done`` units in all are finished."""
        self._done = done
        self._observer.stage_advanced(self._name, done, self._total)


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name, unit, total: what the observer receives. Name and unit are those of a row of
            :data:`quant_engine.interface.stages.STAGES`.
        inputs: everything that the outputs depend on, as JSON.
        produce: writes the outputs into the directory it is given.
        resumable: ``produce`` skips the files that are already there, and continues after the latest state.
        retell: reports to the observer again what ``produce`` reported, when the files are reused.

    Raises:
        UnknownStage: no row has that name and unit.
    """

    name: str
    unit: str
    total: int
    inputs: dict[str, Any]
    produce: Callable[[Path, StageProgress], None]
    resumable: bool = False
    retell: Callable[[Path], None] | None = None

    def __post_init__(self) -> None:
        require_stage(self.name, self.unit)


def run_stage(stage: Stage, work_dir: Path, observer: Observer) -> Path:
    """Run the stage unless its files are already complete, and return the directory that holds them.

    Raises:
        DiskFull: the disk filled up.
    """
    started = time.monotonic()
    observer.stage_started(stage.name, stage.unit, stage.total)
    final = work_dir / stage.name
    partial = work_dir / f"{stage.name}.partial"
    digest = digest_of({"format": FORMAT, "stage": stage.name, "inputs": stage.inputs})
    reused = _is_complete(final, digest)
    if not reused and _is_complete(partial, digest):
        _put_in_place(partial, final)  # the attempt was killed between the manifest and the rename
        reused = True
    if reused:
        if stage.retell is not None:
            stage.retell(final)
        observer.stage_advanced(stage.name, stage.total, stage.total)
    else:
        with disk_full_as_error(f"the files of stage {stage.name}"):
            _prepare(partial, digest, stage.resumable)
            stage.produce(partial, StageProgress(observer, stage.name, stage.total))
            _describe(partial, digest)
            _put_in_place(partial, final)
    observer.stage_finished(stage.name, time.monotonic() - started, reused)
    return final


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def stage_digest(stage_directory: Path) -> str:
    """A digest of a finished stage's content, which is an input of the stages after it."""
    # The manifest holds the inputs' digest and the hash of every output, so its own hash covers the whole chain.
    return hashlib.sha256((stage_directory / _MANIFEST).read_bytes()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_bytes())


def write_rows(path: Path, rows: Sequence[LayerRow]) -> None:
    """Write the rows of layers as JSON."""
    write_json(path, [row.model_dump() for row in rows])


def read_rows(path: Path) -> list[LayerRow]:
    """Read the rows that :func:`write_rows` wrote."""
    return [LayerRow.model_validate(row) for row in read_json(path)]


def _is_complete(directory: Path, digest: str) -> bool:
    try:
        manifest = read_json(directory / _MANIFEST)
        if manifest["inputs"] != digest:
            return False
        # Hashed again, so that a file that was damaged or changed since is computed again.
        return all(_sha256(directory / name) == sha256 for name, sha256 in manifest["outputs"].items())
    # A missing or malformed manifest means that the stage is not complete. It is no error.
    except (OSError, ValueError, KeyError):
        return False


def _prepare(partial: Path, digest: str, resumable: bool) -> None:
    """Prepare ``partial``: keep files that this attempt can continue from, and remove everything else."""
    marker = partial / _INPUTS
    if not (resumable and marker.is_file() and marker.read_text() == digest):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with atomic_write(marker) as temporary:
            temporary.write_text(digest)
    # A kill during an atomic write leaves its temporary file, which the manifest must not list.
    for leftover in partial.rglob(f"*{TEMPORARY}"):
        leftover.unlink()


def _describe(partial: Path, digest: str) -> None:
    """Write the manifest. After this a kill costs no work: the next attempt only renames the directory."""
    outputs = {
        path.relative_to(partial).as_posix(): _sha256(path)
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name not in (_INPUTS, _MANIFEST) and path.suffix != SUFFIX
    }
    write_json(partial / _MANIFEST, {"inputs": digest, "outputs": outputs})


def _put_in_place(partial: Path, final: Path) -> None:
    # In this order a kill at any point leaves a complete ``partial``, which the next attempt puts in place.
    remove_states(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
