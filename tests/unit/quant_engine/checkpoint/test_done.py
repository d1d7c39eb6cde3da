"""What was done is read from results, whatever was asked."""

from typing import Any

import pytest

from quant_engine.checkpoint import OnlineInput, QuantizedLinear
from quant_engine.checkpoint.card_done import done_sentences
from quant_engine.checkpoint.done import Choices, what_was_done
from quant_engine.interface.layers import UNMEASURED, LayerRow
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from quant_engine.transforms.primitives import Hadamard, Primitive

_W4 = WeightQuantization()
_A4 = ActivationQuantization()


def _linear(
    name: str,
    weights: WeightQuantization = _W4,
    activations: ActivationQuantization = _A4,
    *online: Primitive,
    clip_ratio: float = 1.0,
) -> QuantizedLinear:
    return QuantizedLinear(
        name=f"model.layers.0.{name}",
        weights=weights,
        activations=activations,
        online=OnlineInput(primitives=online, clip_ratio=clip_ratio),
    )


def _row(name: str, transform: str = "none", alpha: float | None = None, statistic: str | None = None) -> LayerRow:
    fields: dict[str, Any] = {"block": 0, "role": "feed_forward_inner", "scheme": "W4A4", "parameters": 1, "bytes": 1}
    chosen = {"transform": transform, "alpha": alpha, "statistic": statistic}
    return LayerRow(**(UNMEASURED | fields | chosen), name=name)


def _sentences(
    linears: list[QuantizedLinear],
    rows: tuple[LayerRow, ...] = (),
    dense: tuple[str, ...] = (),
    choices: Choices = Choices(),  # noqa: B008 — frozen
) -> list[str]:
    return done_sentences(what_was_done(linears, dense, rows, choices))


def test_the_linears_are_counted_by_their_names() -> None:
    linears = [_linear("mlp.up_proj"), _linear("mlp.gate_proj"), _linear("self_attn.up_proj")]
    assert _sentences(linears, dense=("a.o_proj", "lm_head"))[:2] == [
        "Quantized: 2 × `up_proj`, 1 × `gate_proj`.",
        "Not quantized: 1 × `o_proj`, 1 × `lm_head`.",
    ]


@pytest.mark.parametrize(
    ("weights", "activations", "clip_ratio", "expected"),
    [
        (
            _W4,
            _A4,
            1.0,
            "All of them: weights in int4, a scale for each channel, round to nearest; "
            "activations in int4, a scale for each token, at run time.",
        ),
        (
            WeightQuantization(granularity="group", group_size=128, rounding="gptq", clip="mse"),
            ActivationQuantization(format=NumberFormat.NONE),
            1.0,
            "All of them: weights in int4, a scale for each group of 128, GPTQ, "
            "ranges clipped to the smallest squared error; activations not rounded.",
        ),
        # The policy may not name the groups that the format has.
        (
            WeightQuantization(format=NumberFormat.MXFP4),
            ActivationQuantization(format=NumberFormat.MXFP4),
            1.0,
            "All of them: weights in mxfp4, a scale for each group of 32, round to nearest; "
            "activations in mxfp4, a scale for each group of 32, at run time.",
        ),
        (
            _W4,
            ActivationQuantization(clip="search"),
            0.85,
            "All of them: weights in int4, a scale for each channel, round to nearest; "
            "activations in int4, a scale for each token, at run time, clipped at 0.85 of the largest value in 1.",
        ),
        # A search that found no clip to be better.
        (
            _W4,
            ActivationQuantization(clip="search"),
            1.0,
            "All of them: weights in int4, a scale for each channel, round to nearest; "
            "activations in int4, a scale for each token, at run time.",
        ),
    ],
)
def test_a_scheme_is_what_the_linears_have(
    weights: WeightQuantization, activations: ActivationQuantization, clip_ratio: float, expected: str
) -> None:
    assert expected in _sentences([_linear("mlp.up_proj", weights, activations, clip_ratio=clip_ratio)])


def test_an_override_that_matched_some_is_a_scheme_of_its_own() -> None:
    int8 = WeightQuantization(format=NumberFormat.INT8)
    linears = [_linear("up_proj"), _linear("down_proj", int8, _A4, clip_ratio=0.9), _linear("gate_proj")]
    schemes = [each for each in _sentences(linears) if "weights in" in each]
    assert [each.split(": ")[0] for each in schemes] == ["1 × `up_proj`, 1 × `gate_proj`", "1 × `down_proj`"]
    assert "int8" in schemes[1]
    assert "clipped at 0.9 of the largest value in 1" in schemes[1]


def test_learned_ranges_are_not_those_of_the_policy() -> None:
    linears = [_linear("up_proj"), _linear("down_proj")]
    sentences = _sentences(linears, choices=Choices(learned_clips=frozenset({"model.layers.0.down_proj"})))
    assert [("on learned ranges" in each) for each in sentences if "weights in" in each] == [False, True]


def test_transforms_are_those_of_the_rows() -> None:
    rows = (_row("a", "smooth_rotation", 0.4, "learned"), _row("b", "smooth_rotation", 0.5, "learned"), _row("c"))
    sentences = _sentences([_linear("up_proj", _W4, _A4, Hadamard(order=16)), _linear("down_proj")], rows)
    assert "Transform of 2 linears: smooth rotation, α 0.4 to 0.5, learned scales." in sentences
    assert "Transform of 1 linear: none." in sentences
    assert "Transformed at run time: the input of 1 linear." in sentences
    assert any(each.startswith("Training: 2 linears ended with learned scales") for each in sentences)
    assert "Transformed at run time: nothing." in _sentences([_linear("up_proj")])


def test_a_training_that_stopped_early_says_so() -> None:
    def curve(best: int, last: int) -> dict[str, Any]:
        return {"best_step": best, "curve": [{"step": last}]}

    choices = Choices(blocks={"0": curve(0, 40), "1": curve(90, 120)})
    assert (
        "Training: 2 blocks, 40 to 120 steps each; 1 ended better than they began, and the others were left as they "
        "began." in _sentences([_linear("up_proj")], choices=choices)
    )


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"scope": "shared", "chosen": {"alpha": 0.475}}, "Search: α 0.475 was the best"),
        ({"scope": "shared", "chosen": "T1 at 0.02"}, "Search: T1 at 0.02 was the best"),
        ({"scope": "per_layer", "chosen": None}, "Search: each layer has its own best candidate, or the baseline"),
    ],
)
def test_a_search_says_what_it_chose(search: dict[str, Any], expected: str) -> None:
    assert any(each.startswith(expected) for each in _sentences([_linear("up_proj")], choices=Choices(search=search)))


def test_a_selection_says_what_it_chose() -> None:
    choices = Choices(selected={"a": "rotation", "b": "smooth_rotation", "c": "rotation"})
    assert "Selection: of the inputs that linears share, rotation in 2, smooth rotation in 1." in _sentences(
        [_linear("up_proj")], choices=choices
    )


@pytest.mark.parametrize(("steps", "expected"), [(None, "drawn by a seed"), (20, "learned in 20 steps")])
def test_a_rotation_of_the_stream_is_named(steps: int | None, expected: str) -> None:
    choices = Choices(residual={"value_heads": True, "learned_steps": steps})
    assert (
        f"Residual stream: a rotation of it and of every value head, {expected}, fused into the weights."
        in _sentences([_linear("up_proj")], choices=choices)
    )
