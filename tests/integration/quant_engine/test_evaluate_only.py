"""A model measured as it is: checkpoints of other writers, our own, dense ones; and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.checkpoint import ActivationGrid, load
from quant_engine.errors import EngineError, InvalidModel, UnsupportedPolicy, UnsupportedQuantization
from quant_engine.models import CheckpointSource, QuantizedSource, StreamedModel
from quant_engine.stages.context.source import open_source
from quant_engine.stages.context.windows import evaluation_windows_of
from quant_engine.stages.evaluate_only.stages import prepare_evaluate_only
from tests.integration.quant_engine import peers
from tests.integration.quant_engine.exports import every_linear, export, logits_of, online_plans
from tests.integration.quant_engine.helpers import (
    RecordingObserver,
    fixed_ids,
    open_run,
    random_plans,
    run_spec,
    streamed_logits,
)
from tests.integration.quant_engine.runs import Killer, policy_of, run_policy, run_until, small
from tests.tiny_models import write_tiny_model

SMALL = small(perplexity=True)
EVALUATE = policy_of(preset="evaluate")
_INT8_INPUT = {"num_bits": 8, "type": "int"} | peers.DYNAMIC
_FP8_INPUT = {"num_bits": 8, "type": "float"} | peers.DYNAMIC
_STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True, "dynamic": False}
_NVFP4_INPUT = peers.NVFP4 | {"dynamic": "local"}
_DOWN = ["re:.*down_proj$"]
_ATTENTION = ["re:.*self_attn.*_proj$"]
_SCHEMES = {
    "pack-quantized": [peers.scheme(peers.W4A16)],
    "pack-quantized asymmetric": [peers.scheme(peers.W4A16 | {"symmetric": False})],
    "int-quantized": [peers.scheme(peers.INT8, _INT8_INPUT)],
    "int-quantized static": [peers.scheme(peers.INT8, _STATIC)],
    "float-quantized": [peers.scheme(peers.FP8, _FP8_INPUT)],
    "naive-quantized": [peers.scheme(peers.FP8)],
    "mixed": [
        peers.scheme(peers.INT8, _INT8_INPUT, targets=_DOWN),
        peers.scheme(peers.W4A16, targets=_ATTENTION),
    ],
}
_FOUR_BIT_FLOAT = {
    "nvfp4-pack-quantized": [peers.scheme(peers.NVFP4, _NVFP4_INPUT)],
    "mxfp4-pack-quantized": [peers.scheme(peers.MXFP4)],
}


def streamed(directory: Path, grid: ActivationGrid = ActivationGrid.COMPRESSED_TENSORS) -> torch.Tensor:
    """The logits on the grid of ``from_pretrained``, unless another one is asked for."""
    source = open_source(CheckpointSource(directory), grid=grid)
    return streamed_logits(StreamedModel(source, dtype=source.dtype), fixed_ids())


def measure(directory: Path, out: Path, observer: RecordingObserver | None = None, **spec: Any) -> Any:
    return run_policy(directory, EVALUATE, out, observer, **(SMALL | spec))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def dense_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("dense"), "qwen3", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", _SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_peers_checkpoint_streams_to_the_bits_of_from_pretrained(
    name: str, dtype: str, dense: Path, dense_bf16: Path, tmp_path: Path
) -> None:
    source = dense if dtype == "float32" else dense_bf16
    peer = peers.write_peer(source, tmp_path / "peer", _SCHEMES[name])
    expected = peers.reference_logits(peer, fixed_ids())
    assert expected.dtype == getattr(torch, dtype)
    assert torch.equal(streamed(peer), expected)
    assert not torch.equal(expected, streamed(source))


@pytest.mark.parametrize("name", _FOUR_BIT_FLOAT)
def test_four_bit_floats_stream_to_the_same_bits(name: str, dense_bf16: Path, tmp_path: Path) -> None:
    """In bfloat16: what compressed-tensors decompresses them to, whatever the model computes in."""
    peer = peers.write_peer(dense_bf16, tmp_path / "peer", _FOUR_BIT_FLOAT[name])
    assert torch.equal(streamed(peer), peers.reference_logits(peer, fixed_ids()))


def test_a_quantized_head_is_quantized_here_too(dense_bf16: Path, tmp_path: Path) -> None:
    """Its inputs as well: only the head is."""
    schemes = [peers.scheme(peers.INT8, _INT8_INPUT, targets=["lm_head"])]
    peer = peers.write_peer(dense_bf16, tmp_path / "peer", schemes, ignore=())
    assert torch.equal(streamed(peer), peers.reference_logits(peer, fixed_ids()))
    rows = measure(peer, tmp_path / "out").layers
    assert (rows[-1]["name"], rows[-1]["scheme"], rows[-1]["block"]) == ("lm_head", "W8A8", 2)
    assert {row["scheme"] for row in rows[:-1]} == {"W16A16"}


@pytest.mark.parametrize(("kind", "targets"), [("hadamard", ".*o_proj$"), ("random-hadamard", ".*down_proj$")])
def test_a_peers_online_hadamard_runs_as_its_own_would(kind: str, targets: str, dense: Path, tmp_path: Path) -> None:
    """``from_pretrained`` drops it, so the reference is the peer's own model before it was compressed."""
    arguments = [
        {"targets": [f"re:{targets}"], "location": "input"},
        {"targets": [f"re:{targets}"], "location": "weight_input", "inverse": True},
        {"targets": ["re:.*v_proj$"], "location": "weight_output"},
        {"targets": ["re:.*v_proj$"], "location": "output", "inverse": True},
    ]
    kept: list[torch.Tensor] = []

    def change(model: Any) -> None:
        with torch.no_grad():
            kept.append(model(fixed_ids(), use_cache=False).logits)

    schemes = [peers.scheme(peers.INT8 | {"num_bits": 4}, _INT8_INPUT | {"num_bits": 4})]
    transforms = {"config_groups": {"R4": {"type": kind, "head_dim": 32, "apply": arguments}}}
    peer = peers.write_peer(dense, tmp_path / "peer", schemes, transforms=transforms, change=change)
    assert (streamed(peer) - kept[0]).abs().max() < 1e-4 * kept[0].abs().max()
    peers.edit_config(peer, transform_config={})
    base = CheckpointSource(peer)
    source = QuantizedSource(base, base.quantization.section, grid=ActivationGrid.COMPRESSED_TENSORS)
    without = streamed_logits(StreamedModel(source, dtype=source.dtype), fixed_ids())
    assert (without - kept[0]).abs().max() > 1e-2 * kept[0].abs().max()


