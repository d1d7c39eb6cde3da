"""A tokenizer that begins a text with <bos>, and models in which <bos> alone makes a massive activation.

Calibration and perplexity see that position as deployment does: what the report says is what plain transformers
measures on windows that begin so.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant_engine.calibration.documents import Document
from quant_engine.checkpoint import load
from quant_engine.errors import InvalidModel, ModelNotFound, NotEnoughText, UnsupportedPolicy
from quant_engine.evaluation.report import special_tokens
from quant_engine.policy import Calibration, Evaluation, InlineTexts, Perplexity, Policy
from quant_engine.stages.context import windows as room
from quant_engine.stages.context.run import prepare_run
from quant_engine.stages.evaluate import read_perplexity
from quant_engine.stages.export import CHECKPOINT
from quant_engine.stages.report.summary import report_windows
from tests.integration.quant_engine.helpers import RecordingObserver, run_spec
from tests.integration.quant_engine.runs import TEXT, policy_of, run_policy, run_until
from tests.tiny_models import tiny_tokenizer, tokenizer_with, write_tiny_model

BOS = 0
SAMPLES, LENGTH, TOKENS = 8, 32, 256
MEASURED_TEXT = TEXT[100_000:104_000]
CALIBRATION = Calibration(dataset=InlineTexts(texts=(TEXT[:4000],)), samples=SAMPLES, sequence_length=LENGTH)
PERPLEXITY = Perplexity(dataset=InlineTexts(texts=(MEASURED_TEXT,)), tokens=TOKENS, sequence_length=LENGTH)
SPEC: dict[str, Any] = {"calibration": CALIBRATION, "evaluation": Evaluation(perplexity=PERPLEXITY)}
NOTHING = Evaluation(perplexity=None)
_TUNING: dict[str, Any] = {"best-w4a4": {"tuning": {"steps": 2}}}
W4A16 = policy_of(preset="w4a16", weights={"group_size": 32}, tuning={"steps": 2})
W8A8 = policy_of(preset="w8a8")
NVFP4 = policy_of(preset="nvfp4")


def write_model(directory: Path, architecture: str) -> Path:
    """A model in whose first feed-forward block <bos>, and no other token, drives one channel far out."""
    write_tiny_model(directory, architecture, beginning="<s>")
    model = AutoModelForCausalLM.from_pretrained(directory)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        u = torch.nn.functional.normalize(torch.randn(embedding.shape[1], generator=generator), dim=0)
        size = float(embedding.norm(dim=1).median())
        embedding -= (embedding @ u)[:, None] * u
        embedding[BOS] = 2 * size * u
        layer = model.model.layers[0]
        gemma = model.config.model_type.startswith("gemma")
        norm = layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm
        norm.weight.fill_(0.0 if gemma else 1.0)
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.gate_proj.weight[5] = 8 * u
        layer.mlp.up_proj.weight[5] = 8 * u
        layer.mlp.down_proj.weight[:, 5] *= 0.05
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda architecture: write_model(tmp_path_factory.mktemp(architecture), architecture))


@pytest.fixture(scope="module")
def finished(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The work directories of runs that came as far as ``verify``, each made once."""

    @cache
    def made(architecture: str, policy: Policy) -> Path:
        out = tmp_path_factory.mktemp("out")
        run_until("verify", models(architecture), policy, out, **SPEC)
        return out / "work"

    return made


