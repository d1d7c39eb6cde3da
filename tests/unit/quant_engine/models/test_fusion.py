"""A diagonal fused into its producer and out of its readers, against the dense definition in fp64."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.models import Site, architecture_of, fuse_permutation, fuse_scales, fused_rows, model_sites

HEADS, GROUPS, SIZE, HIDDEN, INNER = 4, 2, 3, 10, 7


def _site(model_type: str, role: str) -> Site:
    config = SimpleNamespace(
        num_hidden_layers=1,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=SIZE,
    )
    sites = model_sites(config, architecture_of({"model_type": model_type}))
    return next(site for site in sites if site.role == role)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _scales(site: Site) -> Tensor:
    index_D = site.tie_index()
    return torch.exp(_random(int(index_D.max()) + 1, seed=9))[index_D]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_a_norm_gives_the_tensor_divided(model_type: str) -> None:
    site = _site(model_type, "feed_forward_input")
    state = {f"{site.producer}.weight": _random(HIDDEN)}
    state |= {f"{reader}.weight": _random(INNER, HIDDEN, seed=len(reader)) for reader in site.all_readers}
    before, s_D, offset = dict(state), _scales(site), 1.0 if "gemma" in model_type else 0.0
    fuse_scales(state, site, s_D)
    multiplier, was = (offset + each[f"{site.producer}.weight"] for each in (state, before))
    assert torch.allclose(multiplier, was / s_D, rtol=1e-12, atol=1e-12)
    for reader in site.all_readers:
        assert torch.allclose(state[f"{reader}.weight"], before[f"{reader}.weight"] @ torch.diag(s_D), rtol=1e-12)


def test_of_fused_values_only_the_value_rows_and_their_bias_change() -> None:
    site = _site("phi3", "attention_output")
    rows, values = (HEADS + 2 * GROUPS) * SIZE, GROUPS * SIZE
    weight, bias, reader = f"{site.producer}.weight", f"{site.producer}.bias", f"{site.all_readers[0]}.weight"
    state = {weight: _random(rows, HIDDEN), bias: _random(rows), reader: _random(HIDDEN, HEADS * SIZE)}
    before, s_D = dict(state), _scales(site)
    fuse_scales(state, site, s_D)
    assert site.producer.endswith("qkv_proj")
    assert torch.equal(state[weight][:-values], before[weight][:-values])
    assert torch.equal(state[bias][:-values], before[bias][:-values])

    def output(tensors: dict[str, Tensor]) -> Tensor:  # of attention that averages over nothing
        qkv_TO = _random(5, HIDDEN, seed=3) @ tensors[weight].T + tensors[bias]
        v_TGK = qkv_TO[:, -values:].unflatten(1, (GROUPS, SIZE))
        return v_TGK.repeat_interleave(HEADS // GROUPS, dim=1).flatten(1) @ tensors[reader].T

    assert torch.allclose(output(state), output(before), rtol=1e-11)
    assert not torch.allclose(state[weight], before[weight], rtol=1e-2)


def test_of_a_fused_gate_and_up_only_the_up_rows_change() -> None:
    site = _site("phi3", "feed_forward_inner")
    weight, reader = f"{site.producer}.weight", f"{site.all_readers[0]}.weight"
    state = {weight: _random(2 * INNER, HIDDEN), reader: _random(HIDDEN, INNER)}
    before, s_D = dict(state), _scales(site)
    fuse_scales(state, site, s_D)

    def output(tensors: dict[str, Tensor]) -> Tensor:
        gate_TI, up_TI = (_random(5, HIDDEN, seed=3) @ tensors[weight].T).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate_TI) * up_TI) @ tensors[reader].T

    assert torch.equal(state[weight][:INNER], before[weight][:INNER])
    assert torch.allclose(output(state), output(before), rtol=1e-11)
    assert not torch.allclose(state[weight], before[weight], rtol=1e-2)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_not_positive_and_finite_are_refused(bad: float) -> None:
    site = replace(_site("llama", "feed_forward_inner"), features=2)
    with pytest.raises(NumericalInstability, match="not all positive and finite"):
        fuse_scales({}, site, torch.tensor([1.0, bad]))


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_a_feed_forward_with_a_fused_permutation_computes_the_same(model_type: str) -> None:
    site = _site(model_type, "feed_forward_inner")
    (down,) = (f"{reader}.weight" for reader in site.all_readers)
    if model_type == "phi3":
        made = {f"{site.producer}.weight": _random(2 * INNER, HIDDEN), f"{site.producer}.bias": _random(2 * INNER)}
    else:
        made = {f"{each}.weight": _random(INNER, HIDDEN, seed=len(each)) for each in (site.producer, *site.partners)}
        assert len(made) == 2
    state = made | {down: _random(HIDDEN, INNER, seed=3)}
    before, index_D = dict(state), torch.randperm(INNER, generator=torch.Generator().manual_seed(1))
    fuse_permutation(state, site, index_D)
    x_TD = _random(5, HIDDEN, seed=4)
    assert torch.allclose(_feed_forward(x_TD, state, down), _feed_forward(x_TD, before, down), rtol=1e-12)
    # Not the identity, and known by name for what else belongs to the rows.
    for name, index_O in fused_rows(site, index_D).items():
        assert not torch.equal(state[f"{name}.weight"], before[f"{name}.weight"])
        assert torch.equal(state[f"{name}.weight"], before[f"{name}.weight"][index_O])


def _feed_forward(x_TD: Tensor, state: dict[str, Tensor], down: str) -> Tensor:
    weights = [weight for name, weight in state.items() if name.endswith("weight") and name != down]
    if len(weights) == 1:
        bias = next(each for name, each in state.items() if name.endswith("bias"))
        gate, up = (x_TD @ weights[0].T + bias).chunk(2, dim=-1)
    else:
        up, gate = (x_TD @ weight.T for weight in weights)
    return (torch.nn.functional.silu(gate) * up) @ state[down].T
