"""What a card says of other engines: something for every scheme and reach, and the worst of it where they mix."""

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch

from quant_engine.checkpoint import OnlineInput, QuantizedLinear
from quant_engine.checkpoint.engine_schemes import STATEMENTS, VERSIONS, Scheme, scheme_of
from quant_engine.checkpoint.engines import EngineNote, engine_notes
from quant_engine.checkpoint.export import dense_hadamards
from quant_engine.checkpoint.quantry_section import Reach, reach
from quant_engine.policy import (
    ActivationQuantization,
    NumberFormat,
    Policy,
    PolicyError,
    WeightQuantization,
    resolve_policy,
)
from quant_engine.transforms.primitives import Dense, Hadamard
from tests.unit.quant_engine.made_up import made_up_format

_ONLINE = {
    Reach.ANYWHERE: OnlineInput(),
    Reach.HADAMARD: OnlineInput(primitives=(Hadamard(order=256),)),
    Reach.LOADER: OnlineInput(primitives=(Dense(matrix_DD=torch.eye(256)),)),
}
_GRANULARITIES: tuple[dict[str, object], ...] = (
    {"granularity": "channel"},
    {"granularity": "tensor"},
    {"granularity": "group", "group_size": 64},
    # The groups that fp8 inputs take.
    {"granularity": "group", "group_size": 128},
    {},
)

INT4, INT8, FP8 = NumberFormat.INT4, NumberFormat.INT8, NumberFormat.FP8
NVFP4, MXFP4, NONE = NumberFormat.NVFP4, NumberFormat.MXFP4, NumberFormat.NONE


def _linear(
    weights: NumberFormat | WeightQuantization,
    activations: NumberFormat,
    name: str = "mlp.down_proj",
    online: OnlineInput = _ONLINE[Reach.ANYWHERE],
) -> QuantizedLinear:
    return QuantizedLinear(
        name=f"model.layers.0.{name}",
        weights=weights if isinstance(weights, WeightQuantization) else WeightQuantization(format=weights),
        activations=ActivationQuantization(format=activations),
        online=online,
    )


def _verdicts(linears: Sequence[QuantizedLinear]) -> tuple[str, ...]:
    return tuple(note.verdict for note in engine_notes(linears))


def _note(engine: str, linears: Sequence[QuantizedLinear]) -> EngineNote:
    return next(note for note in engine_notes(linears) if note.engine == engine)


def _allowed() -> Iterator[tuple[WeightQuantization, NumberFormat]]:
    """Every pair that a policy can ask for."""
    for weights, activations, rows in product(NumberFormat, NumberFormat, _GRANULARITIES):
        requested = Policy(
            weights=WeightQuantization.model_validate({"format": weights, **rows}),
            activations=ActivationQuantization(format=activations),
        )
        try:
            policy = resolve_policy(requested)
        except PolicyError:
            continue
        yield policy.weights, policy.activations.format


@pytest.mark.parametrize("kind", Reach)
def test_every_policy_has_a_statement_about_every_engine(kind: Reach) -> None:
    schemes = set()
    for weights, activations in _allowed():
        linears = [_linear(weights, activations, online=_ONLINE[kind])]
        assert reach(linears) is kind
        notes = engine_notes(linears)
        assert [note.engine for note in notes] == ["transformers", "vLLM", "SGLang"]
        assert all(note.note.endswith(".") and note.version == VERSIONS[note.engine] for note in notes)
        schemes.add(scheme_of(linears[0]))
    assert schemes == set(Scheme)
    assert all(statements.keys() == set(Scheme) for statements in STATEMENTS.values())


@pytest.mark.parametrize(
    ("weights", "activations", "anywhere", "hadamard"),
    [
        (INT4, NONE, ("runs", "runs", "runs"), ("wrong", "differs", "wrong")),
        (NumberFormat.INT3, NONE, ("runs", "runs", "refuses"), ("wrong", "differs", "refuses")),
        (INT4, INT4, ("runs", "differs", "refuses"), ("wrong", "differs", "refuses")),
        (INT4, INT8, ("runs", "differs", "refuses"), ("wrong", "differs", "refuses")),
        (NumberFormat.INT6, NumberFormat.INT6, ("runs", "refuses", "refuses"), ("wrong", "refuses", "refuses")),
        (INT8, INT8, ("runs", "runs", "runs"), ("wrong", "differs", "wrong")),
        (FP8, FP8, ("runs", "runs", "runs"), ("wrong", "differs", "wrong")),
        (NVFP4, NVFP4, ("runs", "runs", "runs"), ("wrong", "differs", "wrong")),
        (MXFP4, MXFP4, ("runs", "runs", "refuses"), ("wrong", "differs", "refuses")),
        (MXFP4, NONE, ("runs", "differs", "refuses"), ("wrong", "differs", "refuses")),
    ],
)
def test_verdicts_are_what_the_routing_gave(
    weights: NumberFormat, activations: NumberFormat, anywhere: tuple[str, ...], hadamard: tuple[str, ...]
) -> None:
    """Of ``python -m benchmarks.routing`` with vLLM 0.33.0 and SGLang 0.5.23."""
    assert _verdicts([_linear(weights, activations)]) == anywhere
    assert _verdicts([_linear(weights, activations, online=_ONLINE[Reach.HADAMARD])]) == hadamard
    assert _verdicts([_linear(weights, activations, online=_ONLINE[Reach.LOADER])]) == ("refuses",) * 3


