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

from quant_engine.checkpoint import ActivationGrid
from quant_engine.errors import InsufficientMemory
from quant_engine.evaluation.perplexity import PASS_TOKENS, passes, perplexity
from quant_engine.interface.layers import UNMEASURED, LayerRow
from quant_engine.interface.observer import Observer
from quant_engine.interface.positions import check_positions
from quant_engine.interface.spec import RunSpec
from quant_engine.model_files import FileRules, check_companions
from quant_engine.models import (
    CheckpointSource,
    QuantizedSource,
    ScaledSource,
    StreamedModel,
    WeightSource,
    model_sites,
)
from quant_engine.policy import Perplexity, float_format
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.source import open_source, source_sentence
from quant_engine.stages.context.windows import check_texts, window_shapes
from quant_engine.stages.evaluate import (
    PERPLEXITY_FILE,
    SECOND,
    STATE_SHARE,
    evaluation_inputs,
    kept_evaluation_windows,
    perplexity_fields,
)
from quant_engine.stages.load import MODEL_FILE
from quant_engine.stages.original import check_original
from quant_engine.stages.stage import Stage, StageProgress, read_rows, write_json, write_rows

_ROWS: Final = "layers.json"
_CODES: Final = {"F8_E4M3": "FP8A16", "F8_E5M2": "FP8A16", "I8": "W8A16"}
"""The schemes of codes with scales. Their inputs are in floating point, whatever a runtime would do with them."""


def prepare_evaluate_only(spec: RunSpec, *, work_dir: Path, observer: Observer) -> Run:
    """Open the model as a run without sites to quantize.

    Raises:
        ModelNotFound, UnsafeCheckpoint, InvalidModel, UnsupportedArchitecture: the model can not be used.
        AdapterNotMerged, UnsupportedQuantization, UnsupportedPolicy: see :func:`open_source`; a window may also be too
            long for the model.
    """
    base = CheckpointSource(spec.model_dir, rules=FileRules(spec.link_dirs))
    source = open_source(base, spec.device)
    check_positions(source.config, None, spec.evaluation)
    sentence = source_sentence(base, source)
    if sentence is not None:
        observer.log(sentence)
    model = StreamedModel(source, device=spec.device)
    return Run(
        spec=spec,
        work_dir=work_dir,
        observer=observer,
        base=base,
        dense=source,
        source=source,
        model=model,
        every_site=model_sites(model.config, model.architecture),
        sites=[],
        settings={},
    )


def evaluate_only_load_stage(run: Run) -> Stage:
    """The stage that reads every block once and writes ``model.json`` and the layer rows. One unit per block."""

    def produce(directory: Path, progress: StageProgress) -> None:
        check_companions(run.base.files)
        check_texts(run)
        _check_memory(run)
        oracle = check_original(run, directory)
        # Opening a block reads its tensors, so a damaged checkpoint fails here and not in a later stage.
        for block in range(run.model.blocks):
            with run.model.block(block):
                progress.advance()
        facts = {"threads": torch.get_num_threads(), "dtype": str(run.source.dtype), "oracle": oracle}
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
    """The stage that writes ``perplexity.json``: one unit per block and pass, in the checkpoint's own type.

    A checkpoint that compressed-tensors' own forward rounds on another grid than engines is measured on both.
    """
    other = _on_second_grid(run)

    def produce(directory: Path, progress: StageProgress) -> None:
        windows = kept_evaluation_windows(run, settings, directory)

        def measured(source: WeightSource, name: str) -> dict[str, float | int | str]:
            model = StreamedModel(source, dtype=source.computed_dtype, device=run.spec.device)
            execution = run.execution(StateFile(directory, name, share=STATE_SHARE))
            return perplexity_fields(perplexity(model, windows, on_block=progress.advance, execution=execution), model)

        found = measured(run.source, "quantized")
        # A dense model is its own original; the original of a quantized one is not here.
        original = None if run.base.is_quantized else found
        second = None if other is None else measured(other, SECOND)
        write_json(directory / PERPLEXITY_FILE, {"original": original, "quantized": found, SECOND: second})

    return Stage(
        name="evaluate",
        unit="block",
        total=(1 if other is None else 2) * run.model.blocks * passes(window_shapes(run, settings)),
        inputs=evaluation_inputs(run, settings, upstream),
        produce=produce,
        resumable=True,
    )


def _on_second_grid(run: Run) -> WeightSource | None:
    """The model with integer inputs on compressed-tensors' own grid; None where that is no other model."""
    source = run.source
    if not isinstance(source, QuantizedSource) or not source.rounds_as_engines:
        return None
    return open_source(run.base, run.spec.device, grid=ActivationGrid.COMPRESSED_TENSORS)


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


def _rows(run: Run) -> list[LayerRow]:
    """The rows of every linear of the blocks, and of the head where it is quantized."""
    rows = [_row(run, name, site.block, site.role) for site in run.every_site for name in site.all_readers]
    head, source = run.model.architecture.head, run.source
    compressed = isinstance(source, QuantizedSource) and head in source.linears
    if compressed or (isinstance(source, ScaledSource) and f"{head}.weight" in source.quantization.weights):
        rows.append(_row(run, head, run.model.blocks, "head"))
    return rows


def _row(run: Run, name: str, block: int, role: str) -> LayerRow:
    source, weight = run.source, f"{name}.weight"
    scheme, transform, shape = "W16A16", "none", run.base.shapes.get(weight, ())
    if isinstance(source, QuantizedSource):
        linear = source.linears.get(name)
        scheme, transform = stored_scheme_name(linear and linear.scheme), source.transform_name(name)
        shape = shape if linear is None else linear.shape
    elif isinstance(source, ScaledSource) and weight in source.quantization.weights:
        scheme = _CODES[source.quantization.weights[weight].dtype]
    quantized = source if isinstance(source, QuantizedSource | ScaledSource) else None
    # UNMEASURED sets the other columns to null: they need a reference model or a choice that this run made.
    return LayerRow(
        name=name,
        block=block,
        role=role,
        scheme=scheme,
        transform=transform,
        parameters=shape[0] * shape[1],
        bytes=run.base.stored_bytes[weight] if quantized is None else quantized.stored_bytes(name),
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
