"""Check a policy against what is to be written besides its checkpoint, before the model is known."""

from collections.abc import Sequence

from quant_engine.policy.policy_error import PolicyError
from quant_engine.policy.request import Also
from quant_engine.policy.types import Policy


def check_also(policy: Policy, also: Sequence[Also]) -> None:
    """Refuse a resolved policy whose job can not write ``also``.

    Raises:
        PolicyError: ``nothing_to_convert``, where no model is quantized; ``not_for_gguf``, where the policy rotates the
            residual stream. The pointer is that of the policy's field.
    """
    if "gguf-source" not in also:
        return
    if policy.task == "evaluate":
        raise PolicyError(
            "/task",
            "nothing_to_convert",
            "A job that only measures a model writes none. Leave 'gguf-source' out, or choose a preset that quantizes.",
        )
    if policy.residual is not None:
        raise PolicyError(
            "/residual",
            "not_for_gguf",
            "A 'gguf-source' takes diagonals alone, because blocks of four bits lose more behind a rotation. This "
            "policy finds its diagonals behind a rotation of the residual stream. Set policy.residual to null, choose "
            "a preset without one, or leave 'gguf-source' out.",
        )
