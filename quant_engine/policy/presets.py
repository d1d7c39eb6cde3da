"""Named starting points. Explicit fields of a request override them, field by field."""

from typing import Final

from quant_engine.policy.fields import Frozen
from quant_engine.policy.types import GridSearch, Policy, Statistic, Training, Transform, TransformKind


class Preset(Frozen):
    """A named policy with a sentence that says what it is for."""

    name: str
    description: str
    policy: Policy


def _preset(name: str, description: str, **fields: object) -> Preset:
    return Preset(name=name, description=description, policy=Policy.model_validate({"preset": name, **fields}))


_QUANTILE = Transform(statistic=Statistic(kind="quantile", q=0.997))

_ALL: Final = (
    _preset(
        "rtn-w4a4",
        "Round to nearest, no transform: the baseline everything else is compared with.",
        transform=Transform(kind=TransformKind.NONE),
    ),
    _preset(
        "smoothrot-w4a4",
        "SmoothRot (arXiv 2506.05413): scale by absmax at α 0.5, then rotate.",
    ),
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
)

PRESETS: Final[dict[str, Preset]] = {preset.name: preset for preset in _ALL}
