"""The presets that are offered to a request that names none."""

from typing import Any

import pytest

from quant_engine.checkpoint.engine_schemes import STATEMENTS
from quant_engine.policy import PRESETS, Policy, check_profile, choice_required, resolve_policy, undecided
from quant_engine.policy.choice import POPULAR, Popular
from quant_engine.policy.format_spec import Scheme

_ENGINES = {"transformers": "plain transformers", "vLLM": "vLLM", "SGLang": "SGLang"}


def _scheme(policy: Policy) -> Scheme:
    spec = policy.weights.format.spec
    assert spec.schemes is not None
    if not policy.activations.format.quantizes:
        return spec.schemes.weight_only
    assert policy.activations.format is policy.weights.format
    return spec.schemes.activations if spec.pairing is None else spec.pairing.scheme


@pytest.mark.parametrize("popular", POPULAR, ids=lambda each: each.preset)
def test_a_popular_preset_loads_where_its_text_says(popular: Popular) -> None:
    policy = PRESETS[popular.preset].policy
    check_profile(policy, "universal")
    for engine, words in _ENGINES.items():
        runs = engine == "transformers" or STATEMENTS[engine][_scheme(policy)].verdict == "runs"
        assert runs is (words in popular.loads_in), engine


def test_the_text_names_three_presets_with_what_each_loads_in() -> None:
    assert len(POPULAR) == 3
    text = choice_required()
    for popular in POPULAR:
        assert f"'{popular.preset}': {PRESETS[popular.preset].description} Loads in: {popular.loads_in}." in text


_ALL = ("weights.format", "activations.format", "targets", "transform.kind")


@pytest.mark.parametrize(
    ("policy", "missing"),
    [
        ({}, _ALL),
        ({"preset": "w8a8"}, ()),
        ({"task": "evaluate"}, ()),
        ({"task": "quantize"}, _ALL),
        (
            {"weights": {"format": "int8"}, "transform": {"alpha": 0.4}, "targets": ["o_proj"]},
            ("activations.format", "transform.kind"),
        ),
        (
            {
                "weights": {"format": "int8"},
                "activations": {"format": "none"},
                "targets": ["o_proj"],
                "transform": {"kind": "none"},
            },
            (),
        ),
    ],
)
def test_a_policy_without_a_preset_has_to_decide(policy: dict[str, Any], missing: tuple[str, ...]) -> None:
    assert undecided(Policy.model_validate(policy)) == missing


def test_a_resolved_policy_decides() -> None:
    resolved = resolve_policy(Policy(preset="w4a16"))
    assert undecided(Policy.model_validate(resolved.model_dump(mode="json", exclude={"preset"}))) == ()
