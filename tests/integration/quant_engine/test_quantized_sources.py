"""Models that are quantized already: read with their scales, measured, and quantized again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.checkpoint import ActivationGrid
from quant_engine.errors import AdapterNotMerged, UnsupportedQuantization
from quant_engine.model_files import ModelFiles
from quant_engine.model_files.code_scales import SCALE_PARTS
from quant_engine.models import CheckpointSource, StreamedModel
from quant_engine.policy import Policy
from quant_engine.preflight import JobInputs, check_job
from quant_engine.stages.context.source import open_source
from tests.integration.quant_engine import coded, peers
from tests.integration.quant_engine.coded import encode, plain_logits
from tests.integration.quant_engine.helpers import RecordingObserver, fixed_ids, open_run, streamed_logits
from tests.integration.quant_engine.runs import gate_difference, left_by, policy_of, run_policy, run_until, small
from tests.tiny_models import write_tiny_model

SMALL = small()
W8A8 = policy_of(preset="w8a8")
EVALUATE = policy_of(preset="evaluate")
_WRITERS = {
    "modelopt": coded.MODELOPT,
    "int8 without a config": coded.INT8,
    "int8 for each tensor": replace(coded.INT8, block=(None, None), shape=lambda grid: grid.reshape(1)),
    "blocks that do not divide": replace(coded.BLOCKS, block=(40, 24),
        config=coded.BLOCKS.config | {"weight_block_size": [40, 24]}),  # type: ignore[operator]  # it is not None
    "blocks of 128": replace(coded.BLOCKS, block=(128, 128), config={"quant_method": "fp8"}),
    "fbgemm": coded.FBGEMM,
    "channels without a dimension": replace(coded.FBGEMM, shape=lambda grid: grid.reshape(-1)),
    "e5m2": replace(coded.FBGEMM, codes=torch.float8_e5m2),
    "half-precision scales": replace(coded.INT8, scales=torch.bfloat16),
    "scales that are powers of two": replace(coded.BLOCKS, scales=torch.float8_e8m0fnu),
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With wide feed-forward layers, so that a block of 128 is smaller than some weights and larger than others."""
    directory = tmp_path_factory.mktemp("dense") / "model"
    return write_tiny_model(directory, "qwen3", dtype=torch.bfloat16, intermediate=144)


def opened(directory: Path, **options: Any) -> Any:
    return open_source(CheckpointSource(directory), **options)


def refusals(directory: Path, policy: Policy) -> list[str]:
    """The codes of the problems that are told at submit."""
    inputs = JobInputs(policy=policy, calibration=SMALL["calibration"], evaluation=SMALL["evaluation"])
    problems = check_job(ModelFiles(directory), inputs)
    return [problem.code for problem in problems]


