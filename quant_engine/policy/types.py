"""The policy: what to quantize, how to transform it first, and how to search for the best transform.

All types are frozen and validated. Importing this module loads no torch, so the API can use it.
"""

from typing import Annotated, Literal

from pydantic import Field

from quant_engine.policy.fields import Frozen, Name
from quant_engine.policy.formats import ActivationQuantization, WeightQuantization
from quant_engine.policy.search import AnySearch
from quant_engine.policy.selection import AnySelection
from quant_engine.policy.training import AnyTraining
from quant_engine.policy.transform import Residual, Transform


class Override(Frozen):
    """Other settings for the linears that ``match`` means, in a form of :mod:`quant_engine.policy.patterns`."""

    match: Name
    weights: WeightQuantization | None = None
    activations: ActivationQuantization | None = None
    transform: Transform | None = None


class Policy(Frozen):
    """A whole policy. A request may leave every field out; :func:`resolve_policy` fills it from the preset.

    ``task`` "evaluate" measures the model as it is, dense or already quantized, and changes nothing: every other field
    then has to have the value that the preset of this name has.

    ``online`` is where transforms may be computed at inference in front of a linear: nowhere (``none``), only inside
    the attention and the feed-forward (``inner``), or at every site (``all``). ``residual`` rotates the other sites at
    no cost.
    """

    version: Literal[1] = 1
    preset: Name | None = None
    task: Literal["quantize", "evaluate"] = "quantize"
    weights: WeightQuantization = WeightQuantization()
    activations: ActivationQuantization = ActivationQuantization()
    targets: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64, fail_fast=True)] = ("down_proj",)
    ignore: Annotated[tuple[Name, ...], Field(max_length=64, fail_fast=True)] = ("lm_head",)
    transform: Transform = Transform()
    online: Literal["none", "inner", "all"] = "all"
    residual: Residual | None = None
    search: AnySearch | None = None
    training: AnyTraining | None = None
    selection: AnySelection | None = None
    overrides: Annotated[tuple[Override, ...], Field(max_length=64, fail_fast=True)] = ()
