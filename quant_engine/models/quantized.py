"""Read a checkpoint of compressed-tensors as the dense weights that its codes represent, linear by linear.

compressed-tensors itself interprets ``quantization_config``: which tensors a linear stores, and how its inputs are
rounded. The configuration is applied to a model without memory, as ``from_pretrained`` does, and the compressor of its
scheme decompresses each linear. So a streamed forward has the same bits as the model of ``from_pretrained``.

Shapes: O output and I input channels.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationStatus, apply_quantization_config
from compressed_tensors.quantization.lifecycle.forward import set_forward_quantized
from torch import Tensor, nn

from quant_engine.errors import UnsupportedPolicy, UnsupportedQuantization
from quant_engine.interface.architectures import architecture_of
from quant_engine.model_files import without_quantization
from quant_engine.model_files.code_scales import coded
from quant_engine.model_files.compressed_section import cache_tensors, transform_tensors
from quant_engine.models.configuration import empty_model, model_configuration
from quant_engine.models.foreign_transforms import Attachment, foreign_transforms
from quant_engine.models.named_targets import with_names
from quant_engine.models.quantization_config import parse_quantization
from quant_engine.models.served_inputs import ActivationGrid, round_as_served, served_integers
from quant_engine.models.source import CheckpointSource
from quant_engine.models.stored_linear import StoredLinear, misfit, scheme_of, stored_linear

_OURS: Final = "quantry"
# The errors that compressed-tensors raises for a configuration or for tensors that do not fit.
_MISFITS: Final = (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError, NotImplementedError)
_IDLE: Final = ("weight_zero_point", "input_zero_point", "output_zero_point")
"""Tensors that older writers also store for symmetric schemes, where a zero point is zero."""


@dataclass(frozen=True)
class QuantizedSource:
    """A quantized checkpoint as a :class:`WeightSource`.

    Args:
        base: the checkpoint.
        quantization: its ``quantization_config``.
        online: what each linear computes besides, by its name; None for what the ``transform_config`` defines.
        weights_only: the source is the dense model of the dequantized weights: its linears round and transform nothing.
        grid: whose scale dynamic integer inputs have.

    Raises (from every reading member):
        UnsupportedPolicy, UnsupportedQuantization: the checkpoint needs something that is not supported here; the
            error names it.
        InvalidModel: its ``quantization_config`` is malformed, or does not fit the model or the tensors.
        ModelNotFound: see :class:`CheckpointSource`.
    """

    base: CheckpointSource
    quantization: Mapping[str, Any]
    online: Mapping[str, Attachment] | None = None
    weights_only: bool = False
    grid: ActivationGrid = ActivationGrid.ENGINES

    @property
    def directory(self) -> Path:
        """Where the checkpoint and its tokenizer are."""
        return self.base.directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sanitized configuration of the model without quantization."""
        stored = without_quantization(self.base.stored_config)
        return {key: value for key, value in stored.items() if key != _OURS}

    @cached_property
    def tensors(self) -> dict[str, Path]:
        """The dense tensors that can be read, and the files that they come from."""
        found = {name: path for name, path in self.base.tensors.items() if self._linear_of(name) is None}
        for linear in self.linears.values():
            found[f"{linear.name}.weight"] = self.base.locate(f"{linear.name}.{next(iter(linear.parts))}")
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of an export's dense tensors."""
        return self.base.export_dtype or self.computed_dtype

    @cached_property
    def computed_dtype(self) -> torch.dtype:
        """The type that the configuration names, in which the model computes; else that of most floating tensors."""
        return self.base.named_dtype or self.base.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files; of the dense weights, where the source is those."""
        if not self.weights_only:
            return self.base.weight_bytes
        dense = sum(math.prod(linear.shape) * self.dtype.itemsize for linear in self.linears.values())
        others = (
            self.base.stored_bytes[name] for name in self.tensors if name.removesuffix(".weight") not in self.linears
        )
        return dense + sum(others)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the stored checkpoint."""
        return self.base.fingerprint

    @cached_property
    def linears(self) -> dict[str, StoredLinear]:
        """Every quantized linear by its name, in the model's order."""
        config = parse_quantization(self.quantization, weights_only=self.weights_only)
        # This changes the empty model: its modules get schemes, and their parameters become those of the stored layout.
        model = self._model
        try:
            apply_quantization_config(model, with_names(config, model), show_progress=False)
            found = [stored_linear(name, module, config) for name, module in model.named_modules() if scheme_of(module)]
        except _MISFITS as error:
            raise misfit(f"its quantization_config does not fit the model ({type(error).__name__}: {error})") from error
        linears = {linear.name: linear for linear in found}
        self._refuse_tied(linears)
        self._refuse_unknown_parts(linears)
        self._refuse_unknown_codes(linears)
        return linears

    def read(
        self, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the named tensors as ``dtype`` on ``device``; quantized weights are dequantized."""
        names = list(names)
        quantized = [
            name for name in names if name.removesuffix(".weight") in self.linears and name.endswith(".weight")
        ]
        read = self.base.read([name for name in names if name not in set(quantized)], dtype=dtype, device=device)
        for name in quantized:
            read[name] = self._weight(self.linears[name.removesuffix(".weight")], device).to(dtype)
        return {name: read[name] for name in names}

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Make the linears below ``module`` round and transform as the checkpoint defines it.

        Their ``weight`` has to be the dense one.

        Args:
            prefix: the beginning of the module's name in the whole model.
        """
        if self.weights_only:
            return
        for local, linear in module.named_modules():
            stored = self.linears.get(prefix + local)
            if stored is not None and isinstance(linear, nn.Linear):
                for part, tensor in self._parts(stored, stored.static, device).items():
                    # Not persistent: a block's state has to hold the dense parameters alone.
                    linear.register_buffer(part, tensor, persistent=False)
                linear.quantization_scheme = stored.scheme
                # With this status compressed-tensors rounds inputs and uses the weight as it is.
                linear.quantization_status = QuantizationStatus.DECOMPRESSED
                set_forward_quantized(linear)
            attachments = self._online.get(prefix + local, ())
            if stored is not None and not any(each.rounds for each in attachments):
                round_as_served(linear, self.grid)
            for attachment in attachments:
                attachment.attach(linear)

    @property
    def rounds_as_engines(self) -> bool:
        """Whether an input is rounded on the grid of engines where compressed-tensors' own forward has another one.

        False also where that forward could not run the checkpoint.
        """
        foreign = self.online is None or all(each.name in ("", "rotation") for each in self.online.values())
        return foreign and any(served_integers(each.scheme.input_activations) for each in self.linears.values())

    def stored_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the tensors of the checkpoint that reading ``names`` uses, and what is no weight by design.

        The latter are scales of inputs and of the key-value cache, and the matrices of online transforms.
        """
        found = set(names)
        for name in list(found):
            linear = self.linears.get(name.removesuffix(".weight"))
            if linear is not None and name.endswith(".weight"):
                found.discard(name)
                found |= {f"{linear.name}.{part}" for part in (*linear.parts, *_IDLE)}
        section = self.quantization
        transforms = transform_tensors(self.base.stored_config, section, self.base.stored)
        return self.base.stored_names(found | transforms | cache_tensors(section, self.base.stored))

    @property
    def parts(self) -> frozenset[str]:
        """The tensors of the checkpoint that belong to quantized linears, or are no weights by design."""
        return self.stored_names(f"{linear}.weight" for linear in self.linears)

    def quantized_names(self) -> frozenset[str]:
        """Return the tensors of the checkpoint that are codes or scales, or belong to a quantized linear otherwise."""
        return self.stored_names(f"{linear}.weight" for linear in self.linears)

    def stored_bytes(self, linear: str) -> int:
        """Return the bytes of a linear's codes and their scales, or of its dense weight."""
        stored = self.linears.get(linear)
        parts = ("weight",) if stored is None else tuple(stored.parts.keys() - {*stored.static, "weight_shape"})
        return sum(self.base.stored_bytes[f"{linear}.{part}"] for part in parts)

    def transform_name(self, linear: str) -> str:
        """Return the name of what a linear computes besides rounding; ``none`` for nothing."""
        return "+".join(attachment.name for attachment in self._online.get(linear, ())) or "none"

    @cached_property
    def _model(self) -> Any:
        return empty_model(model_configuration(self.config), self.computed_dtype)

    @cached_property
    def _online(self) -> dict[str, tuple[Attachment, ...]]:
        if self.online is not None:
            return {name: (attachment,) for name, attachment in self.online.items()}
        section = self.quantization.get("transform_config") or {}
        # A new empty model, because that of ``_model`` is changed when the linears are found.
        return foreign_transforms(
            section, empty_model(model_configuration(self.config), self.computed_dtype), self.base
        )

    def _linear_of(self, tensor: str) -> StoredLinear | None:
        """Return the quantized linear to which a stored tensor belongs, or None."""
        name, _, part = tensor.rpartition(".")
        linear = self.linears.get(name)
        # A bias is not quantized: it is read as a dense tensor.
        return None if linear is None or part == "bias" else linear

    def _parts(self, linear: StoredLinear, wanted: Iterable[str], device: torch.device | str) -> dict[str, Tensor]:
        """Return a linear's tensors as ``from_pretrained`` holds them: floating ones in its empty parameters' types."""
        names = {part: f"{linear.name}.{part}" for part in wanted}
        stored = self.base.read(names.values(), dtype=None, device=device)
        tensors = {part: stored[name] for part, name in names.items()}
        return {
            part: tensor.to(linear.parts[part]) if tensor.is_floating_point() else tensor
            for part, tensor in tensors.items()
        }

    def _weight(self, linear: StoredLinear, device: torch.device | str) -> Tensor:
        parts = self._parts(linear, [part for part in linear.parts if part not in linear.static], device)
        compressor: Any = BaseCompressor.get_value_from_registry(linear.scheme.format.value)
        try:
            w_OI: Tensor = compressor.decompress(parts, linear.scheme)["weight"].detach()
        except (*_MISFITS, IndexError) as error:
            raise misfit(f"{linear.name} can not be decompressed ({type(error).__name__}: {error})") from error
        if tuple(w_OI.shape) != linear.shape:
            raise misfit(f"{linear.name} is {list(w_OI.shape)}, and the model needs {list(linear.shape)}")
        return w_OI

    def _refuse_tied(self, linears: Mapping[str, StoredLinear]) -> None:
        # A tied matrix is both the embedding and the head, and can not be quantized for one of them.
        architecture = architecture_of(self.config)
        ends = [name for name in (architecture.embedding, architecture.head) if name in linears]
        if ends and self._model.config.tie_word_embeddings:
            raise UnsupportedPolicy(
                detail=f"The checkpoint quantizes {ends[0]} but ties its embedding and its head.",
                hint="Write it with tie_word_embeddings false, or list both in ignore.",
            )

    def _refuse_unknown_parts(self, linears: Mapping[str, StoredLinear]) -> None:
        """Refuse a tensor that its linear's scheme does not have (g_idx of an older activation order).

        It would mean that the scheme is read wrongly.
        """
        for tensor in self.base.tensors:
            name, _, part = tensor.rpartition(".")
            if name in linears and part not in (*linears[name].parts, "bias", *_IDLE):
                raise UnsupportedPolicy(
                    detail=f"The checkpoint stores {tensor}, which compressed-tensors does not read for its scheme.",
                    hint="Write the checkpoint with a current version of compressed-tensors.",
                )

    def _refuse_unknown_codes(self, linears: Mapping[str, StoredLinear]) -> None:
        """Refuse weights of other linears that are no dense ones."""
        others = [name for name in coded(self.base.stored) if name.rpartition(".")[0] not in linears]
        if others:
            raise UnsupportedQuantization(
                detail=f"{others[0]} holds {self.base.stored[others[0]].dtype} codes, but the quantization_config has "
                "no scheme for it, and codes are not weights.",
                hint="Put back the config.json that belongs to these weights, or give the dense original.",
            )