@pytest.mark.parametrize("kind", ["kronecker", "composition", "hadamard"])
def test_our_own_rotated_checkpoint_streams_to_the_bits_of_our_loader(kind: str, tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(), tmp_path)
    plans = random_plans(run) if kind == "hadamard" else online_plans(run, kind, clip_ratio=0.8)
    _, checkpoint = export(run, plans)
    for grid in ActivationGrid:
        assert torch.equal(streamed(checkpoint, grid), logits_of(load(checkpoint, grid=grid)))


def test_a_run_measures_a_peers_checkpoint_and_writes_no_other(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", _SCHEMES["mixed"])
    observer = RecordingObserver()
    result = measure(peer, tmp_path / "out", observer)
    assert [event[1] for event in observer.events if event[0] == "finished"] == ["load", "evaluate"]
    assert result.checkpoint_dir is None
    assert sorted(path.name for path in (tmp_path / "out" / "output").iterdir()) == [
        "layers.json",
        "report.json",
        "summary.json",
    ]
    perplexity = result.summary["perplexity"]
    assert perplexity["original"] is None
    assert ("metric", "perplexity.quantized", perplexity["quantized"]) in observer.events
    assert result.summary["bytes"] == {"original": None, "quantized": (peer / "model.safetensors").stat().st_size}
    assert result.report["model"]["quantization_config"]["format"] == "mixed-precision"
    assert result.report["layers"] == result.layers == [event[1] for event in observer.events if event[0] == "layer"]
    rows = {row["name"]: row for row in result.layers}
    assert len(rows) == 2 * 7
    down, query, gate = (
        rows[f"model.layers.1.{each}"] for each in ("mlp.down_proj", "self_attn.q_proj", "mlp.gate_proj")
    )
    assert (down["scheme"], query["scheme"], gate["scheme"]) == ("W8A8", "W4A16-g16", "W16A16")
    assert (down["role"], down["block"], down["transform"]) == ("feed_forward_inner", 1, "none")
    assert down["bytes"] == down["parameters"] + 4 * 64  # codes, and a scale for each of 64 rows
    assert gate["bytes"] == 4 * gate["parameters"]
    assert down["error"] is down["baseline_error"] is down["input_absmax"] is None


def test_the_measured_perplexity_is_that_of_from_pretrained(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", _SCHEMES["int-quantized"])
    both = measure(peer, tmp_path / "out").report["perplexity"]
    # Engines round the integer inputs on another grid: that is the first figure.
    found = both["compressed_tensors"]
    assert found["perplexity"] != both["quantized"]["perplexity"] == pytest.approx(found["perplexity"], rel=0.1)
    run = prepare_evaluate_only(run_spec(peer, EVALUATE, **SMALL), work_dir=tmp_path, observer=RecordingObserver())
    (windows,) = evaluation_windows_of(run, SMALL["evaluation"].perplexity)
    ids_BT = windows.ids_ST
    chances_BTV = peers.reference_logits(peer, ids_BT).double().log_softmax(-1)
    likelihood_BT = chances_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None])[..., 0]
    assert found["predicted"] == likelihood_BT.numel() == 4 * 31
    assert found["perplexity"] == pytest.approx(math.exp(-float(likelihood_BT.mean())), rel=1e-5)


