"""Sites: which linears share an input, which the policy means, and how grouped-query heads tie a diagonal."""

from types import SimpleNamespace

import pytest
import torch

from quant_engine.errors import NoMatchingLayer
from quant_engine.models import ARCHITECTURES, ProducerRows, Site, architecture_of, model_sites, target_sites
from quant_engine.policy import Policy


def _sites(**config: int) -> list[Site]:
    defaults = {
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return model_sites(SimpleNamespace(**(defaults | config)), ARCHITECTURES[0])


def test_a_block_has_four_sites_with_the_right_widths() -> None:
    sites = _sites(head_dim=8)
    assert [site.role for site in sites[:4]] == [
        "attention_input",
        "attention_output",
        "feed_forward_input",
        "feed_forward_inner",
    ]
    assert [site.features for site in sites[4:]] == [24, 32, 24, 40]
    assert sites[0].name == "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    assert sites[7].name == "model.layers.1.mlp.down_proj"
    assert sites[7].producer == "model.layers.1.mlp.up_proj"


def test_targets_cut_readers_down_but_not_all_readers() -> None:
    (first, second) = target_sites(_sites(), Policy(targets=("q_proj", "v_proj")))
    assert first.readers == ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    assert len(first.all_readers) == 3
    assert second.block == 1


def test_ignore_and_overrides_to_none_leave_linears_alone() -> None:
    policy = Policy.model_validate(
        {
            "targets": ["down_proj", "o_proj"],
            "ignore": ["o_proj"],
            "overrides": [{"match": r"re:.*layers\.0\..*", "weights": {"format": "none"}}],
        }
    )
    assert [site.name for site in target_sites(_sites(), policy)] == ["model.layers.1.mlp.down_proj"]


def test_nothing_matched_names_the_patterns_and_what_there_is() -> None:
    with pytest.raises(NoMatchingLayer) as caught:
        target_sites(_sites(), Policy(targets=("dwon_proj",)))
    assert "dwon_proj" in caught.value.detail
    assert "down_proj" in caught.value.hint
    assert "model.layers.0.self_attn.q_proj" in caught.value.hint


def test_heads_of_a_group_share_parameters() -> None:
    site = _sites(head_dim=3)[1]  # 4 heads of 3 on 2 value heads: 12 features, 6 parameters
    assert site.tie_index().tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert _sites(head_dim=3)[3].tie_index().tolist() == list(range(40))


def test_pooling_puts_tied_heads_under_one_another() -> None:
    site = _sites(head_dim=3)[1]
    x_TD = torch.arange(24.0).reshape(2, 12)
    pooled_TP = site.pool(x_TD)
    index_D = site.tie_index()
    for parameter in range(6):
        expected = x_TD[:, index_D == parameter].flatten().sort().values
        assert torch.equal(pooled_TP[:, parameter].sort().values, expected)
    other = _sites()[0]
    assert other.pool(x_TD) is x_TD


def _phi3_sites() -> list[Site]:
    config = SimpleNamespace(
        num_hidden_layers=1, hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2
    )
    return model_sites(config, architecture_of({"model_type": "phi3"}))


def test_fused_linears_make_their_tensors_with_their_last_rows() -> None:
    sites = _phi3_sites()
    assert [site.features for site in sites] == [24, 24, 24, 40]
    assert [site.producer.rpartition(".")[2] for site in sites] == [
        "input_layernorm",
        "qkv_proj",
        "post_attention_layernorm",
        "gate_up_proj",
    ]
    assert [site.rows for site in sites] == [ProducerRows.ALL, ProducerRows.LAST, ProducerRows.ALL, ProducerRows.LAST]


@pytest.mark.parametrize(
    ("targets", "ignore", "expected"),
    [
        (("qkv_proj",), (), ["qkv_proj"]),
        (("q_proj", "k_proj", "v_proj"), (), ["qkv_proj"]),
        (("q_proj", "v_proj", "o_proj"), (), ["o_proj"]),
        (("gate_proj", "up_proj", "down_proj"), ("up_proj",), ["down_proj"]),
        (("re:.*_proj",), ("gate_up_proj",), ["qkv_proj", "o_proj", "down_proj"]),
    ],
)
def test_a_fused_linear_answers_to_all_of_its_parts(
    targets: tuple[str, ...], ignore: tuple[str, ...], expected: list[str]
) -> None:
    chosen = target_sites(_phi3_sites(), Policy(targets=targets, ignore=ignore))
    assert [reader.rpartition(".")[2] for site in chosen for reader in site.readers] == expected
