"""Named policies to start from. Explicit fields of a request override them, field by field.

Their accuracy and run time on a real model are in ``docs/measurements.md``.
"""

from typing import Annotated, Any, Final

from pydantic import Field

from quant_engine.policy.fields import Frozen
from quant_engine.policy.formats import ActivationQuantization, GptqSettings, NumberFormat, WeightQuantization
from quant_engine.policy.known_names import EVERY_LINEAR
from quant_engine.policy.search import GridSearch, PaperExperiment
from quant_engine.policy.selection import LowestError
from quant_engine.policy.training import BlockTraining, RotationTraining, Training
from quant_engine.policy.transform import Residual, Statistic, Transform, TransformKind
from quant_engine.policy.types import Policy


class Preset(Frozen):
    """A named policy with a sentence about its purpose."""

    name: Annotated[str, Field(examples=["w4a16"])]
    """Its name."""
    description: Annotated[str, Field(examples=["Four-bit weights in groups."])]
    """Its purpose."""
    policy: Policy
    """Its whole policy."""


def _preset(name: str, description: str, **fields: object) -> Preset:
    return Preset(name=name, description=description, policy=Policy.model_validate({"preset": name, **fields}))


def _whole(name: str, description: str, **fields: object) -> Preset:
    return _preset(name, description, targets=EVERY_LINEAR, **fields)


_QUANTILE = Transform(statistic=Statistic(kind="quantile", q=0.997))
_NONE = Transform(kind=TransformKind.NONE)
_ROTATION = Transform(kind=TransformKind.ROTATION)
_SMOOTH_L2 = Transform(kind=TransformKind.SMOOTH, statistic=Statistic(kind="l2"))
_L2 = Transform(statistic=Statistic(kind="l2"))
_WUSH = Transform(kind=TransformKind.WUSH, block_size=64)
_FLATQUANT = Transform(kind=TransformKind.KRONECKER, alpha=0.3)
_SMOOTH_CAT = Transform(kind=TransformKind.SMOOTH_CAT, statistic=Statistic(kind="l2"), damping=0.005, block_size=64)
_L2_KRONECKER = Transform(kind=TransformKind.KRONECKER, statistic=Statistic(kind="l2"))
_DUQUANT = Transform(kind=TransformKind.DUQUANT, alpha=0.6)
_SHORT: Final[dict[str, Any]] = {"steps": 48, "batch_samples": 2}
"""Block training that is short enough for a CPU: about twenty seconds for each block of SmolLM2-135M."""


def _weights(format_: NumberFormat = NumberFormat.INT4, **fields: object) -> WeightQuantization:
    return WeightQuantization.model_validate({"format": format_, "clip": "mse", **fields})


def _searched(format_: NumberFormat = NumberFormat.INT4) -> ActivationQuantization:
    return ActivationQuantization(format=format_, clip="search")


_GPTQ4 = _weights(rounding="gptq")
_NO_ACTIVATIONS = ActivationQuantization(format=NumberFormat.NONE)
_CORRECTED: Final[dict[str, Any]] = {"rounding": "gptq", "gptq": GptqSettings(correction=0.5)}

_DOWN_PROJ: Final = (
    _preset(
        "rtn-w4a4", "Round to nearest, no transform: the baseline everything else is compared with.", transform=_NONE
    ),
    _preset("smoothrot-w4a4", "SmoothRot (arXiv 2506.05413): scale by absmax at α 0.5, then rotate."),
    _preset(
        "quantile-smoothrot-w4a4",
        "Smooth rotation with quantile-robust and L2 scales, α and q searched over a grid.",
        transform=_QUANTILE,
        search=GridSearch(alpha=(0.45, 0.475, 0.5, 0.55), q=(0.994, 0.997, 1.0), l2=True),
    ),
    _preset(
        "trainable-smoothrot-w4a4",
        "Smooth rotation with learned channel scales (arXiv 2606.09927), started from a searched policy.",
        transform=_QUANTILE,
        search=GridSearch(alpha=(0.45, 0.475, 0.5), q=(0.994, 0.997, 1.0), l2=True),
        training=Training(),
    ),
    _preset(
        "paper-2606.09927",
        "The whole experiment of arXiv 2606.09927, N1 to T3, with its table and figures in the report.",
        search=PaperExperiment(),
    ),
)

_PAPERS: Final = (
    _whole(
        "quarot-w4a4",
        "QuaRot (arXiv 2404.00456): residual and head rotations fused, Hadamards inside, GPTQ.",
        transform=_ROTATION,
        # The residual rotation is fused and reaches all other sites.
        online="inner",
        residual=Residual(),
        weights=_GPTQ4,
        activations=ActivationQuantization(clip_ratio=0.9),
    ),
    _whole(
        "spinquant-w4a4",
        "SpinQuant (arXiv 2405.16406): QuaRot's rotations, R1 and R2 learned on the model's own loss, GPTQ.",
        transform=_ROTATION,
        online="inner",
        residual=Residual(),
        training=RotationTraining(),
        weights=_GPTQ4,
        activations=ActivationQuantization(clip_ratio=0.9),
    ),
    _whole(
        "flatquant-w4a4",
        "FlatQuant (ICML 2025): learned Kronecker transforms, scales and clipping, block by block.",
        transform=_FLATQUANT,
        training=BlockTraining(**_SHORT),
    ),
    _whole(
        "wush-w4a4",
        "WUSH (arXiv 2512.00956): the closed-form optimal transform of every block of 64 channels, GPTQ.",
        transform=_WUSH,
        weights=_GPTQ4,
    ),
    _whole(
        "duquant-w4a4",
        "DuQuant (arXiv 2406.01721): smoothing, block rotations and a zigzag permutation.",
        transform=_DUQUANT,
        weights=_weights(),
        activations=ActivationQuantization(clip_ratio=0.9),
    ),
    _whole(
        "omniquant-w4a4",
        "OmniQuant (arXiv 2308.13137): learned diagonals and learned weight clipping, nothing online.",
        transform=Transform(kind=TransformKind.SMOOTH),
        online="none",
        training=BlockTraining(learn=("scales", "weight_clip"), **_SHORT),
    ),
    _whole(
        "smoothquant-w8a8",
        "SmoothQuant (arXiv 2211.10438): fused diagonals at α 0.5, int8 throughout.",
        transform=Transform(kind=TransformKind.SMOOTH),
        online="none",
        weights=_weights(NumberFormat.INT8, clip="none"),
        activations=ActivationQuantization(format=NumberFormat.INT8),
    ),
)

