"""The data and the loss of block training: samples with their full-precision outputs, and the error to minimize.

    loss = Σ_t w_t ‖ŷ_t − y_t‖² / Σ_t w_t ‖y_t‖²,    w_t = min(1, c² · median ‖y‖² / ‖y_t‖²)

Shapes: B samples, T tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability

TOKEN_CAP: Final = 8.0
"""c: a token counts fully up to this many times the median length. Massive tokens are rare, and hundreds of times
longer. Without a cap their error would be the whole loss, and the block would be trained for them alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockBatch:
    """The inputs of a decoder layer for some samples, and the outputs that it should give.

    Attributes:
        inputs_BTD: the hidden states before the layer: those of the quantized model, or the full-precision ones.
        targets_BTD: the full-precision layer's output on full-precision inputs.
        arguments: the other arguments of the layer for this shape (masks, rotary positions).
        valid_BT: whether a position holds a token; None where all do. Padding does not count.
    """

    inputs_BTD: Tensor
    targets_BTD: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    valid_BT: Tensor | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        valid_BT = self.valid_BT
        return self.targets_BTD.shape[:-1].numel() if valid_BT is None else int(valid_BT.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedBatch:
    """A batch with w_t / (the mean of w ‖y‖² over all batches), [B, T], so that the losses of batches add up.

    The weight of padding is zero.
    """

    batch: BlockBatch
    weight_BT: Tensor

    def error(self, outputs_BTD: Tensor) -> Tensor:
        """The relative, weighted square error, summed over the batch's tokens."""
        device = outputs_BTD.device  # with little memory the samples lie in the memory of the CPU
        square_BT = (outputs_BTD - self.batch.targets_BTD.to(device)).square().sum(dim=-1)
        return (square_BT * self.weight_BT.to(device)).sum()

    @property
    def tokens(self) -> int:
        """The number of tokens, B · T without padding."""
        return self.batch.tokens


def weighted(batches: Sequence[BlockBatch], median: float) -> list[WeightedBatch]:
    """Weigh the tokens of ``batches``, given the median ‖y‖² of the training tokens."""
    squares = [_squares(batch) for batch in batches]
    # The clamp avoids a division by zero for tokens whose target is zero; their weight is 1.
    weights = [torch.clamp(TOKEN_CAP**2 * median / square.clamp(min=_tiny(square)), max=1.0) for square in squares]
    weights = [w if b.valid_BT is None else w * b.valid_BT.to(w) for w, b in zip(weights, batches, strict=True)]
    total = sum(float((w * s).sum(dtype=torch.float64)) for w, s in zip(weights, squares, strict=True))
    mean = total / sum(batch.tokens for batch in batches)
    return [WeightedBatch(batch=b, weight_BT=w / mean) for b, w in zip(batches, weights, strict=True)]


def median_square(batches: Sequence[BlockBatch]) -> float:
    """The median ‖y_t‖² over all tokens.

    Raises:
        NumericalInstability: a target is not finite, or half of them are zero.
    """
    squares = [_squares(each) if each.valid_BT is None else _squares(each)[each.valid_BT] for each in batches]
    median = float(torch.cat([each.flatten() for each in squares]).median())
    if not 0.0 < median < float("inf"):  # written so that NaN fails too
        raise NumericalInstability(
            detail=f"The outputs of a block have a median squared length of {median}.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    return median


def _squares(batch: BlockBatch) -> Tensor:
    return batch.targets_BTD.square().sum(dim=-1)


def _tiny(square: Tensor) -> float:
    return torch.finfo(square.dtype).tiny
