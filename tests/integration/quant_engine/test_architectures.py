"""Every architecture and what its configuration may switch on: fused diagonals leave a whole model's logits alone."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant_engine.models import CheckpointSource, Site, StreamedModel, fuse_scales, model_sites
from tests.integration.quant_engine.helpers import fixed_ids, streamed_logits
from tests.tiny_models import ARCHITECTURES, write_tiny_model

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ARCHITECTURES} | {
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama_untied": ("llama", {"tie_word_embeddings": False}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3_biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma2_biases": ("gemma2", {"attention_bias": True, "hidden": 80, "attn_logit_softcapping": None}),
    "gemma3_capped": ("gemma3", {"final_logit_softcapping": 2.0, "tie_word_embeddings": False}),
    "phi3_sliding": ("phi3", {"sliding_window": 16, "tie_word_embeddings": True}),
}


def _write(variant: str, directory: Path, **config: Any) -> Path:
    architecture, settings = VARIANTS[variant]
    return write_tiny_model(directory, architecture, **(settings | config))


def _random_scales(site: Site) -> Tensor:
    index_D = site.tie_index()
    generator = torch.Generator().manual_seed(len(site.name) + site.block)
    return torch.exp(torch.randn(int(index_D.max()) + 1, generator=generator))[index_D]


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_scales_leave_the_logits_alone(variant: str, tmp_path: Path) -> None:
    model = StreamedModel(CheckpointSource(_write(variant, tmp_path)))
    sites = model_sites(model.config, model.architecture)
    assert len(sites) == 8

    def fused(chosen: list[Site], block: int) -> dict[str, Tensor]:
        state = model.read_block(block)
        for site in chosen:
            if site.block == block:
                fuse_scales(state, site, _random_scales(site))
        return state

    ids = fixed_ids(length=32)
    original = streamed_logits(model, ids)
    for site in sites:
        logits = streamed_logits(model, ids, partial(fused, [site]))
        assert float((logits - original).norm() / original.norm()) < 1e-5, site.name
    together = streamed_logits(model, ids, partial(fused, sites))
    assert float((together - original).norm() / original.norm()) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stream_and_the_whole_model_are_what_transformers_computes(variant: str, tmp_path: Path) -> None:
    directory = _write(variant, tmp_path, dtype=torch.bfloat16)
    attention = "eager" if variant == "gemma2" else "sdpa"  # sdpa ignores Gemma 2's soft cap of the attention logits
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation=attention).eval()
    ids = fixed_ids()
    model = StreamedModel(CheckpointSource(directory), dtype=torch.bfloat16)
    with torch.no_grad():
        expected = reference(ids).logits
        whole = model.whole()(ids).logits
    assert torch.equal(whole, expected)
    assert torch.equal(streamed_logits(model, ids), expected)


def test_the_soft_cap_of_the_logits_is_applied(tmp_path: Path) -> None:
    logits = {}
    for cap in (None, 0.5):
        directory = _write("gemma2", tmp_path / str(cap), final_logit_softcapping=cap)
        logits[cap] = streamed_logits(StreamedModel(CheckpointSource(directory)), fixed_ids())
    assert float(logits[None].abs().max()) > 0.5
    assert torch.allclose(logits[0.5], 0.5 * torch.tanh(logits[None] / 0.5), atol=1e-6)


def test_the_soft_cap_of_the_attention_logits_is_applied(tmp_path: Path) -> None:
    """Capped at next to nothing every score is equal, as they are of queries that are zero; capped high, as without."""
    logits = {}
    for cap in (None, 1e6, 1e-4):
        directory = _write("gemma2", tmp_path / str(cap), layers=1, attn_logit_softcapping=cap)
        logits[cap] = streamed_logits(StreamedModel(CheckpointSource(directory)), fixed_ids(length=16))
    uniform = AutoModelForCausalLM.from_pretrained(tmp_path / "None").eval()
    with torch.no_grad():
        uniform.model.layers[0].self_attn.q_proj.weight.zero_()
        expected = uniform(fixed_ids(length=16)).logits
    assert torch.allclose(logits[1e-4], expected, atol=1e-3)
    assert torch.allclose(logits[1e6], logits[None], atol=1e-4)
    assert not torch.allclose(logits[None], expected, atol=1e-1)
