"""The interface through which streaming and the stages read a model's weights, from a checkpoint or a view of one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class WeightSource(Protocol):
    """A model that is read as dense tensors: :class:`CheckpointSource`, and views of one (rotated, quantized)."""

    @property
    def directory(self) -> Path:
        """Where the checkpoint and its tokenizer are."""

    @property
    def config(self) -> dict[str, Any]:
        """The sanitized ``config.json`` that fits the weights as they are read."""

    @property
    def tensors(self) -> Mapping[str, Path]:
        """Every tensor that can be read, and the file it comes from."""

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of an export's dense tensors."""

    @property
    def computed_dtype(self) -> torch.dtype:
        """The type in which the original computes."""

    @property
    def weight_bytes(self) -> int:
        """The bytes of all weights."""

    @property
    def fingerprint(self) -> str:
        """A hash over every byte of the config and the weights."""

    def read(
        self, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the named tensors as ``dtype`` on ``device``."""

    def stored_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the tensors of the checkpoint that reading ``names`` uses.

        Besides these it has the stored scales that are idle by design, such as those of activations. Names that the
        checkpoint does not hold are left out.
        """

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Make the linears below ``module``, whose name begins with ``prefix``, compute as the checkpoint defines."""
