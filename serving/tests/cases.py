"""The checkpoints that are run in vLLM. Rounded to nearest, calibrated on little: what is tested is serving."""

from dataclasses import dataclass
from typing import Any, Final

_RTN: Final[dict[str, Any]] = {"rounding": "rtn"}
_L2: Final = {"kind": "l2"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkpoint.

    Attributes:
        policy: None for the dense model.
        dtype: in which vLLM computes.
        rounding: of the inputs, for the bounds.
        method: the quantization method that vLLM chooses for it.
        reference: vLLM has no kernel for it on a CPU, so the plugin is asked for plain products.
    """

    policy: dict[str, Any] | None
    dtype: str = "float32"
    rounding: str = "unrounded"
    method: str | None = "compressed-tensors"
    reference: bool = False
    windows: int = 4


CASES: Final[dict[str, Case]] = {
    "dense": Case(policy=None, method=None),
    "w8a8": Case(policy={"preset": "w8a8", "weights": _RTN}, rounding="int8"),
    "w4a16-g64": Case(policy={"preset": "w4a16", "weights": _RTN}, dtype="bfloat16"),
    "w4a16-g128": Case(
        # 576 inputs are not divisible by 128: the sites that are have these groups.
        policy={"preset": "w4a16", "targets": ["down_proj"], "weights": _RTN | {"group_size": 128}},
        dtype="bfloat16",
    ),
    "fp8": Case(policy={"preset": "fp8"}, rounding="float"),
    "mixed": Case(
        policy={
            "preset": "w8a8",
            "weights": _RTN,
            "overrides": [
                {
                    "match": r"re:.*layers\.(1?[02468])\..*",
                    "weights": _RTN | {"format": "int4", "granularity": "group", "group_size": 64},
                    "activations": {"format": "none"},
                }
            ],
        },
        dtype="bfloat16",
        rounding="int8",
    ),
    "down-proj": Case(policy={"preset": "w8a8", "targets": ["down_proj"], "weights": _RTN}, rounding="int8"),
    "kronecker-w8a8": Case(
        policy={
            "preset": "w8a8",
            "online": "all",
            "transform": {"kind": "kronecker", "statistic": _L2},
            "weights": _RTN,
        },
        rounding="int8",
        method="quantry",
    ),
    "hadamard-w4a4": Case(
        policy={
            "preset": "best-w4a4",
            "transform": {"kind": "smooth_rotation", "statistic": _L2},
            "training": None,
            "weights": _RTN,
            "activations": {"clip": "none"},
        },
        rounding="narrow",
        method="quantry",
        windows=16,
    ),
    "best-w4a4": Case(
        policy={"preset": "best-w4a4", "training": {"kind": "block", "steps": 1, "batch_samples": 1}, "weights": _RTN},
        rounding="narrow",
        method="quantry",
        windows=16,
    ),
    "adaptive-w4a4": Case(
        policy={"preset": "adaptive-w4a4", "weights": _RTN, "activations": {"clip": "none"}},
        rounding="narrow",
        method="quantry",
        windows=16,
    ),
    "nvfp4": Case(
        policy={"preset": "nvfp4", "weights": _RTN},
        dtype="bfloat16",
        rounding="narrow",
        method="quantry",
        reference=True,
    ),
}
"""Every checkpoint by its name, in the order in which they are made."""