def test_a_dense_model_is_its_own_original(dense: Path, tmp_path: Path) -> None:
    result = measure(dense, tmp_path / "out")
    perplexity = result.summary["perplexity"]
    assert perplexity["original"] == perplexity["quantized"] > 1.0
    size = (dense / "model.safetensors").stat().st_size
    assert result.summary["bytes"] == {"original": size, "quantized": size}
    assert {row["scheme"] for row in result.layers} == {"W16A16"}
    other = run_until("export", dense, policy_of(preset="rtn-w4a4"), tmp_path / "quantized", **SMALL)
    assert ("metric", "perplexity.original", perplexity["original"]) in other.events


def test_our_own_export_measures_as_it_did_when_it_was_made(dense: Path, tmp_path: Path) -> None:
    made = run_until("verify", dense, policy_of(preset="smoothrot-w4a4"), tmp_path / "made", **SMALL)
    result = measure(tmp_path / "made" / "work" / "export" / "checkpoint", tmp_path / "out")
    assert result.summary["perplexity"]["original"] is None
    assert ("metric", "perplexity.quantized", result.summary["perplexity"]["quantized"]) in made.events
    rows = {row["name"]: row for row in result.layers}
    assert len(made.rows) == 2
    for row in made.rows:
        same = ("scheme", "parameters", "bytes", "block", "role")
        assert {key: rows[row["name"]][key] for key in same} == {key: row[key] for key in same}
        assert rows[row["name"]]["transform"] == "rotation"


