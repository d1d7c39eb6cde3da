"""Inputs as down_proj sees them: heavy-tailed channels, and a few tokens with one massive activation."""

import torch
from torch import Tensor


def massive_input(
    tokens: int, width: int, *, seed: int = 0, massive: float = 3000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Activations [tokens, width]: channel sizes over three decades, and every 16th token massive in one channel."""
    generator = torch.Generator().manual_seed(seed)
    size_D = 10.0 ** (1.5 * torch.randn(width, generator=generator, dtype=dtype) - 1.0).clamp(-2.0, 1.0)
    x_TD = torch.randn(tokens, width, generator=generator, dtype=dtype) * size_D
    peaks = torch.arange(0, tokens, 16)
    x_TD[peaks, 3 % width] = massive * (1.0 - 0.3 * torch.rand(len(peaks), generator=generator, dtype=dtype))
    return x_TD


def weight(outputs: int, width: int, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A weight matrix [outputs, width] with columns of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    column_D = torch.rand(width, generator=generator, dtype=dtype) + 0.2
    return 0.1 * torch.randn(outputs, width, generator=generator, dtype=dtype) * column_D
