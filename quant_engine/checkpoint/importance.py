"""Write an importance matrix as llama.cpp's ``llama-imatrix`` does: for each linear Σ x² of every input channel.

The file is GGUF. ``general.type`` is "imatrix". ``imatrix.datasets``, ``imatrix.chunk_count`` and
``imatrix.chunk_size`` say what was read; a chunk is a window here. Each linear has ``<name>.in_sum2`` [1, I] and
``<name>.counts`` [1, 1], the number of tokens, both fp32, under the name that its weight has in a GGUF file
(``blk.0.attn_q.weight``). Source: llama.cpp, ``tools/imatrix/imatrix.cpp`` and ``tools/quantize/quantize.cpp``.

Shapes: I input channels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from quant_engine.errors import UnsupportedArchitecture
from quant_engine.interface.architectures import Architecture


@dataclass(frozen=True, kw_only=True, eq=False)
class ImportanceMatrix:
    """What an importance matrix says.

    Attributes:
        squares: Σ x² over all tokens [I], by the linear's name in the model class.
        tokens: how many tokens that is.
        dataset: the name of the text.
        windows, length: the number of windows, and the tokens of one.
    """

    squares: Mapping[str, Tensor]
    tokens: int
    dataset: str
    windows: int
    length: int


def gguf_names(architecture: Architecture, linears: Iterable[str], blocks: int) -> dict[str, str]:
    """Return the name of each linear's weight in a GGUF file.

    Raises:
        UnsupportedArchitecture: the installed ``gguf`` has no such architecture, or no name for a linear of it.
    """
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture.gguf_name not in known:
        raise _nameless(architecture)
    names = gguf.get_tensor_name_map(known[architecture.gguf_name], blocks)
    found = {linear: names.get_name(linear) for linear in linears}
    if not all(found.values()):
        raise _nameless(architecture)
    return {linear: f"{name}.weight" for linear, name in found.items()}


def write_importance_matrix(path: Path, matrix: ImportanceMatrix, architecture: Architecture, blocks: int) -> None:
    """Write ``matrix`` to ``path``.

    Raises:
        UnsupportedArchitecture: see :func:`gguf_names`.
    """
    names = gguf_names(architecture, matrix.squares, blocks)
    writer = gguf.GGUFWriter(path, architecture.gguf_name)
    # The file is of no model, so it names no architecture; the library always adds one.
    del writer.kv_data[0][gguf.Keys.General.ARCHITECTURE]
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [matrix.dataset])
    writer.add_uint32("imatrix.chunk_count", matrix.windows)
    writer.add_uint32("imatrix.chunk_size", matrix.length)
    # Sorted, as llama-imatrix does, so that equal statistics give equal bytes.
    for linear in sorted(matrix.squares, key=names.__getitem__):
        squares_1I = matrix.squares[linear].float().cpu().numpy()[None, :]
        writer.add_tensor(f"{names[linear]}.in_sum2", squares_1I)
        writer.add_tensor(f"{names[linear]}.counts", np.full((1, 1), matrix.tokens, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _nameless(architecture: Architecture) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        detail=f"GGUF has no names for the linears of a {architecture.class_name}.",
        hint="Leave 'gguf-source' out of output.also.",
    )
