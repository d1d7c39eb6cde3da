"""Messages for a model without a chat template are refused before anything is computed."""

import json
from pathlib import Path

import pytest

from quant_engine.model_files import ModelFiles
from quant_engine.policy import PRESETS, Calibration, Evaluation, Perplexity
from quant_engine.preflight.chat_template import chat_template_problems

MESSAGES = {"messages": [[{"role": "user", "content": "Hi"}]]}
CALIBRATION = Calibration.model_validate({"dataset": MESSAGES})
EVALUATION = Evaluation(perplexity=Perplexity.model_validate({"dataset": MESSAGES}))
PLACES = ["/calibration/dataset", "/evaluation/perplexity/dataset"]


def pointers(directory: Path, preset: str, calibration: Calibration, evaluation: Evaluation) -> list[str]:
    problems = list(chat_template_problems(ModelFiles(directory), PRESETS[preset].policy, calibration, evaluation))
    assert all(problem.code == "no_chat_template" and problem.hint for problem in problems)
    return [problem.pointer for problem in problems]


@pytest.mark.parametrize("config", [None, {}, {"chat_template": ""}])
def test_messages_without_a_template_are_refused_where_they_are(config: dict[str, str] | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert pointers(tmp_path, "w8a8", CALIBRATION, EVALUATION) == PLACES
    assert pointers(tmp_path, "evaluate", CALIBRATION, EVALUATION) == PLACES[1:]
    assert pointers(tmp_path, "w8a8", Calibration(), Evaluation()) == []
    assert pointers(tmp_path, "w8a8", Calibration(), Evaluation(perplexity=None)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'),
        ("chat_template.jinja", ""),
        ("tekken.json", ""),
    ],
)
def test_a_template_is_found_wherever_it_is(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert pointers(tmp_path, "w8a8", CALIBRATION, EVALUATION) == []