def relative(expected: Tensor, found: Tensor) -> float:
    return float((expected.double() - found.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", _WRITERS)
def test_codes_are_read_with_their_scales(name: str, dense: Path, tmp_path: Path) -> None:
    original = encode(dense, tmp_path / "model", _WRITERS[name])
    source, expected = opened(tmp_path / "model"), load_file(original / "model.safetensors")
    assert source.tensors.keys() == expected.keys()
    assert source.dtype == torch.bfloat16
    for read_as in (torch.float32, torch.bfloat16):
        found = source.read(expected, dtype=read_as)
        # The product in fp32 and that in fp64 may differ in the last bit of bfloat16, where it is nearly a tie.
        for tensor, value in expected.items():
            assert found[tensor].dtype == read_as
            torch.testing.assert_close(found[tensor].double(), value.double(), rtol=2**-8, atol=0)
            assert (found[tensor].double() == value.double()).double().mean() > 0.999
    codes = load_file(tmp_path / "model" / "model.safetensors")
    assert source.stored_names(expected) == codes.keys()
    assert "quantization_config" not in source.config
    assert refusals(tmp_path / "model", W8A8) == refusals(tmp_path / "model", EVALUATE) == []


def test_codes_are_found_under_the_names_of_a_base_model(dense: Path, tmp_path: Path) -> None:
    original = encode(dense, tmp_path / "model", coded.MODELOPT)
    path = tmp_path / "model" / "model.safetensors"
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, {"format": "pt"})
    source, expected = opened(tmp_path / "model"), load_file(original / "model.safetensors")
    found = source.read(expected, dtype=torch.bfloat16)
    assert all(relative(value, found[name]) < 1e-3 for name, value in expected.items())
    assert source.stored_names(expected) == bare.keys()
    assert refusals(tmp_path / "model", W8A8) == []


def test_a_linear_without_its_scale_is_refused_at_submit_and_by_the_engine(dense: Path, tmp_path: Path) -> None:
    encode(dense, tmp_path / "model", coded.MODELOPT)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.gate_proj.weight_scale"]
    save_file(tensors, path, {"format": "pt"})
    assert refusals(tmp_path / "model", W8A8) == refusals(tmp_path / "model", EVALUATE) == ["unsupported_quantization"]
    with pytest.raises(UnsupportedQuantization, match=r"layers\.1\.mlp\.gate_proj\.weight holds F8_E4M3 codes"):
        opened(tmp_path / "model")


def test_blocks_stream_to_the_bits_of_from_pretrained(dense: Path, tmp_path: Path) -> None:
    """Transformers dequantizes them where it has no kernel. Its grid has to divide the weight."""
    encode(dense, tmp_path / "model", replace(coded.BLOCKS, block=(16, 16),
           config=coded.BLOCKS.config | {"weight_block_size": [16, 16], "dequantize": True}))  # type: ignore[operator]  # it is not None  # fmt: skip
    source = opened(tmp_path / "model")
    found = streamed_logits(StreamedModel(source, dtype=source.dtype), fixed_ids())
    assert torch.equal(found, plain_logits(tmp_path / "model", fixed_ids()))
    assert relative(plain_logits(dense, fixed_ids()), found) < 0.2


@pytest.mark.parametrize(
    "name", ["modelopt", "int8 without a config", "blocks that do not divide"],
)  # fmt: skip
def test_codes_are_quantized_again_to_the_model_that_they_mean(name: str, dense: Path, tmp_path: Path) -> None:
    original = encode(dense, tmp_path / "model", _WRITERS[name])
    observer = run_until("verify", tmp_path / "model", W8A8, tmp_path / "out", **SMALL)
    checkpoint = tmp_path / "out" / "work" / "export" / "checkpoint"
    exported = plain_logits(checkpoint, fixed_ids())
    assert relative(plain_logits(original, fixed_ids()), exported) < 0.05
    assert any("quantized already" in line for _, line in logged(observer))
    assert gate_difference(left_by(tmp_path / "model", W8A8, tmp_path / "out", **SMALL)) == 0.0
    # Nothing of the source's own quantization is left.
    content = json.loads((checkpoint / "config.json").read_text())
    assert content["quantization_config"]["quant_method"] == "compressed-tensors"
    assert content["dtype"] == "bfloat16"
    assert not (checkpoint / "hf_quant_config.json").exists()
    tensors = load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16, torch.int8}
    assert not [tensor for tensor in tensors if tensor.endswith((SCALE_PARTS[1], "input_scale"))]


def logged(observer: RecordingObserver) -> list[tuple[Any, ...]]:
    return [event for event in observer.events if event[0] == "log"]


def test_a_measurement_of_codes_is_that_of_the_model_that_they_mean(dense: Path, tmp_path: Path) -> None:
    original = encode(dense, tmp_path / "model", coded.MODELOPT)
    measured = small(perplexity=True)
    observer = RecordingObserver()
    result = run_policy(tmp_path / "model", EVALUATE, tmp_path / "out", observer, **measured)
    expected = run_policy(original, EVALUATE, tmp_path / "expected", **measured)
    perplexity = result.summary["perplexity"]
    assert perplexity["original"] is None
    assert perplexity["quantized"] == pytest.approx(expected.summary["perplexity"]["quantized"], rel=1e-3)
    assert {row["scheme"] for row in result.layers} == {"FP8A16"}
    row = result.layers[0]
    assert row["bytes"] == row["parameters"] + 4  # codes, and one scale
    assert result.report["source"]["quantization"] == {
        "format": "ModelOpt: F8_E4M3 codes with a scale for each tensor",
        "weights": "multiplied by their scales, in bfloat16",
        "inputs": "in floating point",
        "unused_parts": ["input_scale"],
    }
    assert expected.report["source"] == {"quantization": None}
    assert any("in floating point" in line for _, line in logged(observer))