@pytest.mark.parametrize(
    ("weights", "activations", "scheme"),
    [
        (WeightQuantization(format=INT8, granularity="group", group_size=64), INT8, Scheme.INT_A8),
        (WeightQuantization(format=INT8, granularity="tensor"), INT8, Scheme.W8A8),
        (WeightQuantization(format=INT4, granularity="tensor"), INT4, Scheme.INT_TENSOR),
        (WeightQuantization(format=INT8, granularity="tensor"), NONE, Scheme.INT_TENSOR),
        (WeightQuantization(format=FP8, granularity="tensor"), FP8, Scheme.FP8_TENSOR),
        (WeightQuantization(format=FP8, granularity="tensor"), NONE, Scheme.FP8_WEIGHT_ONLY),
        (WeightQuantization(format=NumberFormat.INT2), INT4, Scheme.INT_A4),
    ],
)
def test_granularity_and_width_make_a_scheme(
    weights: WeightQuantization, activations: NumberFormat, scheme: Scheme
) -> None:
    assert scheme_of(_linear(weights, activations)) is scheme


def test_a_checkpoint_with_the_refusal_marker_is_refused_for_that_reason_alone() -> None:
    for note in engine_notes([_linear(INT4, INT4, online=_ONLINE[Reach.LOADER])]):
        assert "ValidationError" in note.note


def test_the_worst_linear_decides_and_is_named() -> None:
    mixed = [_linear(INT4, INT4, "self_attn.o_proj"), _linear(INT8, INT8, "mlp.down_proj")]
    assert _verdicts(mixed) == ("runs", "differs", "refuses")
    assert Scheme.INT_A4.value in _note("SGLang", mixed).note
    assert Scheme.W8A8.value not in _note("SGLang", mixed).note
    assert Scheme.W8A8.value in _note("vLLM", mixed).note


def test_wrong_logits_are_not_dressed_up() -> None:
    """What an engine would otherwise do well is left out where it is wrong."""
    rotated = _note("transformers", [_linear(INT4, INT4, online=_ONLINE[Reach.HADAMARD])])
    assert "bit for bit" not in rotated.note
    assert "load" in rotated.note


def test_a_clip_is_left_out_by_everyone() -> None:
    clipped = [_linear(INT8, INT8, online=OnlineInput(clip_ratio=0.9))]
    assert _verdicts(clipped) == ("differs",) * 3
    assert all("clipping" in note.note for note in engine_notes(clipped))


def test_only_other_orders_need_their_matrix_stored() -> None:
    def vllm(order: int) -> str:
        return _note("vLLM", [_linear(INT4, INT4, online=OnlineInput(primitives=(Hadamard(order=order),)))]).note

    assert "pipeline" in vllm(576)
    assert "pipeline" not in vllm(512)


@pytest.mark.parametrize(("names", "verdict"), [("qkv", "runs"), ("qk", "refuses"), ("v", "refuses")])
def test_servers_fuse_q_k_and_v(names: str, verdict: str) -> None:
    linears = [_linear(INT8, INT8, f"self_attn.{name}_proj") for name in names]
    assert _verdicts(linears) == ("runs", verdict, verdict)


def test_what_servers_fuse_has_one_scheme_or_is_wrong() -> None:
    up = [_linear(FP8, FP8, "mlp.gate_proj"), _linear(INT8, INT8, "mlp.up_proj")]
    assert _verdicts(up) == ("runs", "wrong", "wrong")
    other_block = [_linear(INT8, INT8, name) for name in ("mlp.gate_proj", "mlp.up_proj")]
    assert _verdicts([*other_block, _linear(FP8, FP8, "mlp.down_proj")]) == ("runs", "runs", "runs")


def test_parts_that_an_architecture_fuses_itself_are_whole() -> None:
    assert _verdicts([_linear(INT8, INT8, "self_attn.qkv_proj")]) == ("runs", "runs", "runs")


def test_a_small_rotation_before_nvfp4_has_its_matrix_in_the_checkpoint() -> None:
    rotated, wider = (OnlineInput(primitives=(Hadamard(order=order),)) for order in (16, 256))
    small = [_linear(NVFP4, NVFP4, online=rotated)]
    assert next(iter(dense_hadamards(small).values())).shape == (16, 16)
    assert "pipeline" in _note("vLLM", small).note
    assert dense_hadamards([_linear(NVFP4, NVFP4, online=wider)]) == {}
    assert dense_hadamards([_linear(MXFP4, MXFP4, online=rotated)]) == {}
    assert _verdicts(small) == ("wrong", "differs", "wrong")
    assert _verdicts([_linear(MXFP4, MXFP4, online=rotated)]) == ("wrong", "differs", "refuses")


def test_a_format_that_nobody_has_checked_is_said_to_be_unknown() -> None:
    fresh = made_up_format("mxfp8", MXFP4, bits=8, schemes=None)
    weights = WeightQuantization.model_construct(format=fresh, granularity="group", group_size=32)
    linears = [
        QuantizedLinear(
            name="model.layers.0.mlp.down_proj",
            weights=weights,
            activations=ActivationQuantization.model_construct(format=activations),
            online=OnlineInput(),
        )
        for activations in (fresh, NONE)
    ]
    for linear in linears:
        assert _verdicts([linear]) == ("unknown",) * 3
    mixed = [linears[0], _linear(MXFP4, MXFP4, "self_attn.o_proj")]
    assert _verdicts(mixed) == ("unknown", "unknown", "refuses")
    assert Scheme.MXFP4.value in _note("vLLM", mixed).note
    assert "Nobody has checked" in _note("vLLM", mixed).note
