"""Find the scheme and the kernel that a serving engine chooses for a checkpoint, without running the engine.

    pip download --no-deps vllm && unzip -q vllm-*.whl '*.py' -d vllm
    pip download --no-deps compressed-tensors==0.17.0 && unzip -q compressed_tensors-0.17.0-*.whl -d theirs
    PYTHONPATH=theirs python -m benchmarks.routing --vllm vllm --config DIR/config.json

and ``--sglang`` for SGLang. PYTHONPATH puts the compressed-tensors version that the wheel requires (``Requires-Dist``
in its METADATA) before the installed one, because it checks the configuration. The benchmark executes the engine's own
code from config.json to the choice of a scheme, of its online transform, and (vLLM) of a kernel for packed integers and
fp4. GPUs, other kernels and everything around them are stand-ins. So the outcome shows nothing about speed or about the
results of kernels.
"""

import argparse
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import compressed_tensors
import torch
import transformers  # noqa: F401 -- an engine's modules have to find the real one loaded, not half of it
from torch import nn

from benchmarks.stand_ins import StandIns, install, provide

_FUSED: Final = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
_LAYERS: Final = {
    "self_attn.qkv_proj": "QKVParallelLinear",
    "self_attn.o_proj": "RowParallelLinear",
    "mlp.gate_up_proj": "MergedColumnParallelLinear",
    "mlp.down_proj": "RowParallelLinear",
}
"""The linears of a block of Llama, Qwen or Mistral as engines fuse them, and their classes in the engines."""
_CAPABILITIES: Final = (75, 80, 89, 90, 100, 120)


class _Capability(NamedTuple):
    major: int
    minor: int

    def to_int(self) -> int:
        return self.major * 10 + self.minor


class _Kinds(Enum):
    CUDA = 0
    ROCM = 1
    CPU = 2
    XPU = 3


class Gpu:
    """A stand-in for the CUDA device that an engine's code queries. Every other query returns False."""

    def __init__(self) -> None:
        self.capability = _CAPABILITIES[0]
        self._enum = _Kinds.CUDA

    def is_cuda(self) -> bool:
        """Return True."""
        return True

    is_cuda_alike = is_cuda

    def fp8_dtype(self) -> torch.dtype:
        """The fp8 type of NVIDIA GPUs."""
        return torch.float8_e4m3fn

    def get_device_capability(self, _device: int = 0) -> _Capability:
        """The capability as major and minor number: (9, 0) for sm90."""
        return _Capability(*divmod(self.capability, 10))

    def has_device_capability(self, wanted: int) -> bool:
        """Whether the capability is at least ``wanted``."""
        return self.capability >= wanted

    def is_device_capability(self, wanted: int) -> bool:
        """Whether the capability is exactly ``wanted``."""
        return self.capability == wanted

    def is_device_capability_family(self, wanted: int) -> bool:
        """Whether the major number is that of ``wanted``."""
        return self.capability // 10 == wanted // 10

    def __getattr__(self, name: str) -> Callable[..., bool]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_arguments, **_named: False


class _LinearBase(nn.Module):
    scheme: Any = None


class _LinearMethodBase:
    pass


class _Unquantized(_LinearMethodBase):
    pass


@dataclass(frozen=True)
class Engine:
    """The modules that route in one engine, and what they need.

    Attributes:
        real: the modules that are executed.
        stood_in: other packages that these import.
        prepare: provides the values that these need from stand-in modules.
        module: the module with ``CompressedTensorsConfig``.
        kernel: returns the kernel of a scheme for a linear of this many inputs and outputs; empty if it is not asked.
    """

    package: str
    real: tuple[str, ...]
    stood_in: tuple[str, ...]
    prepare: Callable[[Gpu], None]
    module: str
    kernel: Callable[[Any, int, int], str]


