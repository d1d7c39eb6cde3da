"""Open a model for a run in the way that its own files describe: dense, or quantized already."""

from functools import partial
from typing import Any

import torch
from torch import nn

from quant_engine.checkpoint import ActivationGrid, OnlineInput, attach_served
from quant_engine.checkpoint.config import without_refusal_marker
from quant_engine.checkpoint.quantry_section import own_section, read_online, unusable
from quant_engine.errors import AdapterNotMerged
from quant_engine.interface.architectures import architecture_of
from quant_engine.interface.layout import model_layout
from quant_engine.model_files import (
    ModelDescription,
    QuantizationKind,
    SourceQuantization,
    adapter_problem,
    check_source,
)
from quant_engine.model_files.unread import check_tensors
from quant_engine.models import Attachment, CheckpointSource, QuantizedSource, ScaledSource, WeightSource
from quant_engine.transforms.primitives import Hadamard


def open_source(
    base: CheckpointSource,
    device: torch.device | str = "cpu",
    *,
    weights_only: bool = False,
    grid: ActivationGrid = ActivationGrid.ENGINES,
) -> WeightSource:
    """Return the model of a checkpoint.

    Args:
        weights_only: return the dense model that the stored weights represent, to quantize it again. Otherwise the
            linears of a compressed-tensors checkpoint also round and transform their inputs as it defines.
        grid: whose scale its dynamic integer inputs have.

    Raises:
        AdapterNotMerged: the directory holds an adapter.
        UnsupportedArchitecture: the class is not supported.
        UnsupportedQuantization: the weights are quantized in a way that can not be read, or can not be used so.
        ModelNotFound, UnsafeCheckpoint, InvalidModel, UnsupportedPolicy: see :class:`QuantizedSource`, and for a
            checkpoint that Quantry exported :func:`quant_engine.checkpoint.load`.
    """
    # An adapter alone has no config and no weights, and has to be told as what it is.
    _refuse_adapter(adapter_problem(base.files))
    # A class that is not supported is named before its tensors are.
    architecture_of(ModelDescription(base.files, {}).config)
    _refuse_adapter(adapter_problem(base.files, base.description.tensors))
    check_source(base.description, weights_only=weights_only)
    layout, found = model_layout(base.stored_config), base.quantization
    source: WeightSource = base
    parts: frozenset[str] = frozenset()
    if found.kind is QuantizationKind.SCALED:
        source = scaled = ScaledSource(base, found)
        parts = scaled.parts
    elif found.kind is QuantizationKind.COMPRESSED_TENSORS:
        source = compressed = _compressed(base, found, device, weights_only=weights_only, grid=grid)
        parts = compressed.parts
    check_tensors(base.description, layout, parts)
    return source


def _refuse_adapter(problem: AdapterNotMerged | None) -> None:
    if problem is not None:
        raise problem


def described_source(base: CheckpointSource, source: WeightSource) -> dict[str, Any] | None:
    """Return what a report says about a source that was quantized already; None for a dense one.

    Args:
        source: as :func:`open_source` returned it for ``base``.
    """
    if isinstance(source, ScaledSource):
        how, unused = "multiplied by their scales", {name.rpartition(".")[2] for name in base.quantization.idle}
    elif isinstance(source, QuantizedSource):
        how = "decompressed"
        static = {part for linear in source.linears.values() for part in linear.static}
        unused = static if source.weights_only else set()
    else:
        return None
    rounds = isinstance(source, QuantizedSource) and not source.weights_only
    return {
        "format": base.quantization.name,
        "weights": f"{how}, in {str(source.computed_dtype).removeprefix('torch.')}",
        "inputs": "rounded as the checkpoint defines" if rounds else "in floating point",
        "unused_parts": sorted(unused),
    }


def source_sentence(base: CheckpointSource, source: WeightSource) -> str | None:
    """Return the line for the log about a source that was quantized already; None for a dense one."""
    described = described_source(base, source)
    if described is None:
        return None
    return (
        f"The model is quantized already ({described['format']}). Its weights are {described['weights']}, and the "
        f"inputs of its linears {described['inputs']}: every figure of this job refers to this model."
    )


def _compressed(
    base: CheckpointSource,
    found: SourceQuantization,
    device: torch.device | str,
    *,
    weights_only: bool,
    grid: ActivationGrid,
) -> QuantizedSource:
    if "quantry" not in base.stored_config:
        return QuantizedSource(base, found.section, weights_only=weights_only, grid=grid)
    # A marker makes other loaders refuse the checkpoint (docs/decisions/0008). This reader applies the transforms
    # itself, so it removes the marker.
    section = without_refusal_marker(found.section)
    if weights_only:
        return QuantizedSource(base, section, {}, weights_only=True)
    online = read_online(base.shards, own_section(base.stored_config), device)
    attachments = {
        name: Attachment(_name_of(each), partial(_attach, each, grid), rounds=True) for name, each in online.items()
    }
    source = QuantizedSource(base, section, attachments, grid=grid)
    strangers = sorted(online.keys() - source.linears.keys())
    if strangers:
        raise unusable(f"it names {strangers[0]!r}, which is no quantized linear of the model")
    return source


def _name_of(online: OnlineInput) -> str:
    """``rotation`` if all primitives are Hadamards, else the names of the primitives; empty if there is only a clip."""
    if all(isinstance(each, Hadamard) for each in online.primitives):
        return "rotation" if online.transforms else ""
    return "+".join(each.name for each in online.primitives)


def _attach(online: OnlineInput, grid: ActivationGrid, linear: nn.Module) -> None:
    assert isinstance(linear, nn.Linear)  # noqa: S101  # a source attaches to quantized linears alone
    misfit = online.misfit(linear.in_features)
    if misfit is not None:
        raise unusable(misfit)
    attach_served(linear, online, grid)
