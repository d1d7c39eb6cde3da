"""Check a policy against the profile of its checkpoint, as far as this is possible before the model is known."""

from collections.abc import Iterator
from typing import Literal

from quant_engine.policy.formats import ActivationQuantization
from quant_engine.policy.policy_error import PolicyError
from quant_engine.policy.selection import AnySelection
from quant_engine.policy.transform import Transform, TransformKind
from quant_engine.policy.types import Policy

Profile = Literal["rotated", "universal"]


def check_profile(policy: Policy, profile: Profile) -> None:
    """Refuse a resolved policy that a checkpoint of ``profile`` can not express.

    ``universal`` checkpoints are for readers that compute nothing in front of a linear: no online transform, no clip.

    Raises:
        PolicyError: ``not_universal``; the pointer names the first field that prevents it.
    """
    # An evaluation writes no checkpoint.
    if profile != "universal" or policy.task == "evaluate":
        return
    # With online 'none' a transform is reduced to its diagonal, which is fused.
    if policy.online != "none":
        for pointer, kind in _transforms(policy):
            if kind.rotates:
                raise _not_universal(
                    pointer,
                    f"a {kind.value!r} transform is computed online, in front of the linears",
                    "Set policy.online to 'none', which keeps the part that can be fused, or choose a kind of "
                    "'smooth' or 'none'",
                )
    for pointer, activations in _activations(policy):
        if _clips(activations):
            raise _not_universal(
                pointer, "activations are clipped at run time", "Set clip to 'none' and clip_ratio to 1"
            )
    training = policy.training
    # A learned clip acts at run time just as a searched one does.
    learns_clips = training is not None and training.kind == "block" and "activation_clip" in training.learn
    if learns_clips and any(_is_integer(each) for _, each in _activations(policy)):
        raise _not_universal(
            "/training/learn",
            "activation clips are learned, and activations then clipped at run time",
            "Leave 'activation_clip' out of training.learn",
        )


def _not_universal(pointer: str, what: str, remedy: str) -> PolicyError:
    return PolicyError(
        pointer,
        "not_universal",
        f"output.profile is 'universal', but {what} (policy.{pointer[1:].replace('/', '.')}); plain from_pretrained "
        f"would leave that out and be wrong. {remedy}, or set output.profile to 'rotated'.",
    )


def _transforms(policy: Policy) -> Iterator[tuple[str, TransformKind]]:
    yield "/transform/kind", policy.transform.kind
    for index, override in enumerate(policy.overrides):
        if override.transform is not None:
            yield f"/overrides/{index}/transform/kind", override.transform.kind
    # Each candidate may be chosen for some layer.
    if policy.selection is not None:
        yield from _candidates(policy.selection)


def _candidates(selection: AnySelection) -> Iterator[tuple[str, TransformKind]]:
    if selection.kind == "kurtosis":
        named = [("outlying", selection.outlying), ("typical", selection.typical)]
    else:
        named = [(f"candidates/{index}", each) for index, each in enumerate(selection.candidates)]
    for name, candidate in named:
        yield f"/selection/{name}", candidate.kind if isinstance(candidate, Transform) else candidate


def _activations(policy: Policy) -> Iterator[tuple[str, ActivationQuantization]]:
    yield "/activations", policy.activations
    for index, override in enumerate(policy.overrides):
        if override.activations is not None:
            yield f"/overrides/{index}/activations", override.activations


def _clips(activations: ActivationQuantization) -> bool:
    """Whether an input is clipped at run time; only integers ever are."""
    return _is_integer(activations) and (activations.clip != "none" or activations.clip_ratio != 1.0)


def _is_integer(activations: ActivationQuantization) -> bool:
    return activations.format.is_integer