def main() -> None:
    """Route every configuration and print the outcomes."""
    options = _parser().parse_args()
    name = "vllm" if options.vllm is not None else "sglang"
    engine, gpu = _ENGINES[name], Gpu()
    install(StandIns(getattr(options, name), (engine.package, *engine.stood_in), engine.real))
    engine.prepare(gpu)
    routing = importlib.import_module(engine.module)
    print(f"{name}, compressed-tensors {compressed_tensors.__version__}")
    for path in options.config:
        print(path)
        outcomes: defaultdict[str, list[str]] = defaultdict(list)
        # The engine's code reads the capability from ``gpu`` at each query. Equal outcomes are printed once.
        for gpu.capability in options.capability:
            outcomes[_routed(engine, routing, json.loads(path.read_text()))].append(f"sm{gpu.capability}")
        for outcome, capabilities in outcomes.items():
            print(f"  {' '.join(capabilities)}{outcome}")


def _routed(engine: Engine, routing: Any, config: Mapping[str, Any]) -> str:
    """One line for each different outcome, with the names of its linears."""
    try:
        quantization = routing.CompressedTensorsConfig.from_config(config["quantization_config"])
    except Exception as error:  # noqa: BLE001 -- whatever an engine stops with is the outcome
        return f"\n    everything: {_brief(error)}"
    quantization.packed_modules_mapping = _FUSED  # in an engine the model's class sets it
    found: defaultdict[str, list[str]] = defaultdict(list)
    for block in range(config["num_hidden_layers"]):
        for role, kind in _LAYERS.items():
            # A target of the configuration may name a class, so the layer's class has the engine's name.
            layer = type(kind, (_LinearBase,), {})()
            try:
                method = quantization.get_quant_method(layer, f"model.layers.{block}.{role}")
                outcome = _described(layer.scheme, method, engine.kernel, *_shape(role, config))
            except Exception as error:  # noqa: BLE001 -- the same
                outcome = _brief(error)
            found[outcome].append(role.partition(".")[2])
    return "".join(f"\n    {'/'.join(dict.fromkeys(roles))}: {outcome}" for outcome, roles in found.items())


def _described(scheme: Any, method: Any, kernel: Callable[[Any, int, int], str], inputs: int, outputs: int) -> str:
    if scheme is None:
        return "not quantized"
    described = type(scheme).__name__ + kernel(scheme, inputs, outputs)
    transforms = getattr(method, "input_tfms", None)
    if not transforms:
        return described
    first = transforms[0].scheme
    rotated = f"{first.type} of {first.head_dim} before {len(transforms)}"
    return f"{described}, {rotated}, by {type(method).__name__}"


def _brief(error: Exception) -> str:
    said = re.sub(r"layers\.\d+", "layers.*", " ".join(str(error).split()))
    return f"{type(error).__name__}: {said[:160]}"


