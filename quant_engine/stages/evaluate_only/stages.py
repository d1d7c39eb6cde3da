"""The stages that measure a model unchanged: dense, quantized by another compressed-tensors writer, or by Quantry.

Nothing is calibrated, quantized or exported. A quantized model comes without its original, so there are no errors to
report. What the checkpoint stores for each linear, and the model's perplexity, are measured.
"""

from functools import partial
from pathlib import Path
from typing import Final

import psutil
import torch
from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quant_engine.checkpoint import OnlineInput, attach_online
from quant_engine.checkpoint.config import without_refusal_marker
from quant_engine.checkpoint.quantry_section import read_config, read_online, unusable
from quant_engine.errors import InsufficientMemory
from quant_engine.evaluation.perplexity import PASS_TOKENS, passes, perplexity
from quant_engine.interface.layers import UNMEASURED, LayerRow
from quant_engine.interface.observer import Observer
from quant_engine.interface.positions import check_positions
from quant_engine.interface.spec import RunSpec
from quant_engine.models import Attachment, CheckpointSource, QuantizedSource, StreamedModel, WeightSource, model_sites
from quant_engine.policy import Perplexity, float_format
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.windows import check_texts, window_shapes
from quant_engine.stages.evaluate import (
    PERPLEXITY_FILE,
    STATE_SHARE,
    evaluation_inputs,
    kept_evaluation_windows,
    perplexity_fields,
)
from quant_engine.stages.load import MODEL_FILE
from quant_engine.stages.stage import Stage, StageProgress, read_rows, write_json, write_rows
from quant_engine.transforms.primitives import Hadamard

_ROWS: Final = "layers.json"


def prepare_evaluate_only(spec: RunSpec, *, work_dir: Path, observer: Observer) -> Run:
    """Open the model as a run without sites to quantize.

    Raises:
        ModelNotFound, UnsafeCheckpoint, UnsupportedArchitecture: the model can not be used.
        UnsupportedPolicy: its checkpoint needs something that is not supported here, or a window is too long for it.
    """
    base = CheckpointSource(spec.model_dir)
    source = open_source(base, spec.device)
    check_positions(source.config, None, spec.evaluation)
    model = StreamedModel(source, device=spec.device)
    return Run(
        spec=spec,
        work_dir=work_dir,
        observer=observer,
        base=base,
        source=source,
        model=model,
        every_site=model_sites(model.config, model.architecture),
        sites=[],
        settings={},
    )


def open_source(base: CheckpointSource, device: torch.device | str = "cpu") -> WeightSource:
    """Open the checkpoint in the way that its own configuration describes.

    Raises:
        UnsafeCheckpoint, UnsupportedPolicy: see :class:`QuantizedSource`, and for a checkpoint that Quantry exported
            :func:`quant_engine.checkpoint.load`.
    """
    if not base.is_quantized:
        return base
    section = base.stored_config["quantization_config"]
    if "quantry" not in base.stored_config:
        return QuantizedSource(base, section)
    online = read_online(base.directory, read_config(base.directory)["quantry"], device)
    # A marker makes other loaders refuse the checkpoint (docs/decisions/0008). This reader applies the transforms
    # itself, so it removes the marker.
    attachments = {name: Attachment(_name_of(each), partial(_attach, each)) for name, each in online.items()}
    source = QuantizedSource(base, without_refusal_marker(section), attachments)
    strangers = sorted(online.keys() - source.linears.keys())
    if strangers:
        raise unusable(f"it names {strangers[0]!r}, which is no quantized linear of the model")
    return source


def evaluate_only_load_stage(run: Run) -> Stage:
    """The stage that reads every block once and writes ``model.json`` and the layer rows. One unit per block."""

    def produce(directory: Path, progress: StageProgress) -> None:
        check_texts(run)
        _check_memory(run)
        # Opening a block reads its tensors, so a damaged checkpoint fails here and not in a later stage.
        for block in range(run.model.blocks):
            with run.model.block(block):
                progress.advance()
        facts = {"threads": torch.get_num_threads(), "dtype": str(run.source.dtype)}
        write_json(directory / MODEL_FILE, facts | {"weight_bytes": run.source.weight_bytes})
        write_rows(directory / _ROWS, _rows(run))
        _tell(run, directory)

    return Stage(
        name="load",
        unit="block",
        total=run.model.blocks,
        inputs={"model": run.source.fingerprint, "policy": run.policy_inputs()},
        produce=produce,
        retell=partial(_tell, run),
    )


def loaded_rows(directory: Path) -> list[LayerRow]:
    """The layer rows that ``load`` wrote."""
    return read_rows(directory / _ROWS)


