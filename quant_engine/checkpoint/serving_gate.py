"""The serving gate: vLLM, in an environment of its own, serves a checkpoint as it was measured.

:mod:`~quant_engine.checkpoint.serving_check` is the program that runs there. This module has its bounds.

Shapes: N rows, I input and O output channels.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.config import CompressionFormat
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quant_engine.checkpoint import serving_check
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.errors import EngineUnavailable, VerificationFailed

_TIMEOUT_SECONDS: Final = 3600


@dataclass(frozen=True, kw_only=True)
class ServingBounds:
    """The largest differences between vLLM and the measured model.

    Attributes:
        mean_abs_difference: of log-probabilities, in nats.
        perplexity: how far the ratio of perplexities is from 1, beyond three standard errors.
        linear_error: of a linear's worst output channel, of the typical size of its outputs.
    """

    mean_abs_difference: float
    perplexity: float
    linear_error: float


# Of log-probabilities: twice what the measured model itself changes by where its embeddings change by 1e-7, because
# rounded inputs make the last bit of a sum grow to the size of the quantization's error (docs/decisions/0032).
_FULL: Final = {
    "unrounded": ServingBounds(mean_abs_difference=0.02, perplexity=0.01, linear_error=1e-3),
    "float": ServingBounds(mean_abs_difference=0.2, perplexity=0.01, linear_error=0.02),
    "int8": ServingBounds(mean_abs_difference=0.2, perplexity=0.01, linear_error=5e-3),
    "narrow": ServingBounds(mean_abs_difference=1.2, perplexity=0.01, linear_error=0.02),
}
_HALF: Final = {
    "unrounded": ServingBounds(mean_abs_difference=0.1, perplexity=0.02, linear_error=0.05),
    "float": ServingBounds(mean_abs_difference=0.6, perplexity=0.02, linear_error=0.2),
    "int8": ServingBounds(mean_abs_difference=0.3, perplexity=0.02, linear_error=0.1),
    "narrow": ServingBounds(mean_abs_difference=1.5, perplexity=0.02, linear_error=0.2),
}
_ORDER: Final = ("unrounded", "int8", "float", "narrow")


def serving_bounds(linears: Sequence[QuantizedLinear], dtype: str) -> ServingBounds:
    """Return the bounds of the coarsest rounding of inputs in the checkpoint.

    Args:
        dtype: in which vLLM computes; half precision rounds every product.
    """
    kinds = {_rounding(linear) for linear in linears} | {_ORDER[0]}
    return bounds_of(max(kinds, key=_ORDER.index), dtype)


def bounds_of(rounding: str, dtype: str) -> ServingBounds:
    """Return the bounds where inputs are "unrounded", or rounded to "int8", to "float" (fp8), or to "narrow" codes."""
    return (_FULL if dtype == "float32" else _HALF)[rounding]


def _rounding(linear: QuantizedLinear) -> str:
    if linear.served is not None:
        return "int8" if linear.served.bits >= 8 else "narrow"
    if linear.scheme().input_activations is None:
        return "unrounded"
    return "float" if linear.scheme().input_activations.num_bits >= 8 else "narrow"


def serving_dtype(linears: Sequence[QuantizedLinear], dtype: torch.dtype) -> str:
    """Return the type in which the checkpoint is served: its own, but half precision where fp32 has no kernel."""
    # vLLM's own kernels for packed weights take half precision alone. The plugin has a path for fp32.
    packed = any(each.format is CompressionFormat.pack_quantized for each in linears)
    plain = all(each.online.is_identity and (each.served is None or each.served.bits >= 8) for each in linears)
    if dtype is torch.float32 and packed and plain:
        return "bfloat16"
    return str(dtype).removeprefix("torch.")


class RecordedLinears:
    """Some inputs of linears, and their outputs, as the reference of the gate stores them.

    Args:
        rows: which of the B·T positions.

    Attributes:
        tensors: ``x.NAME`` [N, I] and ``y.NAME`` [N, O], fp32, after a forward.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = list(rows)
        self._hooks: list[RemovableHandle] = []
        self.tensors: dict[str, Tensor] = {}

    def attach(self, linear: nn.Module, name: str) -> None:
        """Record ``linear``, whose transform and rounding are attached already."""
        # In front of what transforms the input: vLLM has to do that itself.
        self._hooks += [
            linear.register_forward_pre_hook(lambda _module, inputs: self._keep(f"x.{name}", inputs[0]), prepend=True),
            linear.register_forward_hook(lambda _module, _inputs, output: self._keep(f"y.{name}", output)),
        ]

    def stop(self) -> None:
        """Record no further forward."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.flatten(0, -2)[self._rows].float().cpu().contiguous()


def check_in_vllm(
    python: Path, checkpoint: Path, reference: Path, *, dtype: str, bounds: ServingBounds
) -> dict[str, Any]:
    """Serve the checkpoint in vLLM, in a fresh process, and return the program's findings.

    Args:
        python: the Python of an environment with vLLM and quantry-vllm.

    Raises:
        EngineUnavailable: there is no such environment.
        VerificationFailed: vLLM does not serve the checkpoint, or a difference is beyond its bound.
    """
    # Nothing of our own environment may be found there, and the gate needs no network.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    try:
        finished = subprocess.run(  # noqa: S603 -- the operator's interpreter, our script, and paths that we made
            [
                str(python),
                "-P",
                serving_check.__file__,
                str(checkpoint),
                str(reference),
                f"--dtype={dtype}",
                f"--bounds={json.dumps(vars(bounds))}",
            ],
            env=kept,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as error:
        raise unavailable("is not there, or can not be run") from error
    try:
        found: dict[str, Any] = json.loads(finished.stdout)
    except ValueError as error:
        raise unavailable(f"ended with status {finished.returncode}: {finished.stderr.strip()[-300:]}") from error
    if "vllm" not in found["versions"] or "quantry-vllm" not in found["versions"]:
        raise unavailable("has no vLLM, or no quantry-vllm")
    if not found.get("passed"):
        raise _failed(found)
    return found


def unavailable(what: str) -> EngineUnavailable:
    """Return the error of a machine that can not run the gate."""
    return EngineUnavailable(
        detail=f"The serving gate was asked for, and the Python of QUANTRY_VLLM_PYTHON {what}.",
        hint="Install vLLM and quantry-vllm (make serving-env), and give that environment's Python to every worker.",
    )


def _failed(found: Mapping[str, Any]) -> VerificationFailed:
    if "error" in found:
        what = f"vLLM does not serve it: {found['error']}"
    else:
        what = f"{', '.join(found['outside'])} is beyond its bound"
        what += f" (mean |Δ log-probability| {found['mean_abs_difference']:.3g}, perplexity × "
        what += f"{found['perplexity_ratio']:.4f}, {found['worst_linear']}: {found['linear_error']:.3g})"
    return VerificationFailed(
        detail=f"The exported checkpoint failed the serving gate: {what}."[:1000],
        hint="The checkpoint is not published. Retry the job; if it fails again, report it with the job's policy.",
    )
