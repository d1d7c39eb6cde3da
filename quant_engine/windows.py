"""Windows of token ids, with the positions that hold a token and those that a loss counts.

Shapes: S windows, T tokens of a window.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

IGNORED: Final = -100
"""The target of a position that a loss skips, as ``torch.nn.functional.cross_entropy`` knows it."""

_SPECIAL: Final = "special_tokens"


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Windows of equal length.

    A window shorter than the others is padded on its right. The tokens before a padded position never attend to it,
    because attention is causal. So no attention mask is needed, and it is enough that nothing counts the position.

    Attributes:
        ids_ST: token ids, int64.
        valid_ST: whether a position holds a token; false where it is padded.
        predicted_ST: whether a loss counts the token. It does not count the first token of a window, which is given,
            the special tokens that begin a text, and padding.
        special_tokens: the tokens that the windows begin with, as the tokenizer names them; empty where there are none.
    """

    ids_ST: Tensor
    valid_ST: Tensor
    predicted_ST: Tensor
    special_tokens: tuple[str, ...] = ()

    @classmethod
    def plain(cls, ids_ST: Tensor, *, given: int = 1, special_tokens: Sequence[str] = ()) -> "Windows":
        """Windows without padding, of which the first ``given`` tokens are given and the others predicted."""
        valid_ST = torch.ones_like(ids_ST, dtype=torch.bool)
        predicted_ST = valid_ST.clone()
        predicted_ST[:, :given] = False
        return cls(ids_ST=ids_ST, valid_ST=valid_ST, predicted_ST=predicted_ST, special_tokens=tuple(special_tokens))

    def __len__(self) -> int:
        """S."""
        return self.ids_ST.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Windows":
        """Some of the windows."""
        return replace(
            self, ids_ST=self.ids_ST[index], valid_ST=self.valid_ST[index], predicted_ST=self.predicted_ST[index]
        )

    @property
    def length(self) -> int:
        """T."""
        return self.ids_ST.shape[1]

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return int(self.valid_ST.sum())

    @property
    def predicted(self) -> int:
        """The number of tokens that a loss counts."""
        return int(self.predicted_ST.sum())

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return not bool(self.valid_ST.all())

    def targets(self) -> Tensor:
        """The ids [S, T], with :data:`IGNORED` where a loss counts nothing."""
        return self.ids_ST.masked_fill(~self.predicted_ST, IGNORED)

    def shortened(self, length: int) -> "Windows":
        """The first ``length`` tokens of each window."""
        return replace(
            self,
            ids_ST=self.ids_ST[:, :length],
            valid_ST=self.valid_ST[:, :length],
            predicted_ST=self.predicted_ST[:, :length],
        )

    def split(self, size: int) -> list["Windows"]:
        """Batches of ``size`` windows; the last one may be smaller."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def to(self, device: torch.device) -> "Windows":
        """The same windows on another device."""
        return replace(
            self,
            ids_ST=self.ids_ST.to(device),
            valid_ST=self.valid_ST.to(device),
            predicted_ST=self.predicted_ST.to(device),
        )


def token_rows(x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """The rows [N, D] of ``x_BTD`` that hold a token, in their order."""
    x_ND = x_BTD.flatten(0, -2)
    # Without padding nothing is copied.
    return x_ND if bool(valid_BT.all()) else x_ND[valid_BT.flatten().to(x_ND.device)]


def write_windows(path: Path, windows: Windows) -> None:
    """Write windows to a safetensors file: ``windows`` (the ids), ``valid`` and ``predicted``."""
    tensors = {"windows": windows.ids_ST, "valid": windows.valid_ST, "predicted": windows.predicted_ST}
    metadata = {_SPECIAL: json.dumps(windows.special_tokens)}
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata=metadata)


def stored_windows(path: Path) -> Windows:
    """Read what :func:`write_windows` wrote."""
    with safe_open(path, framework="pt") as file:
        return Windows(
            ids_ST=file.get_tensor("windows"),
            valid_ST=file.get_tensor("valid"),
            predicted_ST=file.get_tensor("predicted"),
            special_tokens=tuple(json.loads(file.metadata()[_SPECIAL])),
        )
