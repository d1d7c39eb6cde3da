"""Sites of a concrete model: a tensor, the linears that read it, and the module that produces it.

Shapes: D in features of a site, P parameters of its diagonal (P < D where grouped-query heads tie them).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quant_engine.errors import NoMatchingLayer
from quant_engine.models.architectures import Architecture, ProducerKind, SiteTemplate
from quant_engine.policy import NumberFormat, Policy, matches


@dataclass(frozen=True)
class Site:
    """A site of one block. Names are those of the whole model.

    ``readers`` are the linears to quantize, ``all_readers`` every linear that sees the tensor: a fused diagonal has to
    be undone in each of them. ``heads`` and ``tied`` describe the attention output: features are heads × head size,
    and ``tied`` neighbouring heads share one diagonal, because they read the same value head.
    """

    block: int
    role: str
    readers: tuple[str, ...]
    all_readers: tuple[str, ...]
    producer: str
    kind: ProducerKind
    features: int
    heads: int = 1
    tied: int = 1

    @property
    def name(self) -> str:
        """The linear's name, or the common prefix and the leaves of several: ``….self_attn.q_proj+k_proj+v_proj``."""
        prefix, _, _ = self.readers[0].rpartition(".")
        return f"{prefix}." + "+".join(reader.rpartition(".")[2] for reader in self.readers)

    def tie_index(self) -> Tensor:
        """[D] the parameter of the diagonal that each feature uses; 0..D−1 where nothing is tied."""
        size = self.features // self.heads
        head = torch.arange(self.heads) // self.tied
        return (head[:, None] * size + torch.arange(size)[None, :]).reshape(-1)  # [heads, size] → [D]

    def pool(self, x_TD: Tensor) -> Tensor:
        """The tensor with tied heads as further tokens: [T, D] → [T·tied, P]. Channel statistics are taken on this."""
        if self.tied == 1:
            return x_TD
        size = self.features // self.heads
        x_TGKS = x_TD.reshape(-1, self.heads // self.tied, self.tied, size).transpose(-3, -2)
        return x_TGKS.reshape(-1, self.features // self.tied)  # [T, tied, groups, size] → [T·tied, P]


def model_sites(config: Any, architecture: Architecture) -> list[Site]:
    """Every site of every block, in forward order. ``config`` is a transformers configuration."""
    return [
        _site(template, block, architecture.block_prefix(block), config)
        for block in range(config.num_hidden_layers)
        for template in architecture.sites
    ]


def target_sites(sites: list[Site], policy: Policy) -> list[Site]:
    """The sites that ``policy`` quantizes, ``readers`` cut down to the targeted linears.

    An override of a linear's weights to ``none`` leaves that linear alone.

    Raises:
        NoMatchingLayer: nothing matches ``targets``, or ``ignore`` and the overrides leave nothing.
    """
    chosen = []
    for site in sites:
        readers = tuple(reader for reader in site.all_readers if _is_targeted(reader, policy))
        if readers:
            chosen.append(replace(site, readers=readers))
    if not chosen:
        available = sorted({reader.rpartition(".")[2] for site in sites for reader in site.all_readers})
        raise NoMatchingLayer(
            detail=f"targets {list(policy.targets)} with ignore {list(policy.ignore)} match no linear of the model.",
            hint=f"Available: {', '.join(available)}; a full name looks like {sites[0].all_readers[0]}.",
        )
    return chosen


def _is_targeted(name: str, policy: Policy) -> bool:
    if not any(matches(pattern, name) for pattern in policy.targets):
        return False
    if any(matches(pattern, name) for pattern in policy.ignore):
        return False
    weights = policy.weights
    for override in policy.overrides:
        if override.weights is not None and matches(override.match, name):
            weights = override.weights
    return weights.format is not NumberFormat.NONE


def _site(template: SiteTemplate, block: int, prefix: str, config: Any) -> Site:
    heads, tied, features = 1, 1, config.hidden_size
    if template.kind is ProducerKind.LINEAR_ROWS:
        features = config.intermediate_size
    elif template.kind is ProducerKind.VALUE_ROWS:
        heads = config.num_attention_heads
        tied = heads // config.num_key_value_heads
        features = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    readers = tuple(prefix + reader for reader in template.readers)
    return Site(
        block=block,
        role=template.role,
        readers=readers,
        all_readers=readers,
        producer=prefix + template.producer,
        kind=template.kind,
        features=features,
        heads=heads,
        tied=tied,
    )
