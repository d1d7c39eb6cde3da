"""Stage ``gguf_source``: write the fused float16 model with its importance matrix, and check it.

llama.cpp's own tools convert and quantize the directory (docs/serving.md). A killed attempt loses one block at most.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.calibration.capture import BATCH_TOKENS
from quant_engine.checkpoint.copied_files import copied_file_hashes
from quant_engine.checkpoint.importance import ImportanceMatrix, gguf_names, write_importance_matrix
from quant_engine.errors import VerificationFailed
from quant_engine.models import (
    CheckpointSource,
    HiddenStates,
    StreamedModel,
    ask_transformers,
    hidden_states_bytes,
    next_block,
    relative_difference,
    streamed_logits,
)
from quant_engine.resume_state import StateFile, check_disk
from quant_engine.stages.calibrate import read_windows, training_windows
from quant_engine.stages.context.run import Run
from quant_engine.stages.export import exported_config
from quant_engine.stages.gguf_source.fused_files import Plans, write_others, written_block
from quant_engine.stages.gguf_source.squares import summed_squares
from quant_engine.stages.report.card_inputs import dataset_name
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json
from quant_engine.windows import Windows

GGUF_SOURCE: Final = "gguf-source"
IMPORTANCE: Final = "imatrix.gguf"
_FOUND: Final = "gguf-source.json"
_BOUND: Final = 2e-2
"""The largest relative difference of the logits that rounding the weights to float16 may cause."""
_CHECKED: Final = (2, 64)
"""The windows that the check reads, and the tokens of each."""


def gguf_source_stage(run: Run, plans: Plans, calibrated: Path, upstream: str) -> Stage:
    """The stage that writes ``gguf-source/``. One unit per block, and one for the check of the whole.

    Args:
        plans: of the sites. Their diagonals are fused and nothing else of them.
        calibrated: the directory of ``calibrate``.
        upstream: the digest of the stage that chose the plans.

    Raises:
        UnsupportedArchitecture: GGUF has no names for the model's linears.
    """
    # Before anything is computed.
    gguf_names(run.model.architecture, _linears(run), run.model.blocks)

    def produce(directory: Path, progress: StageProgress) -> None:
        target = directory / GGUF_SOURCE
        target.mkdir(exist_ok=True)
        windows = training_windows(run, read_windows(calibrated))
        _lead_through(run, plans, windows, directory, progress)
        write_others(run, target, exported_config(run))
        squares = {name: each for block in range(run.model.blocks) for name, each in _squares(directory, block).items()}
        matrix = ImportanceMatrix(
            squares={reader: squares[site.name] for site in run.every_site for reader in site.all_readers},
            tokens=windows.tokens,
            dataset=dataset_name(run, run.spec.calibration.dataset),
            windows=len(windows),
            length=windows.length,
        )
        with atomic_write(target / IMPORTANCE) as temporary:
            write_importance_matrix(temporary, matrix, run.model.architecture, run.model.blocks)
        difference = checked_difference(run, target, windows)
        write_json(directory / _FOUND, _described(run, plans, matrix, difference))
        progress.reach(run.model.blocks + 1)

    return Stage(
        name="gguf_source",
        unit="block",
        total=run.model.blocks + 1,
        inputs={"upstream": upstream, "companions": copied_file_hashes(run.base.files)},
        produce=produce,
        resumable=True,
    )


def read_gguf_source(directory: Path) -> dict[str, Any]:
    """What the report says of the directory: what is fused, and what the check and the importance matrix read."""
    found: dict[str, Any] = read_json(directory / _FOUND)
    return found


def _lead_through(run: Run, plans: Plans, windows: Windows, directory: Path, progress: StageProgress) -> None:
    """Write every block, and lead the windows through it as it is stored, to sum the squares of its inputs."""
    model, execution = run.model, run.execution(StateFile(directory))
    state = execution.latest()
    needed = execution.more_bytes(hidden_states_bytes(model, windows.ids_ST.numel()))
    needed += run.source.weight_bytes * torch.float16.itemsize // run.source.dtype.itemsize
    check_disk(directory, needed, "The gguf-source")
    batches = windows.split(execution.together(max(1, BATCH_TOKENS // windows.length)))
    hidden = HiddenStates(model, [each.ids_ST for each in batches], state=state, place=execution.place(model.device))
    valid = [each.valid_ST for each in batches]
    progress.reach(next_block(state))
    for block in range(next_block(state), model.blocks):
        stored = written_block(run, directory / GGUF_SOURCE, block, plans)
        sites = [site for site in run.every_site if site.block == block]
        _write_squares(directory, block, summed_squares(model, block, stored, sites, hidden, valid))
        # The files first: a state means that those of all blocks before it are complete.
        execution.keep(block + 1, {} if block + 1 == model.blocks else hidden.tensors())
        progress.reach(block + 1)


def _linears(run: Run) -> list[str]:
    return [reader for site in run.every_site for reader in site.all_readers]


def _squares_path(directory: Path, block: int) -> Path:
    return directory / f"squares-{block:05d}.safetensors"


def _write_squares(directory: Path, block: int, squares: Mapping[str, Tensor]) -> None:
    with atomic_write(_squares_path(directory, block)) as temporary:
        save_file(dict(squares), temporary)


def _squares(directory: Path, block: int) -> dict[str, Tensor]:
    return load_file(_squares_path(directory, block))


def checked_difference(run: Run, target: Path, windows: Windows) -> float:
    """Return ‖Δ logits‖ / ‖logits‖ of what is stored to the original, both computed in fp32, on calibration text.

    Raises:
        VerificationFailed: it is larger than float16 explains.
        ModelMisread: plain transformers reads the directory differently, or misses a tensor.
    """
    stored = CheckpointSource(target)
    ask_transformers(stored, available=psutil.virtual_memory().available, scratch=run.work_dir)
    count, length = _CHECKED
    ids_BT = windows[:count].shortened(length).ids_ST
    model = StreamedModel(stored, dtype=run.model.dtype, device=run.model.device)
    expected, found = (streamed_logits(each, ids_BT, blocks=each.blocks) for each in (run.model, model))
    difference = relative_difference(expected, found)
    # A comparison with NaN is false, so that NaN fails.
    if not difference <= _BOUND:
        raise VerificationFailed(
            detail=f"The gguf-source differs from the original by {difference:.1e} of its logits; float16 explains "
            f"{_BOUND:.0e}.",
            hint="Leave 'gguf-source' out of output.also; the checkpoint does not need it. Report the model.",
        )
    return difference


def _described(run: Run, plans: Plans, matrix: ImportanceMatrix, difference: float) -> dict[str, Any]:
    return {
        "dtype": "float16",
        "fused_sites": sum(plans[site.name].scales_D is not None for site in run.sites),
        "sites": len(run.every_site),
        "relative_difference": difference,
        "importance": {"linears": len(matrix.squares), "tokens": matrix.tokens, "dataset": matrix.dataset},
    }