@torch.no_grad()
def plain_perplexity(directory: Path) -> float:
    """Measured with transformers alone, on windows of the text that each begin with <bos>."""
    ids = tiny_tokenizer()(MEASURED_TEXT, add_special_tokens=False)["input_ids"]
    pieces = [ids[first : first + LENGTH - 1] for first in range(0, TOKENS // LENGTH * (LENGTH - 1), LENGTH - 1)]
    ids_BT = torch.tensor([[BOS, *piece] for piece in pieces])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    logits_BTV = model(ids_BT, use_cache=False).logits[:, :-1].float()
    return math.exp(float(torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())))


@pytest.mark.parametrize("policy", [W4A16, W8A8], ids=["w4a16", "w8a8"])
def test_the_report_says_what_deployment_measures(policy: Policy, models: Any, finished: Any) -> None:
    work = finished("gemma3", policy)
    measured = {name: found and found["perplexity"] for name, found in read_perplexity(work / "evaluate").items()}
    original, deployed = plain_perplexity(models("gemma3")), plain_perplexity(work / "export" / CHECKPOINT)
    assert measured["original"] == pytest.approx(original, rel=1e-5)
    assert measured["quantized"] / measured["original"] == pytest.approx(deployed / original, rel=0.03)
    # With integer inputs plain transformers has the grid of the second figure.
    plain = measured["compressed_tensors"] or measured["quantized"]
    assert plain == pytest.approx(deployed, rel=1e-5)


def test_a_position_that_only_bos_drives_is_quantized_as_well_as_the_others(models: Any, finished: Any) -> None:
    """The static input scale of NVFP4 is computed from windows that hold the massive activation at <bos>."""
    work = finished("llama", NVFP4)
    others = torch.randint(3, 512, (4, 31), generator=torch.Generator().manual_seed(5))
    ids_BT = torch.cat([torch.full((4, 1), BOS), others], dim=1)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(models("llama"), dtype="auto").eval()(ids_BT).logits.double()
        found = load(work / "export" / CHECKPOINT)(ids_BT).logits.double()
    first, rest = (_relative(found[:, part], expected[:, part]) for part in (slice(0, 1), slice(1, None)))
    assert first <= rest
    windows = load_file(work / "calibrate" / "windows.safetensors")["windows"]
    assert windows[:, 0].tolist() == [BOS] * SAMPLES
    assert not bool((windows[:, 1:] == BOS).any())


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_report_names_what_the_windows_begin_with(models: Any, finished: Any) -> None:
    work = finished("gemma3", W8A8)
    run = prepare_run(run_spec(models("gemma3"), W8A8, **SPEC), work_dir=work, observer=RecordingObserver())
    windows = report_windows(run, work / "calibrate", work / "evaluate")
    assert windows == {
        "calibration": {
            "special_tokens": ["<s>"],
            "pack": True,
            "sequence_length": LENGTH,
            "samples": SAMPLES,
            "tokens": SAMPLES * LENGTH,
        },
        "evaluation": {
            "special_tokens": ["<s>"],
            "pack": True,
            "sequence_length": LENGTH,
            "tokens": TOKENS,
            "predicted": TOKENS // LENGTH * (LENGTH - 1),
        },
    }
    assert special_tokens(windows) == {"calibration": ["<s>"], "evaluation": ["<s>"]}


def test_none_leaves_them_out(models: Any, tmp_path: Path) -> None:
    spec = {
        "calibration": CALIBRATION.model_copy(update={"special_tokens": "none"}),
        "evaluation": Evaluation(perplexity=PERPLEXITY.model_copy(update={"special_tokens": "none"})),
    }
    run_until("export", models("llama"), W8A8, tmp_path, **spec)
    windows = load_file(tmp_path / "work" / "calibrate" / "windows.safetensors")["windows"]
    assert not bool((windows == BOS).any())
    assert json.loads((tmp_path / "work" / "evaluate" / "windows.json").read_text())["special_tokens"] == []


def test_what_the_model_writes_itself_begins_with_them(models: Any, tmp_path: Path) -> None:
    spec = {
        "calibration": Calibration(dataset="self", samples=4, sequence_length=16),
        "evaluation": Evaluation(perplexity=Perplexity(dataset="self", tokens=40, sequence_length=16)),
    }
    result = run_policy(models("llama"), policy_of(preset="evaluate"), tmp_path / "evaluate", **spec)
    assert result.report["windows"]["calibration"] is None
    assert result.report["windows"]["evaluation"]["predicted"] == 2 * 15 + 7
    assert result.summary["special_tokens"] == {"calibration": None, "evaluation": ["<s>"]}
    run_until("search", models("llama"), policy_of(preset="quantile-smoothrot-w4a4"), tmp_path, **spec)
    windows = load_file(tmp_path / "work" / "calibrate" / "windows.safetensors")["windows"]
    assert windows[:, 0].tolist() == [BOS] * 4


@pytest.mark.parametrize("preset", ["w4a16", "best-w4a4", "spinquant-w4a4"])
def test_nothing_counts_padding(preset: str, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document a window: other ids in the padding give the same bits, in GPTQ, its correction and each training."""
    sizes = (9, 400, 50, 70, 12, 30, 30, 30)
    texts = [TEXT[1000 * index :][:size] for index, size in enumerate(sizes)]
    monkeypatch.setattr(room, "documents_for", lambda *_: [Document(text) for text in texts])
    policy = (
        W4A16
        if preset == "w4a16"
        else policy_of(preset=preset, training={"steps": 2, "batch_samples": 2}, **_TUNING.get(preset, {}))
    )
    spec = {"calibration": CALIBRATION.model_copy(update={"pack": False}), "evaluation": NOTHING}
    made = []
    for fill in (None, 77):
        out = tmp_path / str(fill)
        with monkeypatch.context() as patch:
            _fill_padding(patch, fill)
            run_until("export", models("llama"), policy, out, **spec)
        windows = load_file(out / "work" / "calibrate" / "windows.safetensors")
        assert 0 < int(windows["valid"].sum()) < windows["valid"].numel()
        assert fill is None or windows["windows"][~windows["valid"]].tolist() == [77] * int((~windows["valid"]).sum())
        made.append(_tensors(out / "work" / "quantize"))
    assert made[0].keys() == made[1].keys()
    for name, tensor in made[0].items():
        assert torch.equal(tensor, made[1][name]), name


def _fill_padding(patch: pytest.MonkeyPatch, token: int | None) -> None:
    cut = room.calibration_windows

    def filled(*arguments: Any, **options: Any) -> Any:
        windows = cut(*arguments, **options)
        if token is not None:
            windows.ids_ST[~windows.valid_ST] = token
        return windows

    patch.setattr(room, "calibration_windows", filled)


def _tensors(directory: Path) -> dict[str, Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    return {f"{path.name}:{name}": tensor for path in files for name, tensor in load_file(path).items()}


def _refused(model: Path, out: Path, error: type[Exception], match: str, **spec: Any) -> None:
    """Refused before anything is computed: no stage behind ``load`` begins."""
    observer = RecordingObserver()
    with pytest.raises(error, match=match):
        run_policy(model, W8A8, out, observer, **(SPEC | spec))
    assert {event[1] for event in observer.events} <= {"load"}


def test_what_does_not_fit_is_refused_before_anything_is_computed(models: Any, tmp_path: Path) -> None:
    model = models("llama")
    short = Evaluation(perplexity=Perplexity(dataset=InlineTexts(texts=("Short.",)), tokens=256))
    _refused(model, tmp_path, NotEnoughText, "Perplexity asks for 256 tokens", evaluation=short)
    long = Calibration(dataset=CALIBRATION.dataset, samples=4, sequence_length=513)
    _refused(model, tmp_path, UnsupportedPolicy, "513; the model has positions for 512", calibration=long)
    many = Evaluation(perplexity=Perplexity(tokens=2048, sequence_length=1024))
    _refused(model, tmp_path, UnsupportedPolicy, "1,024; the model has positions for 512", evaluation=many)
    with pytest.raises(UnsupportedPolicy, match="positions for 512"):
        run_policy(model, policy_of(preset="evaluate"), tmp_path, **(SPEC | {"evaluation": many}))


def test_a_token_beyond_the_embedding_is_refused_by_name(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    tokenizer = tokenizer_with("<s>")
    tokenizer.add_tokens([f"<extra{index}>" for index in range(8)])
    tokenizer.save_pretrained(model)
    text = InlineTexts(texts=("The word <extra3> and some plain text to fill the window with. " * 60,))
    match = "'<extra3>' the id 515; the model's embedding has 512 rows"
    _refused(model, tmp_path, InvalidModel, match, calibration=CALIBRATION.model_copy(update={"dataset": text}))
    measured = PERPLEXITY.model_copy(update={"dataset": text})
    _refused(model, tmp_path, InvalidModel, match, evaluation=Evaluation(perplexity=measured))


def test_without_a_tokenizer_only_text_of_its_own_can_be_used(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    for path in model.glob("*token*"):
        path.unlink()
    _refused(model, tmp_path, ModelNotFound, "no usable tokenizer", evaluation=NOTHING)
    own = Calibration(dataset="self", samples=4, sequence_length=16)
    policy = policy_of(preset="quantile-smoothrot-w4a4")
    left = run_until("search", model, policy, tmp_path, calibration=own, evaluation=NOTHING)
    assert left.finished(reused=False) == ["load", "calibrate"]