def _shape(role: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """The number of inputs and outputs of a linear."""
    hidden, inner, heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = config.get("head_dim") or hidden // heads
    groups = config.get("num_key_value_heads", heads)
    shapes = {
        "self_attn.qkv_proj": (hidden, head * (heads + 2 * groups)),
        "self_attn.o_proj": (head * heads, hidden),
        "mlp.gate_up_proj": (hidden, 2 * inner),
        "mlp.down_proj": (inner, hidden),
    }
    return shapes[role]


_VLLM: Final = "vllm.model_executor.layers.quantization"
_VLLM_KERNELS: Final = "vllm.model_executor.kernels.linear"
_SGLANG: Final = "sglang.srt.layers.quantization"
_TYPES: Final = ("uint4", "uint8", "uint4b8", "uint8b128")


def _prepare_vllm(gpu: Gpu) -> None:
    provide("vllm.platforms", current_platform=gpu, PlatformEnum=_Kinds)
    provide("vllm.envs", VLLM_DISABLED_KERNELS=[], VLLM_BATCH_INVARIANT=False)
    provide("vllm.config", get_current_vllm_config_or_none=lambda: None)
    provide("vllm.utils.import_utils", has_humming=lambda: True, has_fbgemm_gpu=lambda: False)
    provide(
        "vllm.utils.flashinfer",
        has_flashinfer=lambda: True,
        has_flashinfer_cutedsl=lambda: True,
        has_flashinfer_b12x_gemm=lambda: False,
    )
    provide(
        "vllm.model_executor.layers.linear",
        LinearBase=_LinearBase,
        LinearMethodBase=_LinearMethodBase,
        UnquantizedLinearMethod=_Unquantized,
    )
    priority = importlib.import_module(f"{_VLLM}.utils.humming.priority")
    provide(
        f"{_VLLM}.utils.humming",
        prefers_humming=priority.prefers_humming,
        prioritize_humming=priority.prioritize_humming,
    )
    provide(f"{_VLLM}.utils.marlin_utils_fp4", is_fp4_marlin_supported=lambda: gpu.capability >= 75)
    provide(f"{_VLLM}.utils.nvfp4_utils", cutlass_fp4_supported=lambda: gpu.capability >= 100)


def _vllm_kernel(scheme: Any, inputs: int, outputs: int) -> str:
    """The kernel of a scheme.

    Schemes of packed integers choose theirs only when weights are created. Here it is queried in the same way, for
    bfloat16.
    """
    if not hasattr(scheme, "quant_type"):
        return f" on {type(scheme.kernel).__name__}" if getattr(scheme, "kernel", None) else ""
    kernels = importlib.import_module(_VLLM_KERNELS)
    wanted = kernels.MPLinearLayerConfig(
        full_weight_shape=(inputs, outputs),
        partition_weight_shape=(inputs, outputs),
        weight_type=scheme.quant_type,
        act_type=torch.bfloat16,
        group_size=scheme.group_size,
        zero_points=False,
    )
    return f" on {kernels.choose_mp_linear_kernel(wanted).__name__}"


def _prepare_sglang(gpu: Gpu) -> None:
    def no(*_arguments: Any) -> bool:
        return False

    class Backend:
        is_marlin = no

    torch.cuda.get_device_capability = lambda *_device: divmod(gpu.capability, 10)
    provide("sglang.srt.utils", is_cuda=lambda: True, is_hip=no, is_npu=no, is_xpu=no, get_bool_env_var=no)
    provide(f"{_SGLANG}.fp4_utils", get_fp4_gemm_runner_backend=Backend)
    provide("sglang.srt.layers.linear", LinearBase=_LinearBase)
    # The routing only passes number types on, so their names are enough.
    provide(f"{_SGLANG}.utils", get_scalar_types=lambda: (str, SimpleNamespace(**{name: name for name in _TYPES})))


_ENGINES: Final = {
    "vllm": Engine(
        package="vllm",
        real=(
            f"{_VLLM}.compressed_tensors",
            f"{_VLLM}.compressed_tensors.*",
            f"{_VLLM}.base_config",
            f"{_VLLM}.utils.config_utils",
            f"{_VLLM}.utils.quant_utils",
            f"{_VLLM}.utils.marlin_utils",
            f"{_VLLM}.utils.machete_utils",
            f"{_VLLM}.utils.humming.priority",
            _VLLM_KERNELS,
            f"{_VLLM_KERNELS}.*",
            "vllm.scalar_type",
        ),
        stood_in=(),
        prepare=_prepare_vllm,
        module=f"{_VLLM}.compressed_tensors.compressed_tensors",
        kernel=_vllm_kernel,
    ),
    "sglang": Engine(
        package="sglang",
        real=(f"{_SGLANG}.compressed_tensors", f"{_SGLANG}.compressed_tensors.*", f"{_SGLANG}.base_config"),
        stood_in=("sgl_kernel", "flashinfer", "aiter"),
        prepare=_prepare_sglang,
        module=f"{_SGLANG}.compressed_tensors.compressed_tensors",
        kernel=lambda _scheme, _inputs, _outputs: "",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    wheel = parser.add_mutually_exclusive_group(required=True)
    wheel.add_argument("--vllm", type=Path, help="where vLLM's wheel was unpacked")
    wheel.add_argument("--sglang", type=Path, help="where SGLang's wheel was unpacked")
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="config.json of checkpoints")
    parser.add_argument("--capability", type=int, nargs="+", default=_CAPABILITIES, help="of the GPU: 90 for sm90")
    return parser


if __name__ == "__main__":
    main()
