"""The layout that is derived without torch is the one of transformers' own model classes."""

import random
from typing import Any, Final

import pytest
import torch

from quant_engine.errors import EngineError, InvalidModel
from quant_engine.interface.architectures import ARCHITECTURES, Architecture
from quant_engine.interface.layout import MAX_LAYERS, ModelLayout, model_layout
from quant_engine.models import empty_model, model_configuration

_TINY: Final = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
}
_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "hidden_size": (32, 40),
    "intermediate_size": (48, 50),
    "num_hidden_layers": (1, 2),
    "num_attention_heads": (2, 4, 8),
    "num_key_value_heads": (1, 2, None),
    "head_dim": (6, 8, None),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "tie_word_embeddings": (True, False),
    "vocab_size": (64, 65),
}
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.class_name)


def of_transformers(config: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, int]], bool]:
    """Shapes of all parameters, those of the blocks' linears, and whether the class ties."""
    model = empty_model(model_configuration(config), torch.float32)
    linears = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return shapes, linears, bool(model.config.tie_word_embeddings)


def of_ours(layout: ModelLayout) -> tuple[Any, Any, bool]:
    return dict(layout.tensors), dict(layout.linears), layout.ties


@each_architecture
def test_the_defaults_are_those_of_the_class(architecture: Architecture) -> None:
    config: dict[str, Any] = {"model_type": architecture.model_type}
    layout = model_layout(config)
    real = model_configuration(config)
    assert (layout.layers, layout.vocabulary) == (real.num_hidden_layers, real.vocab_size)
    # One block of the widths of the class shows as much as all of them.
    config |= {"num_hidden_layers": 1}
    assert of_ours(model_layout(config)) == of_transformers(config)


@each_architecture
def test_every_configuration_that_transformers_takes_has_its_layout(architecture: Architecture) -> None:
    generator = random.Random(architecture.class_name)  # noqa: S311  # repeatable examples
    compared = 0
    for _ in range(40):
        changed = generator.sample(sorted(_CHOICES), k=generator.randint(1, 5))
        config: dict[str, Any] = {"model_type": architecture.model_type, **_TINY}
        config |= {name: generator.choice(_CHOICES[name]) for name in changed}
        try:
            expected = of_transformers(config)
        except EngineError:
            continue
        compared += 1
        assert of_ours(model_layout(config)) == expected, config
    assert compared >= 15


@each_architecture
@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "32", True, [32], {}, None, 2**40])
def test_a_size_that_is_no_size_is_named(architecture: Architecture, name: str, value: object) -> None:
    with pytest.raises(InvalidModel, match=f"{name} has to be a whole number from 1 to"):
        model_layout({"model_type": architecture.model_type, **_TINY, name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": MAX_LAYERS + 1}, "num_hidden_layers has to be a whole number from 1 to 1,000"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is not a multiple of num_key_value_heads \(3\)"),
        ({"num_key_value_heads": 8}, "is not a multiple of num_key_value_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 1}, r"hidden_size \(32\) is not a multiple"),
        ({"head_dim": 0}, "head_dim has to be"),
        ({"head_dim": "8"}, "head_dim has to be"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings has to be true or false"),
        ({"attention_bias": "no"}, "attention_bias has to be true or false"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps has to be a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps has to be a finite number"),
        ({"max_position_embeddings": 0}, "max_position_embeddings has to be a positive whole number"),
        ({"pad_token_id": [1, 2]}, "pad_token_id has to be a token id or null"),
    ],
)
def test_values_that_contradict_each_other_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        model_layout({"model_type": "llama", **_TINY, **changes})
