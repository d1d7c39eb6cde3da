"""The model card: its front matter, its facts, and that no text of others becomes markup in it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from quant_engine.checkpoint import OnlineInput, QuantizedLinear
from quant_engine.checkpoint.card import model_card, write_card
from quant_engine.checkpoint.card_facts import CalibrationFacts, CardFacts, PerplexityFacts
from quant_engine.checkpoint.card_policy import policy_sentences
from quant_engine.checkpoint.card_sections import LONG
from quant_engine.checkpoint.done import Choices, what_was_done
from quant_engine.checkpoint.hashes import CheckpointManifest, changed_files, checkpoint_manifest
from quant_engine.checkpoint.license import License
from quant_engine.interface.layers import UNMEASURED, LayerRow
from quant_engine.policy import (
    PRESETS,
    ActivationQuantization,
    NumberFormat,
    Policy,
    WeightQuantization,
    policy_hash,
    resolve_policy,
)
from quant_engine.transforms.primitives import Hadamard, Primitive

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _row(block: int, linear: str = "mlp.down_proj", **fields: Any) -> dict[str, Any]:
    values = {"error": 3.0 + block, "error_normalized": 0.1, "baseline_error": 4.0 + block, "gain_percent": 25.0}
    measured = {"sqnr_db": 20.5, "bytes": 3328, "transform": "smooth_rotation", "alpha": 0.475, "scheme": "W4A4"}
    named = {"name": f"model.layers.{block}.{linear}", "block": block, "role": "feed_forward_inner", "parameters": 9}
    return UNMEASURED | named | values | measured | fields


def _facts(**fields: Any) -> CardFacts:
    defaults: dict[str, Any] = {
        "model_id": "owner/Model-1B",
        "revision": _COMMIT,
        "fingerprint": "f" * 64,
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "original_bytes": 1_000_000,
        "policy": resolve_policy(Policy(preset="trainable-smoothrot-w4a4")),
        "calibration": CalibrationFacts(
            dataset="wikitext2", samples=256, sequence_length=128, fitted=205, holdout=0.2, seed=7, sha256="c" * 64
        ),
        "perplexity": PerplexityFacts(
            dataset="c4",
            tokens=16384,
            sequence_length=512,
            original=34.5,
            quantized=41.4,
            compressed_tensors=None,
            predicted=16352,
            computed_in="bfloat16 on cpu",
        ),
        "rows": [_row(0), _row(1)],
        "versions": {"quantry": "0.1.0", "torch": "2.13.0", "transformers": "5.17.0", "compressed-tensors": "0.19.0"},
        "license": License(id="apache-2.0"),
    }
    facts = defaults | fields
    rows = [LayerRow.model_validate(row) for row in facts["rows"]]
    done = what_was_done(_linears(), ["lm_head"], rows, Choices())
    return CardFacts(**({"done": done} | facts | {"rows": rows}))


_IN_GROUPS = WeightQuantization(granularity="group", group_size=128)
_AS_IS = ActivationQuantization(format=NumberFormat.NONE)


def _linears(
    *online: Primitive,
    clip_ratio: float = 1.0,
    count: int = 2,
    weights: WeightQuantization = WeightQuantization(),  # noqa: B008 — frozen
    activations: ActivationQuantization = ActivationQuantization(),  # noqa: B008 — frozen
) -> list[QuantizedLinear]:
    return [
        QuantizedLinear(
            name=f"model.layers.{block}.mlp.down_proj",
            weights=weights,
            activations=activations,
            online=OnlineInput(primitives=online, clip_ratio=clip_ratio),
        )
        for block in range(count)
    ]


_ROTATED = _linears(Hadamard(order=16))


def _card(facts: CardFacts, linears: list[QuantizedLinear] = _ROTATED) -> ModelCard:
    """The card of a checkpoint without files, read back from its text."""
    return ModelCard(str(model_card(facts, linears, CheckpointManifest(()))))


def _write(directory: Path, facts: CardFacts) -> tuple[ModelCard, Any]:
    """The card, read back by the Hub's client, and the card's data."""
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "LICENSE").write_text("terms")
    write_card(directory, facts, _ROTATED)
    return ModelCard.load(directory / "README.md"), json.loads((directory / "quantry.json").read_text())


def _table_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its rule."""
    lines = text.split(f"## {heading}\n", 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = lines[start : lines.index("", start)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in (rows[0], *rows[2:])]


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    card, _ = _write(tmp_path / "out", _facts())
    assert card.data.to_dict() == {
        "base_model": "owner/Model-1B",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "library_name": "quantry",
        "pipeline_tag": "text-generation",
        "tags": ["quantry", "quantized", "compressed-tensors", "w4a4", "hadamard"],
        "datasets": ["Salesforce/wikitext"],
    }


def test_what_is_not_known_is_left_out_of_the_front_matter() -> None:
    calibration = replace(_facts().calibration, dataset="pydoc")
    facts = _facts(revision=None, license=None, calibration=calibration, model_id="local-model")
    card = _card(facts, _linears())
    assert sorted(card.data.to_dict()) == ["library_name", "pipeline_tag", "tags"]
    assert card.data.library_name == "transformers"
    assert ["commit", "none: a local model"] in _table_after(card.text, "Base model")


def test_another_license_has_its_name_and_its_link() -> None:
    card = _card(_facts(license=License(id="other", name="research", link="LICENSE")))
    data = card.data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "research", "LICENSE")
    assert "research (LICENSE), the base model's" in card.text