_ADAPTIVE: Final = LowestError(candidates=(_ROTATION, _L2, _WUSH, _SMOOTH_CAT))

_BEST: Final = (
    _whole(
        "adaptive-w4a4",
        "Per layer the best of Hadamard, smooth rotation, WUSH and smoothed CAT by held-out error, GPTQ.",
        transform=_L2,
        weights=_GPTQ4,
        activations=_searched(),
        selection=_ADAPTIVE,
    ),
    _whole(
        "adaptive-w3a3",
        "The adaptive choice at three bits.",
        transform=_L2,
        weights=_weights(NumberFormat.INT3, rounding="gptq"),
        activations=_searched(NumberFormat.INT3),
        selection=_ADAPTIVE,
    ),
    _whole(
        "best-w4a4",
        "The most accurate four bits we know: Kronecker transforms and clips learned per block, corrected GPTQ.",
        transform=_L2_KRONECKER,
        weights=_weights(**_CORRECTED),
        activations=_searched(),
        training=BlockTraining(inputs="quantized", **_SHORT),
    ),
    _whole(
        "hadamard-w4a4",
        "Four bits with nothing online but Hadamards that engines have kernels for, corrected GPTQ.",
        transform=_L2.model_copy(update={"orders": "power_of_two", "permutation": "zigzag"}),
        weights=_weights(**_CORRECTED),
    ),
    _whole(
        "w4a16",
        "Four-bit weights in groups, activations untouched, nothing online: loads anywhere.",
        transform=_SMOOTH_L2,
        online="none",
        weights=_weights(granularity="group", group_size=64, **_CORRECTED),
        activations=_NO_ACTIVATIONS,
    ),
    _whole(
        "w4a16-g128",
        "Four-bit weights in groups of 128, the size that every kernel takes; otherwise w4a16.",
        transform=_SMOOTH_L2,
        online="none",
        weights=_weights(granularity="group", group_size=128, **_CORRECTED),
        activations=_NO_ACTIVATIONS,
    ),
    _whole(
        "w4a8-fp8",
        "Four-bit weights in groups of 128, fp8 activations, nothing online: for Hopper.",
        transform=_SMOOTH_L2,
        online="none",
        weights=_weights(granularity="group", group_size=128, **_CORRECTED),
        activations=ActivationQuantization(format=NumberFormat.FP8),
    ),
    _whole(
        "w8a8",
        "Eight bits throughout, nothing online: loads anywhere, with hardly a difference to see.",
        transform=_SMOOTH_L2,
        online="none",
        weights=_weights(NumberFormat.INT8, rounding="gptq"),
        activations=ActivationQuantization(format=NumberFormat.INT8),
    ),
    _whole(
        "fp8",
        "Eight-bit floating point, dynamic per token, nothing online.",
        transform=_NONE,
        online="none",
        weights=WeightQuantization(format=NumberFormat.FP8),
        activations=ActivationQuantization(format=NumberFormat.FP8),
    ),
    _whole(
        "nvfp4",
        "NVFP4 throughout: four-bit floats in groups of 16, fused L2 diagonals, corrected GPTQ, nothing online.",
        # A Hadamard over each group made NVFP4 worse (docs/measurements.md).
        transform=_SMOOTH_L2,
        online="none",
        weights=_weights(NumberFormat.NVFP4, **_CORRECTED),
        activations=ActivationQuantization(format=NumberFormat.NVFP4),
    ),
    _whole(
        "mxfp4",
        "MXFP4 throughout: four-bit floats in groups of 32, L2 scales and a Hadamard over each, corrected GPTQ.",
        transform=_L2.model_copy(update={"block_size": 32}),
        weights=_weights(NumberFormat.MXFP4, **_CORRECTED),
        activations=ActivationQuantization(format=NumberFormat.MXFP4),
    ),
)

EVALUATE: Final = _whole(
    "evaluate",
    "Changes nothing: measures a model as it is, dense or already quantized.",
    task="evaluate",
    transform=_NONE,
    online="none",
    weights=WeightQuantization(format=NumberFormat.NONE),
    activations=_NO_ACTIVATIONS,
    # An evaluation reads every linear, so none is ignored.
    ignore=(),
)

PRESETS: Final[dict[str, Preset]] = {preset.name: preset for preset in (*_DOWN_PROJ, *_PAPERS, *_BEST, EVALUATE)}
