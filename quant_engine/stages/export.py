"""Stages ``export`` and ``verify``: write the checkpoint, and check that a reload gives exactly the same logits."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.checkpoint import ActivationGrid, ExportedModel, QuantizedLinear, exported_tensors, write_checkpoint
from quant_engine.checkpoint.card import write_card
from quant_engine.checkpoint.copied_files import copied_file_hashes
from quant_engine.checkpoint.verify import verify_in_fresh_process
from quant_engine.errors import disk_full_as_error
from quant_engine.models import StreamedModel
from quant_engine.models.configuration import attention_implementation
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize.block_files import Plans, block_linears, block_path, dense_linears, quantized_reader
from quant_engine.stages.report.card_inputs import Measured, card_facts
from quant_engine.stages.report.done import done_by
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json

CHECKPOINT = "checkpoint"
_VERIFICATION = "verification.json"
_REFERENCE_TOKENS = 64


def export_stage(run: Run, quantized: Path, plans: Plans, upstream: str, measured: Measured | None = None) -> Stage:
    """The stage that writes ``checkpoint/``. One unit per block, one for the ends, and one for the online transforms.

    Args:
        measured: for the model card; without it the card says that nothing was measured.
    """
    # Partial functions, so that one part at a time is in memory while it is written.
    parts: list[Callable[[], dict[str, Tensor]]] = [partial(load_file, quantized / "ends.safetensors")]
    linears = block_linears(run, plans)
    parts += [partial(_block_part, block_path(quantized, block), linears[block]) for block in range(run.model.blocks)]
    measured = measured or Measured()
    facts = card_facts(run, measured, done_by(run, plans, measured.rows, measured.choices, measured.tuning))
    config = exported_config(run)

    def produce(directory: Path, progress: StageProgress) -> None:
        model = ExportedModel(
            source=run.base.files,
            config=config,
            linears=[each for block in linears.values() for each in block.values()],
            dense=dense_linears(run),
            dtype=run.source.dtype,
        )
        checkpoint = directory / CHECKPOINT
        checkpoint.mkdir()  # always new: the stage is not resumable, so it starts in an empty directory
        write_checkpoint(checkpoint, model, parts, on_part=progress.reach)
        with disk_full_as_error("the model card"):
            write_card(checkpoint, facts, model.linears)

    return Stage(
        name="export",
        unit="part",
        total=len(parts) + 1,
        inputs={
            "upstream": upstream,
            # The card and the copied files are part of the checkpoint, so a change in them needs a new export.
            "card": facts.as_json(),
            "companions": copied_file_hashes(run.base.files),
        },
        produce=produce,
    )


def exported_config(run: Run) -> dict[str, Any]:
    """The model's configuration, with the attention named where the default of ``from_pretrained`` would be wrong."""
    config = {key: value for key, value in run.source.config.items() if key != "attn_implementation"}
    attention = attention_implementation(run.model.config)
    return config if attention == "sdpa" else config | {"attn_implementation": attention}


def _block_part(path: Path, linears: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    return exported_tensors(load_file(path), linears.values())


def verify_stage(run: Run, quantized: Path, exported: Path, plans: Plans, upstream: str) -> Stage:
    """The stage that writes ``verification.json``. Its one unit is the gate.

    ``produce`` raises VerificationFailed when the reloaded logits differ at all from the in-memory model's.
    """

    def produce(directory: Path, progress: StageProgress) -> None:
        # The reference is a file because a fresh process compares with it. That process shares no state with this one,
        # so it loads the checkpoint as a user does.
        reference = directory / "reference.safetensors"
        _write_reference(run, quantized, plans, reference)
        found = verify_in_fresh_process(exported / CHECKPOINT, reference)
        write_json(directory / _VERIFICATION, asdict(found))
        progress.advance()

    return Stage(name="verify", unit="check", total=1, inputs={"upstream": upstream}, produce=produce)


def read_verification(directory: Path) -> dict[str, Any]:
    """The result of the gate."""
    found: dict[str, Any] = read_json(directory / _VERIFICATION)
    return found


def gate_grid(linears: Mapping[int, Mapping[str, QuantizedLinear]]) -> ActivationGrid:
    """Whose grid the gate compares on: where nothing is online, the gate loads with plain transformers."""
    plain = all(each.online.is_identity for block in linears.values() for each in block.values())
    return ActivationGrid.COMPRESSED_TENSORS if plain else ActivationGrid.ENGINES


@torch.no_grad()
def _write_reference(run: Run, quantized: Path, plans: Plans, path: Path) -> None:
    """Write fixed tokens and the logits of the quantized model on them.

    The logits come from the files of ``quantize``. If they came from the export, an error of the export would go
    unnoticed.
    """
    model = StreamedModel(run.source, dtype=run.source.dtype)
    length = min(_REFERENCE_TOKENS, int(model.config.max_position_embeddings))
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, int(model.config.vocab_size), (2, length), generator=generator)
    linears = block_linears(run, plans)
    read, prepare = quantized_reader(quantized, linears, model, gate_grid(linears))
    entered = model.enter(ids_BT)
    hidden = entered.hidden_BTD
    for index in range(model.blocks):
        with model.block(index, read, prepare) as block:
            hidden = block(hidden, **entered.layer_arguments[index])
    tensors = {"input_ids": ids_BT, "logits": model.leave(hidden).contiguous()}
    # The number of threads decides how sums are split, so the fresh process has to use the same number.
    save_file(tensors, path, metadata={"threads": str(torch.get_num_threads())})
