"""Write the model that is not quantized, with its diagonals fused, as plain float16 safetensors: a file for each block.

Only diagonals are fused. Blocks of four bits lose more behind a rotation (docs/serving.md), and GGUF has no place for
one that is computed at run time.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.checkpoint.copied_files import copy_files
from quant_engine.errors import NumericalInstability
from quant_engine.model_files.headers import INDEX
from quant_engine.models import fuse_scales
from quant_engine.stages.context.run import Run
from quant_engine.transforms import SitePlan

Plans = Mapping[str, SitePlan]

_WIDEST: Final = 2.0**8
"""The largest factor of a fused diagonal, and one over the smallest. float16 holds 2⁻¹⁴ to 2¹⁶ at full precision, and a
channel that is never active would get a factor far outside."""


def bounded_scales(scales_D: Tensor) -> Tensor:
    """Return the diagonal with a geometric mean of 1 and every factor between 2⁻⁸ and 2⁸, fp64.

    A common factor changes no rounding, but it moves weights out of the range of float16. Any positive diagonal leaves
    the function of the model as it is.
    """
    log_D = scales_D.to(torch.float64).log()
    bound = math.log(_WIDEST)
    return (log_D - log_D.mean()).clamp(-bound, bound).exp()


def fused_block(run: Run, block: int, plans: Plans) -> dict[str, Tensor]:
    """Return a block's parameters in float16 with its sites' diagonals fused.

    Raises:
        NumericalInstability: float16 can not hold a value.
    """
    state = run.model.read_block(block)
    for site in run.sites:
        scales_D = plans[site.name].scales_D
        if site.block == block and scales_D is not None:
            fuse_scales(state, site, bounded_scales(scales_D).to(run.model.device))
    return halves(state)


def halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in float16. Raises: NumericalInstability: it can not hold one of their values."""
    found = {name: tensor.to(torch.float16) for name, tensor in state.items()}
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalInstability(
                detail=f"{name} has values that float16 can not hold.",
                hint="Leave 'gguf-source' out of output.also.",
            )
    return found


def block_file(run: Run, block: int) -> str:
    """Return the name of a block's file. The first file has what is outside of the blocks."""
    return f"model-{block + 2:05d}-of-{run.model.blocks + 1:05d}.safetensors"


def written_block(run: Run, directory: Path, block: int, plans: Plans) -> dict[str, Tensor]:
    """Return a block as it is stored, in the type of ``run.model``; write its file where an earlier attempt did not."""
    path = directory / block_file(run, block)
    if not path.is_file():
        _write(path, fused_block(run, block, plans))
    stored = load_file(path, device=str(run.model.device))
    return {name: tensor.to(run.model.dtype) for name, tensor in stored.items()}


def write_others(run: Run, directory: Path, config: Mapping[str, Any]) -> None:
    """Write what is outside of the blocks, the index, the configuration, the tokenizer and the legal texts."""
    ends = run.source.read(run.model.end_names, dtype=torch.float32)
    _write(directory / block_file(run, -1), halves(ends))
    _write_index(directory, [block_file(run, block) for block in range(-1, run.model.blocks)])
    dtypes = ("dtype", "torch_dtype")  # the new name, and the one that older configurations have
    content = {key: value for key, value in config.items() if key not in dtypes} | {"dtype": "float16"}
    _write_json(directory / "config.json", content)
    copy_files(run.base.files, directory)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_write(path) as temporary:
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt"})


def _write_index(directory: Path, files: list[str]) -> None:
    weight_map: dict[str, str] = {}
    values = 0
    for name in files:
        with safe_open(directory / name, framework="pt") as file:
            weight_map |= dict.fromkeys(file.keys(), name)
            values += sum(math.prod(file.get_slice(each).get_shape()) for each in file.keys())  # noqa: SIM118  # no mapping
    metadata = {"total_size": values * torch.float16.itemsize}
    _write_json(directory / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