def test_a_measurement_resumes_and_tells_its_rows_again(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", _SCHEMES["pack-quantized"])
    run_until("evaluate", peer, EVALUATE, tmp_path / "out", **SMALL)
    observer = Killer("nothing", 0)
    measure(peer, tmp_path / "out", observer)
    assert (observer.finished(reused=True), observer.finished(reused=False)) == (["load"], ["evaluate"])
    assert len(observer.rows) == 14


def test_a_measurement_can_do_without_perplexity_and_on_the_models_own_text(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", _SCHEMES["int-quantized static"])
    assert measure(peer, tmp_path / "none", **small(perplexity=False)).summary["perplexity"] is None
    evaluation = SMALL["evaluation"]
    own = evaluation.model_copy(update={"perplexity": evaluation.perplexity.model_copy(update={"dataset": "self"})})
    assert measure(peer, tmp_path / "own", evaluation=own).summary["perplexity"]["quantized"] > 1.0


def _rotation(kind: str = "hadamard", targets: str = "re:.*down_proj$", location: str = "input", **fields: Any) -> Any:
    group = {"type": kind, "apply": [{"targets": [targets], "location": location}]} | fields
    return {"transform_config": {"config_groups": {"R": group}}}


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"quant_method": "gptq"}, UnsupportedQuantization, "already quantized: GPTQ"),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, UnsupportedQuantization, "kv_cache_scheme"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedQuantization, "sparsity_config"),
        ({"format": "marlin-24"}, UnsupportedQuantization, "format 'marlin-24'"),
        ({"quantization_status": "frozen"}, UnsupportedQuantization, "quantization_status 'frozen'"),
        ({"config_groups": {"g": {"weights": {"num_bits": 4}}}}, InvalidModel, "malformed"),
        ({"config_groups": []}, InvalidModel, "malformed"),
        ({"ignore": []}, UnsupportedPolicy, "quantizes lm_head but ties"),
        ({"transform_config": {"config_groups": 1}}, InvalidModel, "transform_config"),
        (_rotation("random-matrix"), UnsupportedPolicy, "'random-matrix'"),
        (_rotation(randomize=True), UnsupportedPolicy, "at random"),
        (_rotation(), InvalidModel, "order 96, which is no power of two"),
        (_rotation(head_dim=64), InvalidModel, "does not fit .*down_proj"),
        (_rotation("random-hadamard"), InvalidModel, "no file"),
        (_rotation(targets="re:.*self_attn$", location="q_attn"), UnsupportedPolicy, "'R' is applied at 'q_attn'"),
        (_rotation(targets="re:.*mlp$", head_dim=32), UnsupportedPolicy, "applied to .*mlp, a LlamaMLP"),
    ],
)
def test_what_can_not_be_honored_is_named(
    fields: dict[str, Any], error: type[EngineError], words: str, dense: Path, tmp_path: Path
) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", _SCHEMES["pack-quantized"])
    peers.edit_config(peer, **fields)
    with pytest.raises(error, match=words):
        streamed(peer)


def test_tensors_that_do_not_fit_the_scheme_are_refused(dense: Path, tmp_path: Path) -> None:
    peer = peers.write_peer(dense, tmp_path / "peer", _SCHEMES["pack-quantized"])
    name = "model.layers.1.mlp.up_proj"
    stored = load_file(peer / "model.safetensors")

    def refused(words: str, error: type[EngineError], **changes: torch.Tensor | None) -> None:
        changed = stored | {f"{name}.{part}": tensor for part, tensor in changes.items() if tensor is not None}
        kept = {
            key: value for key, value in changed.items() if changes.get(key.removeprefix(f"{name}."), 0) is not None
        }
        save_file(kept, peer / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(error, match=words):
            streamed(peer)

    refused("holds no tensor .*up_proj.weight_scale", InvalidModel, weight_scale=None)
    refused("can not be decompressed|model needs", InvalidModel, weight_shape=torch.tensor([96, 32]))
    refused("can not be decompressed|model needs", InvalidModel, weight_scale=torch.ones(96, 3))
    refused("stores .*weight_g_idx", UnsupportedPolicy, weight_g_idx=torch.zeros(64, dtype=torch.int32))


def test_a_quantry_section_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(targets=["down_proj"]), tmp_path)
    _, checkpoint = export(run, random_plans(run))
    content = json.loads((checkpoint / "config.json").read_text())
    online = content["quantry"]["online"]
    online["model.layers.0.mlp.up_proj"] = next(iter(online.values()))
    (checkpoint / "config.json").write_text(json.dumps(content))
    with pytest.raises(InvalidModel, match=r"up_proj.*no quantized linear"):
        streamed(checkpoint)