def evaluate_only_perplexity_stage(run: Run, settings: Perplexity, upstream: str) -> Stage:
    """The stage that writes ``perplexity.json``: one unit per block and pass, in the checkpoint's own type."""

    def produce(directory: Path, progress: StageProgress) -> None:
        model = StreamedModel(run.source, dtype=run.source.dtype, device=run.spec.device)
        result = perplexity(
            model,
            kept_evaluation_windows(run, settings, directory),
            on_block=progress.advance,
            execution=run.execution(StateFile(directory, share=STATE_SHARE)),
        )
        measured = perplexity_fields(result)
        # A dense model is its own original; the original of a quantized one is not here.
        original = None if run.base.is_quantized else measured
        write_json(directory / PERPLEXITY_FILE, {"original": original, "quantized": measured})

    return Stage(
        name="evaluate",
        unit="block",
        total=run.model.blocks * passes(window_shapes(run, settings)),
        inputs=evaluation_inputs(run, settings, upstream),
        produce=produce,
        resumable=True,
    )


def stored_scheme_name(scheme: QuantizationScheme | None) -> str:
    """The name of a stored scheme: ``W4A16-g64``, ``W8A8``, ``FP8``, ``NVFP4A16``; ``W16A16`` for a dense linear."""
    if scheme is None:
        return "W16A16"
    weights, inputs = scheme.weights, scheme.input_activations
    if weights is not None and weights.type == "float":
        # Another writer's weights may have a format that no policy can ask for.
        known = float_format(weights.num_bits, weights.group_size)
        name = f"FP{weights.num_bits}" if known is None else known.name
        return name if inputs is not None else f"{name}A16"
    bits = [16 if arguments is None else arguments.num_bits for arguments in (weights, inputs)]
    grouped = weights is not None and weights.group_size
    return f"W{bits[0]}A{bits[1]}" + (f"-g{weights.group_size}" if grouped else "")


def _name_of(online: OnlineInput) -> str:
    """``rotation`` if all primitives are Hadamards, else the names of the primitives; empty if there is only a clip."""
    if all(isinstance(each, Hadamard) for each in online.primitives):
        return "rotation" if online.transforms else ""
    return "+".join(each.name for each in online.primitives)


def _attach(online: OnlineInput, linear: nn.Module) -> None:
    assert isinstance(linear, nn.Linear)  # noqa: S101  # a source attaches to quantized linears alone
    misfit = online.misfit(linear.in_features)
    if misfit is not None:
        raise unusable(misfit)
    attach_online(linear, online)


def _rows(run: Run) -> list[LayerRow]:
    """The rows of every linear of the blocks, and of the head where it is quantized."""
    rows = [_row(run, name, site.block, site.role) for site in run.every_site for name in site.all_readers]
    head = run.model.architecture.head
    if isinstance(run.source, QuantizedSource) and head in run.source.linears:
        rows.append(_row(run, head, run.model.blocks, "head"))
    return rows


def _row(run: Run, name: str, block: int, role: str) -> LayerRow:
    source = run.source
    linear = source.linears.get(name) if isinstance(source, QuantizedSource) else None
    weight = f"{name}.weight"
    bytes_ = source.stored_bytes(name) if isinstance(source, QuantizedSource) else run.base.stored_bytes[weight]
    shape = run.base.shapes[weight] if linear is None else linear.shape
    # UNMEASURED sets the other columns to null: they need a reference model or a choice that this run made.
    return LayerRow(
        name=name,
        block=block,
        role=role,
        scheme=stored_scheme_name(None if linear is None else linear.scheme),
        transform=source.transform_name(name) if isinstance(source, QuantizedSource) else "none",
        parameters=shape[0] * shape[1],
        bytes=bytes_,
        **UNMEASURED,
    )


def _tell(run: Run, directory: Path) -> None:
    for row in loaded_rows(directory):
        run.observer.layer_completed(row)


def _check_memory(run: Run) -> None:
    """Refuse early a model whose smallest working set will not fit.

    Raises:
        InsufficientMemory: with the needed and the available bytes.
    """
    settings, config = run.spec.evaluation.perplexity, run.model.config
    tokens = 0 if settings is None else min(settings.tokens, PASS_TOKENS)
    block = 4 * sum(value.numel() for value in run.model.empty_block(0).parameters())  # bytes in fp32
    ends = 4 * config.vocab_size * config.hidden_size * (1 if run.model.ties_embeddings else 2)
    needed = 4 * tokens * config.hidden_size + 2 * block + ends
    available = psutil.virtual_memory().available
    if needed > available:
        raise InsufficientMemory(
            detail=f"Measuring the model needs about {needed:,} bytes of memory; {available:,} are available.",
            hint="Use fewer evaluation tokens, or a machine with more memory.",
        )
