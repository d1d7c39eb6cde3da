"""The names of modules that patterns may contain: linears, their parts, and what is never quantized.

They cover all supported architectures together, so a wrong word is found before the model is known.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from quant_engine.policy.nearest import nearest
from quant_engine.policy.patterns import EVERY_CLASS, EXPRESSION, PatternError, is_plain

EVERY_LINEAR: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)
"""The linears of a decoder block, by the names that the supported architectures give them."""

FUSED_LINEARS: Final[dict[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Linears that hold the rows of several, in this order, and the names of these parts in other architectures."""

NEVER_QUANTIZED: Final = (
    "lm_head",
    "embed_tokens",
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "q_norm",
    "k_norm",
    "rotary_emb",
    "act_fn",
)
"""Modules of decoders that stay as they are: the head, the embedding, the norms, and what has no weight."""

HOLDERS: Final = ("model", "layers", "mlp", "self_attn")
"""Modules that hold others."""

ELSEWHERE: Final = (
    "vision_tower",
    "vision_model",
    "visual",
    "audio_tower",
    "multi_modal_projector",
    "mm_projector",
    "mlp.gate",
    "mlp.router",
    "mlp.shared_expert_gate",
    "block_sparse_moe.gate",
    "feed_forward.router",
)
"""Modules of other classes of models, which recipes of llm-compressor ignore whether the model has them or not."""

_WORD: Final = re.compile(r"[A-Za-z][A-Za-z_]{2,}")


def parts_of(name: str) -> tuple[str, ...]:
    """Return the names that the parts of a fused linear would have as linears of their own; none for another linear."""
    prefix, dot, leaf = name.rpartition(".")
    return tuple(f"{prefix}{dot}{part}" for part in FUSED_LINEARS.get(leaf, ()))


def check_name(pattern: str, *, ignored: bool) -> None:
    """Refuse a plain name that no supported model has. Globs and expressions need the model's names, and pass.

    Args:
        ignored: the name is an entry of ``ignore``, where names of modules that are never quantized do no harm.

    Raises:
        PatternError: ``no_match``, ``never_quantized`` or ``not_a_linear``.
    """
    leaf = pattern.rpartition(".")[2]
    if not is_plain(pattern) or leaf in EVERY_LINEAR:
        return
    if leaf in NEVER_QUANTIZED:
        if not ignored:
            raise never_quantized()
    elif leaf in HOLDERS or leaf.isdigit():
        raise not_a_linear()
    elif not (ignored and any(pattern == name or pattern.endswith(f".{name}") for name in ELSEWHERE)):
        raise no_match(pattern, EVERY_LINEAR, ignored=ignored)


def never_quantized() -> PatternError:
    """The answer to a target or an override that means only what is never quantized."""
    return PatternError(
        "never_quantized",
        "This entry means only modules that are never quantized: the head, the embedding or norms. Remove it; targets "
        f"and overrides are for linears of the blocks, such as {', '.join(EVERY_LINEAR[:3])}.",
    )


def not_a_linear() -> PatternError:
    """The answer to the name of a module that holds linears."""
    return PatternError(
        "not_a_linear",
        "This entry means modules that hold linears, and no linear. To mean all linears in them, write a glob such as "
        "*.mlp.* or model.layers.0.*.",
    )


def no_match(pattern: str, leaves: Sequence[str], names: Sequence[str] = (), *, ignored: bool = False) -> PatternError:
    """The answer to an entry that matches nothing.

    Args:
        leaves: the last components of the names of linears.
        names: whole names of the model's linears, if they are known.
        ignored: the name is an entry of ``ignore``, which may also name what is never quantized.
    """
    meant = _meant(pattern, (*leaves, *NEVER_QUANTIZED) if ignored else leaves, names)
    example = f" A whole name looks like {names[0]}." if names else ""
    if meant is not None:
        remedy = f"Did you mean {meant!r}? "
    elif pattern.startswith(".*"):
        # A glob whose first character is a dot: somebody means an expression.
        remedy = "If it is a regular expression, put 're:' in front. "
    elif pattern.startswith(EXPRESSION):
        remedy = "An expression has to match a whole name, from its first character to its last. "
    else:
        remedy = ""
    return PatternError(
        "no_match",
        f"This entry matches no {'module' if ignored else 'linear'}. {remedy}Last components of linears are "
        f"{', '.join(leaves)}.{example}",
    )


def _meant(pattern: str, leaves: Sequence[str], names: Sequence[str]) -> str | None:
    if is_plain(pattern):
        whole = nearest(pattern, names) if "." in pattern else None
        return whole or nearest(pattern.rpartition(".")[2], (*leaves, EVERY_CLASS))
    # Of a glob or an expression each word that no name has is looked up by itself.
    known = dict.fromkeys((*leaves, *HOLDERS, *(part for name in names[:1] for part in name.split("."))))
    words = _WORD.findall(pattern.removeprefix(EXPRESSION))
    return _first(nearest(word, known) for word in words[:8] if word not in known)


def _first(found: Iterable[str | None]) -> str | None:
    return next((name for name in found if name is not None), None)
