"""The mistakes of a newcomer, over HTTP: each answered at submit with the value class, the remedy and the nearest name.

The rows of ``NEEDS_MODEL`` are about the concrete model, of which only ``config.json``, the headers of the weights and
the files of the tokenizer tell.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from jobs.settings import Settings
from quant_engine.interface.architectures import architecture_of
from quant_engine.interface.pattern_check import check_patterns
from quant_engine.interface.targets import linear_names
from quant_engine.policy import Policy
from tests.integration.api.conftest import BODY
from tests.sound_model import CONFIG, add_tensor, write_sound_model

_REMOVED: Final = "remove this member"
_PYTHON: Final = re.compile(
    r"Input should|valid (dict|tuple|list|string|integer|number|boolean)|instance of|tuple|dictionary|\bNone\b|\bstr\b"
    r"|\bint\b|\bbool\b|\^|\\|Extra inputs"
)


@dataclass(frozen=True)
class Mistake:
    """One wrong request, and the answer to it.

    Attributes:
        fields: replace those of a good body.
        told: words that the answer at ``pointer`` has to have.
        sent: words of the request that the answer must not repeat.
    """

    fields: dict[str, Any]
    pointer: str
    code: str
    told: tuple[str, ...]
    sent: tuple[str, ...] = ()


def _policy(**fields: Any) -> dict[str, Any]:
    return {"policy": {"preset": "rtn-w4a4", **fields}}


def _model(name: str) -> dict[str, Any]:
    return {"model": {"source": "local", "id": name}}


MISTAKES: Final = {
    "typo in the preset": Mistake(
        {"policy": {"preset": "smoothrot-w4a5"}},
        "/policy/preset",
        "unknown_preset",
        ("Did you mean 'smoothrot-w4a4'?", "w8a8"),
        ("w4a5",),
    ),
    "a method for a preset": Mistake(
        {"policy": {"preset": "smoothrot"}}, "/policy/preset", "unknown_preset", ("Did you mean 'smoothrot-w4a4'?",)
    ),
    "typo in the dataset": Mistake(
        {"calibration": {"dataset": "pydocs"}},
        "/calibration/dataset",
        "dataset_not_found",
        ("Did you mean 'pydoc'?", "Known here", "tales"),
        ("pydocs",),
    ),
    "typo in the evaluation's dataset": Mistake(
        {"evaluation": {"perplexity": {"dataset": "pidoc"}}},
        "/evaluation/perplexity/dataset",
        "dataset_not_found",
        ("Did you mean 'pydoc'?",),
        ("pidoc",),
    ),
    "the model's own text for the evaluation": Mistake(
        {"evaluation": {"perplexity": {"dataset": "self"}}},
        "/evaluation/perplexity/dataset",
        "dataset_not_found",
        ("is for calibration alone", "Known here for evaluation: ", "pydoc"),
    ),
    "typo in the model": Mistake(
        {"model": {"source": "local", "id": "tinny"}},
        "/model/id",
        "model_not_found",
        ("Did you mean 'tiny'?",),
        ("tinny",),
    ),
    "model as a path": Mistake(
        {"model": {"source": "local", "id": "/data/models/tiny"}},
        "/model/id",
        "string_pattern_mismatch",
        ("looks like a path", "QUANTRY_MODELS_DIR", "/v1/capabilities"),
        ("/data/models",),
    ),
    "model as a relative path": Mistake(
        {"model": {"source": "local", "id": "./tiny"}},
        "/model/id",
        "string_pattern_mismatch",
        ("looks like a path", "QUANTRY_MODELS_DIR"),
    ),
    "model as a Windows path": Mistake(
        {"model": {"source": "local", "id": "C:\\models\\tiny"}},
        "/model/id",
        "string_pattern_mismatch",
        ("looks like a path", "QUANTRY_MODELS_DIR"),
    ),
    "model as a string": Mistake(
        {"model": "owner/llama"},
        "/model",
        "model_type",
        ("an object with `source`, `id`", '{"source": "hub", "id": "owner/name"}'),
        ("owner/llama",),
    ),
    "no model": Mistake({"model": _REMOVED}, "/model", "missing", ("required", "Add it")),
    "unknown source": Mistake(
        {"model": {"source": "locl", "id": "tiny"}},
        "/model/source",
        "literal_error",
        ("one of hub, local", "Did you mean 'local'?"),
        ("locl",),
    ),
    "typo in a target": Mistake(
        _policy(targets=["down_proj", "down_porj"]),
        "/policy/targets/1",
        "no_match",
        ("Did you mean 'down_proj'?", "q_proj"),
        ("porj",),
    ),
    "the head as a target": Mistake(
        _policy(targets=["lm_head"]), "/policy/targets/0", "never_quantized", ("the head", "Remove it")
    ),
    "a class as a target": Mistake(
        _policy(targets=["LlamaAttention"]),
        "/policy/targets/0",
        "class_name",
        ("class of modules", "Linear"),
        ("LlamaAttention",),
    ),
    "a typo in ignore": Mistake(
        _policy(ignore=["lm_haed"]), "/policy/ignore/0", "no_match", ("Did you mean 'lm_head'?",), ("haed",)
    ),
    "a module for an override": Mistake(
        _policy(overrides=[{"match": "mlp", "weights": {"format": "int8"}}]),
        "/policy/overrides/0/match",
        "not_a_linear",
        ("hold linears", "*.mlp.*"),
    ),
    "an expression without its mark": Mistake(
        _policy(targets=["(q|k)_proj"]), "/policy/targets/0", "bad_pattern", ("put 're:' in front",), ("q|k",)
    ),
    "a look-ahead": Mistake(
        _policy(targets=["re:(?!model).*_proj"]),
        "/policy/targets/0",
        "bad_pattern",
        ("look-ahead", "linear time", "at character 1", "globs"),
        ("model)",),
    ),
    "targets as a string": Mistake(
        _policy(targets="down_proj"), "/policy/targets", "tuple_type", ("a list", "this is text", "square brackets")
    ),
    "typo in a field": Mistake(
        _policy(wieghts={"format": "int8"}), "/policy/wieghts", "extra_forbidden", ("did you mean `weights`?",)
    ),
    "a field in the wrong object": Mistake(
        {"samples": 16}, "/samples", "extra_forbidden", ("Unknown field", "Known here: model, policy, calibration")
    ),
    "typo in a format": Mistake(
        _policy(weights={"format": "itn8"}),
        "/policy/weights/format",
        "enum",
        ("one of int2, int3", "Did you mean 'int8'?"),
        ("itn8",),
    ),
    "typo in a kind": Mistake(
        _policy(training={"kind": "blok"}),
        "/policy/training/kind",
        "union_tag_invalid",
        ("one of scales, block, rotation", "Did you mean 'block'?"),
    ),
    "typo in a transform": Mistake(
        _policy(transform={"kind": "smooth_rotate"}),
        "/policy/transform/kind",
        "enum",
        ("Did you mean 'smooth_rotation'?",),
        ("smooth_rotate,",),
    ),
    "typo in a statistic": Mistake(
        _policy(transform={"statistic": {"kind": "quantil"}}),
        "/policy/transform/statistic/kind",
        "literal_error",
        ("one of absmax, quantile, l2, lp", "Did you mean 'quantile'?"),
    ),
    "typo in the profile": Mistake(
        {"output": {"profile": "univresal"}},
        "/output/profile",
        "literal_error",
        ("Did you mean 'universal'?",),
        ("univresal",),
    ),
    "a number as text": Mistake(
        {"calibration": {"samples": "16"}},
        "/calibration/samples",
        "int_type",
        ("a whole number", "this is text", "without quotes"),
    ),
    "a negative number": Mistake(
        {"calibration": {"samples": -1}}, "/calibration/samples", "greater_than_equal", ("4 or more",)
    ),
    "null for what is needed": Mistake(
        {"model": {"source": "local", "id": None}}, "/model/id", "string_type", ("this is null", "Give a value")
    ),
    "a list for an object": Mistake(
        {"calibration": []}, "/calibration", "model_type", ("an object with `dataset`, `samples`", "this is a list")
    ),
    "text for an object": Mistake(
        _policy(weights="int4"), "/policy/weights", "model_type", ("an object with `format`", "this is text")
    ),
    "a group size without groups": Mistake(
        _policy(weights={"format": "int4", "group_size": 100}),
        "/policy/weights/group_size",
        "group_size_mismatch",
        ("granularity 'group'",),
    ),
    "a repository without its owner": Mistake(
        {"output": {"hub": {"repo": "my-model"}}},
        "/output/hub/repo",
        "string_pattern_mismatch",
        ("owner/name", "letters, digits"),
        ("my-model",),
    ),
}

NEEDS_MODEL: Final = {
    "a fused linear that this model has not": Mistake(
        _policy(targets=["qkv_proj"]),
        "/policy/targets/0",
        "no_match",
        ("Name its parts instead: q_proj, k_proj, v_proj",),
    ),
    "a typo in a pattern": Mistake(
        _policy(ignore=["re:model.layer.0.*"]),
        "/policy/ignore/0",
        "no_match",
        ("no module", "Did you mean 'layers'?"),
        ("layer.0",),
    ),
    "a typo in a glob": Mistake(
        _policy(targets=["*down_porj"]), "/policy/targets/0", "no_match", ("Did you mean 'down_proj'?",), ("porj",)
    ),
    "a block that this model has not": Mistake(
        _policy(targets=["model.layers.9.mlp.down_proj"]),
        "/policy/targets/0",
        "no_match",
        ("model.layers.0",),
        ("rs.9",),
    ),
    "a pattern for the head": Mistake(
        _policy(targets=["down_proj", "re:.*lm_head"]), "/policy/targets/1", "never_quantized", ("Remove it",)
    ),
    "an override that changes nothing": Mistake(
        _policy(targets=["down_proj"], overrides=[{"match": "o_proj", "weights": {"format": "int8"}}]),
        "/policy/overrides/0/match",
        "not_targeted",
        ("Add them to targets",),
    ),
    "an override that matches nothing": Mistake(
        _policy(overrides=[{"match": "*.o_porj", "weights": {"format": "int8"}}]),
        "/policy/overrides/0/match",
        "no_match",
        ("Did you mean 'o_proj'?",),
        ("porj",),
    ),
    "everything ignored": Mistake(
        _policy(targets=["down_proj"], ignore=["*.mlp.*"]), "/policy/targets", "nothing_left", ("Remove an entry",)
    ),
    "a group size that does not divide": Mistake(
        {"policy": {"preset": "w4a16", "weights": {"group_size": 100}}},
        "/policy/weights/group_size",
        "unsupported_policy",
        ("group_size 100", "down_proj (512, 2 layers)", "Use 256, 128, 64, 32, 16 or 8, which fit every site"),
    ),
    "calibration windows beyond the positions": Mistake(
        {**_model("short"), "calibration": {"sequence_length": 256}, "evaluation": {"perplexity": None}},
        "/calibration/sequence_length",
        "unsupported_policy",
        ("positions for 64 tokens", "Set calibration.sequence_length to at most 64"),
    ),
    "evaluation windows beyond the positions": Mistake(
        {
            **_model("short"),
            "calibration": {"sequence_length": 32},
            "evaluation": {"perplexity": {"sequence_length": 256}},
        },
        "/evaluation/perplexity/sequence_length",
        "unsupported_policy",
        ("positions for 64 tokens", "Set evaluation.perplexity.sequence_length to at most 64"),
    ),
    "an adapter": Mistake(
        _model("adapter"), "/model/id", "adapter_not_merged", ("(LORA) of owner/base", "Merge it first")
    ),
    "a model without a tokenizer": Mistake(
        _model("mute"), "/model/id", "model_not_found", ("no tokenizer", "save_pretrained")
    ),
    "messages without a chat template": Mistake(
        {"calibration": {"dataset": {"messages": [[{"role": "user", "content": "Hello."}]]}}},
        "/calibration/dataset",
        "no_chat_template",
        ("no chat template", "instruction-tuned"),
        ("Hello",),
    ),
    "a model that is quantized already": Mistake(
        _model("gptq"), "/model/id", "unsupported_quantization", ("GPTQ or AWQ", "dense original")
    ),
    "a model without layers": Mistake(
        _model("empty"), "/model/id", "invalid_model", ("num_hidden_layers", "from 1 to", "Check config.json")
    ),
    "a model with a tensor more": Mistake(
        _model("more"), "/model/id", "invalid_model", ("model.layers.0.mlp.extra.weight", "save_pretrained")
    ),
    "a model of a class that is not supported": Mistake(
        _model("bert"), "/model/id", "unsupported_architecture", ("BertForMaskedLM", "LlamaForCausalLM")
    ),
}
TOO_LITTLE: Final[dict[str, Mistake]] = {
    "too few tokens to calibrate on": Mistake(
        {"calibration": {"dataset": {"texts": ["Only a few words."]}}},
        "/calibration/dataset",
        "not_enough_text",
        ("text",),
        ("Only a few",),
    ),
    "too few tokens to measure on": Mistake(
        {"evaluation": {"perplexity": {"dataset": {"texts": ["Only a few words."]}}}},
        "/evaluation/perplexity/dataset",
        "not_enough_text",
        ("evaluation.perplexity",),
        ("Only a few",),
    ),
}


@pytest.fixture
def models(settings: Settings) -> None:
    """Models beside ``tiny``, each with a fault of its own."""
    directory = settings.data_dir / "models"
    write_sound_model(directory / "short", max_position_embeddings=64)
    (write_sound_model(directory / "mute") / "tokenizer.json").unlink()
    add_tensor(write_sound_model(directory / "gptq"), "model.layers.0.mlp.down_proj.qweight", dtype="I32")
    add_tensor(write_sound_model(directory / "more"), "model.layers.0.mlp.extra.weight")
    for name, fields in (
        ("empty", {"num_hidden_layers": 0}),
        ("bert", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}),
    ):
        config = write_sound_model(directory / name) / "config.json"
        config.write_text(json.dumps(CONFIG | fields))
    (directory / "adapter").mkdir()
    described = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "target_modules": ["q_proj"]}
    (directory / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    (directory / "adapter" / "adapter_model.safetensors").touch()


def _says(detail: str, mistake: Mistake) -> None:
    for words in mistake.told:
        assert words in detail
    assert not [words for words in mistake.sent if words in detail]
    assert not _PYTHON.search(detail)


def test_there_are_as_many_mistakes_as_a_newcomer_makes() -> None:
    assert len(MISTAKES) >= 31


def test_every_mistake_is_answered_at_submit(client: httpx.Client, models: None) -> None:  # noqa: ARG001 — on disk
    # One server for all rows: to start one takes longer than to ask it.
    for name, mistake in (MISTAKES | NEEDS_MODEL).items():
        _is_answered(client, name, mistake)
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("name", TOO_LITTLE)
def test_too_little_text_is_answered_at_submit(client: httpx.Client, name: str) -> None:
    _is_answered(client, name, TOO_LITTLE[name])


def _is_answered(client: httpx.Client, name: str, mistake: Mistake) -> None:
    body = {key: value for key, value in {**BODY, **mistake.fields}.items() if value != _REMOVED}
    response = client.post("/v1/jobs", json=body)
    assert response.status_code == 422, (name, response.text)
    problem = response.json()
    [error] = problem["errors"]
    assert (error["pointer"], error["code"]) == (mistake.pointer, mistake.code), name
    # The remedy may be in the problem's own detail, where one error is all that there is.
    _says(f"{error['detail']} {problem['detail']}", mistake)


def test_what_recipes_of_llm_compressor_write_is_understood(client: httpx.Client) -> None:
    recipe = {"targets": ["Linear"], "ignore": ["re:.*lm_head", "re:.*embed_tokens.*", "re:.*mlp.gate$"]}
    response = client.post("/v1/jobs", json={**BODY, "policy": {"preset": "w8a8", **recipe}})
    assert response.status_code == 202, response.text
    architecture = architecture_of({"model_type": "llama"})
    policy = Policy.model_validate(response.json()["policy"])
    assert check_patterns(policy, linear_names(architecture, 2), architecture) == []


def test_a_pattern_that_backtracks_elsewhere_takes_no_time(client: httpx.Client) -> None:
    evil = "re:(([a-z0-9_.])+)+!"
    for fields in (
        {"overrides": [{"match": evil, "weights": {"format": "none"}}]},
        {"targets": [evil, "down_proj"]},
        {"ignore": [evil]},
        {"targets": ["re:(?u)(?a)x"]},
    ):
        response = client.post("/v1/jobs", json={**BODY, **_policy(**fields)})
        assert response.status_code in (202, 422)
        assert response.elapsed.total_seconds() < 5
    assert response.json()["code"] == "bad_pattern"