def test_the_facts_stand_in_their_tables(tmp_path: Path) -> None:
    facts = _facts()
    card, _ = _write(tmp_path / "out", facts)
    base = dict(_table_after(card.text, "Base model"))
    assert (base["model"], base["commit"]) == ("`owner/Model-1B`", f"`{_COMMIT}`")
    assert _table_after(card.text, "Perplexity")[1] == ["34.5", "41.4", "1.2"]
    assert "On `c4`, 16,384 tokens in windows of 512" in card.text
    assert _table_after(card.text, "Layers")[1] == [
        *("`model.layers.0.mlp.down_proj`", "W4A4", "smooth\\_rotation", "0.475", "3", "4", "25.00", "20.50", "3,328")
    ]
    assert "Mean E over 2 layers: 3.5, baseline 4.5, gain 22.22 %." in card.text
    provenance = dict(_table_after(card.text, "Provenance"))
    assert provenance["policy"] == f"`{policy_hash(facts.policy)}`"
    assert provenance["calibration: settings and tokens"] == f"`sha256:{'c' * 64}`"
    assert (provenance["seed"], provenance["torch"]) == ("7", "2.13.0")
    assert {"quantry", "transformers", "compressed-tensors"} <= provenance.keys()
    assert [row[0] for row in _table_after(card.text, "What engines do with it")[1:]] == [
        "transformers",
        "vLLM",
        "SGLang",
    ]
    assert "![" in card.text
    assert (tmp_path / "out" / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_policy_stands_as_sentences_and_as_itself() -> None:
    facts = _facts()
    card = _card(facts)
    assert "- Preset: `trainable-smoothrot-w4a4`.\n- Layers: `down_proj`; not `lm_head`." in card.text
    block = re.search(r"```json\n(.*?)\n```", card.text, re.DOTALL)
    assert block is not None
    assert json.loads(block[1]) == facts.policy.model_dump(mode="json")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_sentences(preset: str) -> None:
    sentences = policy_sentences(resolve_policy(Policy(preset=preset)))
    labels = [sentence.split(":", 1)[0] for sentence in sentences]
    assert labels[:5] == ["Preset", "Layers", "Weights", "Activations", "Transform"]
    assert all(sentence.endswith(".") and "None" not in sentence for sentence in sentences)


def test_every_file_but_the_card_is_listed_with_its_hash(tmp_path: Path) -> None:
    card, data = _write(tmp_path / "out", _facts())
    files = checkpoint_manifest(tmp_path / "out").files
    listed = {file.path: [f"`{file.path}`", f"{file.bytes:,}", f"`{file.sha256}`"] for file in files}
    after_provenance = card.text.split("| file | bytes | SHA-256 |")[1]
    assert all(f"| {' | '.join(listed[name])} |" in after_provenance for name in listed if name != "README.md")
    assert after_provenance.count("\n| `") == len(files) - 1
    assert [file["path"] for file in data["files"]] == ["LICENSE", "layers.png", "model.safetensors"]
    assert changed_files(tmp_path / "out") == []


def test_the_card_data_holds_the_facts(tmp_path: Path) -> None:
    rows = [_row(0, alpha=None), _row(1, error=float("nan"))]
    card, data = _write(tmp_path / "out", _facts(rows=rows))
    assert data["model"]["id"] == "owner/Model-1B"
    assert data["policy"] == _facts().policy.model_dump(mode="json")
    assert data["policy_hash"] == policy_hash(_facts().policy)
    assert data["calibration"]["seed"] == 7
    assert data["perplexity"]["quantized"] == 41.4
    assert data["layers"] == [rows[0], rows[1] | {"error": None}]
    assert [row[3:5] for row in _table_after(card.text, "Layers")[1:]] == [["—", "3"], ["0.475", "—"]]


def test_a_long_table_opens_on_demand_after_the_worst_layers() -> None:
    rows = [_row(block, error_normalized=float(block)) for block in range(LONG + 1)]
    card = _card(_facts(rows=rows))
    assert [row[0] for row in _table_after(card.text, "Layers")[1:3]] == [
        f"`model.layers.{block}.mlp.down_proj`" for block in (LONG, LONG - 1)
    ]
    folded = card.text.split(f"<summary>All {LONG + 1} layers</summary>\n\n")[1].split("\n\n</details>")[0]
    assert folded.count("`model.layers.") == LONG + 1


def test_text_of_others_stays_text() -> None:
    evil = 'x\n---\n# "mine" <script>alert(1)</script> | `code` [a](http://e.org) ![](http://e.org/p.png)'
    # A request with such targets is refused; the card escapes them all the same.
    targets = ("re:.*(up|down)_proj", "a`b\n```\n# fence")
    facts = _facts(
        model_id=evil,
        policy=resolve_policy(Policy(preset="rtn-w4a4")).model_copy(update={"targets": targets}),
        rows=[_row(0, transform="<b>|x", name="a|b.`c`\n# d")],
        versions={"quantry": "<i>|"},
        calibration=replace(_facts().calibration, dataset="<img>|`"),
    )
    card = _card(facts)
    assert card.data.base_model == evil
    prose = re.sub(r"```json\n.*?\n```", "", card.text, flags=re.DOTALL)
    assert "<script>" not in re.sub(r"(`+) ?.+?(?<!`)\1(?!`)", "", prose)
    assert re.findall(r"^#+ .*$", prose, re.MULTILINE)[0].startswith("# x --- # ")
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert len(_table_after(card.text, "Layers")[1]) == 9
    assert "`re:.*(up|down)_proj`, ``a`b ``` # fence``" not in prose  # a run of three needs a fence of four
    assert "````a`b ``` # fence````" in prose
    assert card.text.count("```json") == 1


def test_equal_facts_and_files_give_equal_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        _write(tmp_path / name, _facts())
        digests.append(checkpoint_manifest(tmp_path / name).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("linears", "library", "expected", "absent"),
    [
        (
            _linears(),
            "transformers",
            "plain compressed-tensors, computed otherwise by vLLM, refused by SGLang",
            "from quant_engine",
        ),
        (_linears(weights=_IN_GROUPS, activations=_AS_IS), "transformers", "loads anywhere", "from quant_engine"),
        (_linears(clip_ratio=0.9), "quantry", "Other runtimes leave the clipping out", "Not SGLang"),
        (_ROTATED, "quantry", "Plain `from_pretrained` is wrong here", "leave activation clipping out"),
        (
            _linears(Hadamard(order=16), clip_ratio=0.9),
            "quantry",
            "and they leave activation clipping out",
            "loads anywhere",
        ),
        (_linears(Hadamard(order=16), Hadamard(order=8)), "quantry", "our loader only", "wrong here"),
    ],
)
def test_the_way_to_load_follows_from_what_is_online(
    linears: list[QuantizedLinear], library: str, expected: str, absent: str
) -> None:
    card = _card(_facts(), linears)
    assert card.data.library_name == library
    assert expected in card.text
    assert absent not in card.text


def test_what_flatters_is_said() -> None:
    perplexity = _facts().perplexity
    assert perplexity is not None
    same = _card(_facts(perplexity=replace(perplexity, dataset="wikitext2")))
    other = _card(_facts())
    unmeasured = _card(_facts(perplexity=None))
    assert "flatters" in same.text
    assert "flatters" not in other.text
    assert "## Perplexity\n\nNot measured." in unmeasured.text
    assert "no perplexity, no task accuracy" in unmeasured.text


def test_what_was_done_stands_apart_from_what_was_asked() -> None:
    # Submit refuses the head as a target. The card takes what was done from the linears all the same.
    asked_for = {"targets": ("down_proj", "lm_head"), "ignore": ()}
    policy = resolve_policy(Policy(preset="rtn-w4a4")).model_copy(update=asked_for)
    changed = ("generation_config.json: removed temperature, because do_sample is false",)
    card = _card(_facts(policy=policy, changed_files=changed))
    done, asked = card.text.split("## What was asked")
    assert "- Quantized: 2 × `down_proj`.\n- Not quantized: 1 × `lm_head`." in done.split("## What was done")[1]
    assert "generation\\_config.json: removed temperature, because do\\_sample is false." in done
    assert "- Layers: `down_proj`, `lm_head`." in asked


def test_what_was_read_is_said_where_the_report_has_it() -> None:
    card = _card(
        _facts(
            source={"quantization": {"format": "fp8", "weights": "multiplied by their scales, in bfloat16"}},
            oracle={"compared": "whole model", "relative_difference": 1.5e-7, "transformers": "5.17.0"},
            windows={"calibration": {"special_tokens": ["<bos>"]}, "evaluation": {"special_tokens": []}},
        )
    )
    assert "stored quantized (fp8). Its weights were multiplied by their scales, in bfloat16." in card.text
    assert "compared with plain transformers 5.17.0 (whole model): relative difference 1.5e-07" in card.text
    assert "Every window of the calibration begins with `<bos>`." in card.text
    assert "Every window of the evaluation begins with no special token." in card.text
    assert "not compared with plain transformers" in _card(_facts(oracle={"compared": "none"})).text
    assert "plain transformers 5" not in _card(_facts()).text
    # A job that measures no perplexity has no evaluation windows, and yet a card.
    card = _card(_facts(windows={"calibration": {"special_tokens": []}, "evaluation": None}))
    assert "Every window of the calibration begins" in card.text
    assert "of the evaluation begins" not in card.text


def test_the_perplexity_names_who_measured_it() -> None:
    assert "(16,352 of them predicted), measured by Quantry 0.1.0 in bfloat16 on cpu." in _card(_facts()).text
