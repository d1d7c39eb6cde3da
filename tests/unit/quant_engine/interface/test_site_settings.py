"""A size that does not fit is told at the place of the request that gives it."""

from typing import Any

import pytest

from quant_engine.interface.site_settings import site_problems
from quant_engine.policy import Policy
from quant_engine.preflight.site_outlines import SiteOutline

DOWN = "model.layers.0.mlp.down_proj"
OUT = "model.layers.0.self_attn.o_proj"
SITES = [
    SiteOutline(name, role, (name,), 96) for name, role in ((OUT, "attention_output"), (DOWN, "feed_forward_inner"))
]
GROUPS = {"granularity": "group", "group_size": 64}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"weights": GROUPS}, "/policy/weights/group_size"),
        (
            {"overrides": [{"match": "o_proj", "weights": {}}, {"match": "down_proj", "weights": GROUPS}]},
            "/policy/overrides/1/weights/group_size",
        ),
        # Both of the policy and of an override: the policy's, which most sites have.
        ({"weights": GROUPS, "overrides": [{"match": "down_proj", "weights": GROUPS}]}, "/policy/weights/group_size"),
        (
            {"overrides": [{"match": "down_proj", "transform": {"block_size": 64}}]},
            "/policy/overrides/0/transform/block_size",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_told_where_it_is_given(fields: dict[str, Any], pointer: str) -> None:
    policy = Policy.model_validate({"targets": ["o_proj", "down_proj"], "ignore": [], **fields})
    assert [each.pointer for each in site_problems(SITES, policy)] == [pointer]
