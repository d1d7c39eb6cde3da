"""The sites of a model. A site is a tensor, the linears that read it, and the module that produces it.

Shapes: D in features of a site, P parameters of its diagonal (P < D where grouped-query heads tie them).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quant_engine.errors import NoMatchingLayer
from quant_engine.interface.architectures import Architecture, ProducerKind, ProducerRows, SiteTemplate
from quant_engine.interface.targets import is_targeted
from quant_engine.policy import Policy


@dataclass(frozen=True)
class Site:
    """A site of one block. Names are those of the whole model.

    ``readers`` are the linears to quantize, and ``all_readers`` are all linears that read the tensor, because a fused
    diagonal has to be undone in each of them. ``heads`` and ``tied`` describe the attention output: features are
    heads × head size, and ``tied`` neighboring heads share one diagonal, because they read the same value head.
    ``rows`` are the rows of the producer that make the tensor. ``partners`` are the linears whose outputs are
    multiplied with the producer's. ``norm_offset`` is the number that a producing norm adds to its stored weight.
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
    rows: ProducerRows = ProducerRows.ALL
    norm_offset: float = 0.0
    partners: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The linear's name; of several the common prefix and the last parts: ``….self_attn.q_proj+k_proj+v_proj``."""
        prefix, _, _ = self.readers[0].rpartition(".")
        return f"{prefix}." + "+".join(reader.rpartition(".")[2] for reader in self.readers)

    def tie_index(self) -> Tensor:
        """Return the index [D] of the diagonal's parameter for each feature; 0..D−1 where nothing is tied."""
        size = self.features // self.heads
        head = torch.arange(self.heads) // self.tied
        return (head[:, None] * size + torch.arange(size)[None, :]).reshape(-1)  # [heads, size] → [D]

    def pool(self, x_TD: Tensor) -> Tensor:
        """Return the tensor with tied heads as additional tokens, [T, D] → [T·tied, P], for channel statistics."""
        if self.tied == 1:
            return x_TD
        size = self.features // self.heads
        x_TGKS = x_TD.reshape(-1, self.heads // self.tied, self.tied, size).transpose(-3, -2)
        return x_TGKS.reshape(-1, self.features // self.tied)  # [T, tied, groups, size] → [T·tied, P]


def model_sites(config: Any, architecture: Architecture) -> list[Site]:
    """Return every site of every block, in forward order. ``config`` is a transformers configuration."""
    return [
        _site(template, block, architecture, config)
        for block in range(config.num_hidden_layers)
        for template in architecture.sites
    ]


def head_size(config: Any) -> int:
    """Return the channels of one attention head; this is not always hidden / heads (Qwen3, Gemma)."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def target_sites(sites: list[Site], policy: Policy) -> list[Site]:
    """Return the sites that ``policy`` quantizes; their ``readers`` are the targeted linears only.

    Raises:
        NoMatchingLayer: nothing matches ``targets``, or ``ignore`` and the overrides leave nothing.
    """
    chosen = []
    for site in sites:
        readers = tuple(reader for reader in site.all_readers if is_targeted(reader, policy))
        if readers:
            chosen.append(replace(site, readers=readers))
    if not chosen:
        available = sorted({reader.rpartition(".")[2] for site in sites for reader in site.all_readers})
        raise NoMatchingLayer(
            detail=f"targets {list(policy.targets)} with ignore {list(policy.ignore)} match no linear of the model.",
            hint=f"Available: {', '.join(available)}; a full name looks like {sites[0].all_readers[0]}.",
        )
    return chosen


def _site(template: SiteTemplate, block: int, architecture: Architecture, config: Any) -> Site:
    # A norm produces a tensor of the stream's width, without heads.
    heads, tied, features = 1, 1, config.hidden_size
    if template.kind is ProducerKind.LINEAR_ROWS:
        features = config.intermediate_size
    elif template.kind is ProducerKind.VALUE_ROWS:
        heads = config.num_attention_heads
        tied = heads // config.num_key_value_heads
        features = heads * head_size(config)
    prefix = architecture.block_prefix(block)
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
        rows=template.rows,
        norm_offset=architecture.norm_offset if template.kind is ProducerKind.NORM_WEIGHT else 0.0,
        partners=tuple(prefix + partner for partner in template.partners),
    )