@pytest.mark.parametrize(
    "scheme", [peers.scheme(peers.W4A16), peers.scheme(peers.INT8, {"num_bits": 8} | peers.DYNAMIC)]
)
def test_compressed_tensors_is_quantized_again_from_its_weights(scheme: Any, dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", [scheme])
    source = opened(peer, weights_only=True)
    meant = source.read(source.tensors, dtype=torch.bfloat16)
    original = tmp_path / "original"
    original.mkdir()
    save_file({name: value.clone() for name, value in meant.items()}, original / "model.safetensors", {"format": "pt"})
    (original / "config.json").write_text(json.dumps(source.config))
    # The weights are those that from_pretrained decompresses; its rounding of inputs is not among them.
    weights_alone = streamed_logits(StreamedModel(source, dtype=torch.bfloat16), fixed_ids())
    assert torch.equal(weights_alone, plain_logits(original, fixed_ids()))
    plain = opened(peer, grid=ActivationGrid.COMPRESSED_TENSORS)
    measured = streamed_logits(StreamedModel(plain, dtype=torch.bfloat16), fixed_ids())
    assert torch.equal(measured, peers.reference_logits(peer, fixed_ids()))
    assert refusals(peer, W8A8) == refusals(peer, EVALUATE) == []
    run_until("verify", peer, W8A8, tmp_path / "out", **SMALL)
    exported = plain_logits(tmp_path / "out" / "work" / "export" / "checkpoint", fixed_ids())
    assert relative(weights_alone, exported) < 0.05


def test_a_rotation_of_the_residual_stream_reads_dequantized_weights(dense: Path, tmp_path: Path) -> None:
    original = encode(dense, tmp_path / "model", coded.INT8)
    rotated = policy_of(preset="quarot-w4a4")
    found = open_run(tmp_path / "model", rotated, tmp_path)
    expected = open_run(original, rotated, tmp_path)
    logits = [streamed_logits(run.model, fixed_ids()) for run in (found, expected)]
    assert relative(logits[1], logits[0]) < 1e-2
    dense_names = expected.source.tensors
    assert found.source.stored_names(dense_names) == load_file(tmp_path / "model" / "model.safetensors").keys()


def test_our_own_export_is_quantized_again_unless_it_transforms_its_inputs(dense: Path, tmp_path: Path) -> None:
    run_until("verify", dense, W8A8, tmp_path / "plain", **SMALL)
    run_until("verify", dense, policy_of(preset="smoothrot-w4a4"), tmp_path / "rotated", **SMALL)
    plain, rotated = (tmp_path / each / "work" / "export" / "checkpoint" for each in ("plain", "rotated"))
    again = open_run(plain, W8A8, tmp_path)
    assert relative(plain_logits(dense, fixed_ids()), streamed_logits(again.model, fixed_ids())) < 0.05
    with pytest.raises(UnsupportedQuantization, match="transforms the inputs") as refused:
        open_run(rotated, W8A8, tmp_path)
    assert "policy.online 'none'" in refused.value.hint
    assert refusals(rotated, W8A8) == ["unsupported_quantization"]
    assert refusals(rotated, EVALUATE) == refusals(plain, W8A8) == refusals(plain, EVALUATE) == []
    measured = opened(rotated)
    stored = load_file(rotated / "model.safetensors").keys()
    assert measured.stored_names(measured.tensors) == stored


def test_an_expression_that_backtracks_does_not_hold_the_engine(dense: Path, tmp_path: Path) -> None:
    endless = "re:(([a-z0-9_.])+)+!"
    schemes = [peers.scheme(peers.INT8, targets=["re:.*mlp", "model.layers.0.self_attn.q_proj"])]
    peer = peers.write_peer(dense, tmp_path / "peer", schemes)
    expected = opened(peer).linears
    section = json.loads((peer / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["targets"].append(endless)
    peers.edit_config(peer, config_groups=section["config_groups"], ignore=[*section["ignore"], endless])
    found = opened(peer).linears
    assert found.keys() == expected.keys()
    assert len(found) == 3 * 2 + 1


def test_codes_outside_of_the_schemes_are_refused(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", [peers.scheme(peers.INT8, targets=["re:.*down_proj$"])])
    tensors = load_file(peer / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, peer / "model.safetensors", {"format": "pt"})
    for weights_only in (True, False):
        with pytest.raises(UnsupportedQuantization, match=r"up_proj\.weight holds F8_E4M3 codes.*no scheme"):
            _ = opened(peer, weights_only=weights_only).linears


def test_a_quantized_cache_is_left_out_of_the_weights_and_not_measured(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", [peers.scheme(peers.INT8)])
    without = opened(peer, weights_only=True)
    expected = streamed_logits(StreamedModel(without), fixed_ids())
    peers.edit_config(peer, kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    tensors = load_file(peer / "model.safetensors")
    scale = "model.layers.0.self_attn.k_scale"
    save_file(tensors | {scale: torch.tensor(0.1)}, peer / "model.safetensors", {"format": "pt"})
    source = opened(peer, weights_only=True)
    assert torch.equal(streamed_logits(StreamedModel(source), fixed_ids()), expected)
    assert scale in source.stored_names([])
    assert scale not in without.stored_names([])
    with pytest.raises(UnsupportedQuantization, match="kv_cache_scheme"):
        opened(peer)


def test_an_adapter_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    with pytest.raises(AdapterNotMerged, match=r"adapter \(LORA\) of owner/base"):
        opened(adapter)
    model = write_tiny_model(tmp_path / "model", layers=1)
    tensors = load_file(model / "model.safetensors")
    lora = {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(4, 64)}
    save_file(tensors | lora, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterNotMerged, match="lora_A"):
        run_policy(model, W8A8, tmp_path / "out", **SMALL)
