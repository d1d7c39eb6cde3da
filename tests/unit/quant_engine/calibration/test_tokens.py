"""How a tokenizer begins a text, found for templates of every form, and what a broken tokenizer is told as."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quant_engine.calibration import (
    NO_BEGINNING,
    Beginning,
    TokenizedDocument,
    check_ids,
    load_tokenizer,
    special_beginning,
    tokenized,
)
from quant_engine.calibration.documents import Document
from quant_engine.calibration.tokens import native_faults
from quant_engine.errors import InvalidModel, ModelNotFound
from quant_engine.windows import Windows
from tests.tiny_models import tiny_tokenizer, tokenizer_with, write_tiny_model

BOS = Beginning((0,), ("<s>",))


def _lists(documents: list[TokenizedDocument]) -> list[tuple[list[int], int]]:
    return [(each.ids.tolist(), each.lead) for each in documents]


def _ids(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [
        ("", "", NO_BEGINNING),
        ("<s>", "", BOS),
        ("<s>", "</s>", BOS),
        ("", "</s>", NO_BEGINNING),
        ("</s> <s>", "</s>", Beginning((1, 0), ("</s>", "<s>"))),
    ],
)
def test_the_beginning_is_what_stands_in_front_of_a_text(before: str, behind: str, expected: Beginning) -> None:
    tokenizer = tokenizer_with(before, behind) if before or behind else tiny_tokenizer()
    assert special_beginning(tokenizer) == expected


def test_a_document_begins_with_it_unless_a_chat_template_wrote_it() -> None:
    documents = [Document("one"), Document("<s>two", rendered=True), Document("three", rendered=True), Document("")]
    found = tokenized(tokenizer_with("<s>"), documents, BOS)
    assert _lists(found) == [([0, *_ids("one")], 1), ([0, *_ids("two")], 1), (_ids("three"), 0)]


def test_without_a_beginning_texts_are_joined_as_one() -> None:
    documents = [Document("one"), Document("two"), Document("<s>three", rendered=True), Document("four")]
    found = tokenized(tiny_tokenizer(), documents, NO_BEGINNING)
    assert _lists(found) == [(_ids("one\n\ntwo"), 0), ([0, *_ids("three")], 0), (_ids("four"), 0)]


def test_documents_that_are_windows_of_their_own_are_not_joined() -> None:
    documents = [Document("one"), Document("two")]
    found = tokenized(tiny_tokenizer(), documents, NO_BEGINNING, joined=False)
    assert _lists(found) == [(_ids("one"), 0), (_ids("two"), 0)]


@pytest.mark.parametrize("beginning", [NO_BEGINNING, BOS])
def test_a_data_set_without_text_has_no_documents(beginning: Beginning) -> None:
    assert tokenized(tokenizer_with("<s>"), [], beginning) == []
    assert tokenized(tokenizer_with("<s>"), [Document("")], beginning) == []


def test_the_tokenizer_comes_from_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_model(tmp_path / "model"))
    (document,) = tokenized(tokenizer, [Document("a class of its own")], NO_BEGINNING)
    assert tokenizer.decode(document.ids) == "a class of its own"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="no usable tokenizer"):
        load_tokenizer(tmp_path / "empty")


def test_a_token_beyond_the_embedding_is_named() -> None:
    windows = Windows.plain(torch.tensor([[3, 511], [4, 5]]))
    check_ids(tiny_tokenizer(), [windows], 512)
    name = tiny_tokenizer().convert_ids_to_tokens(511)
    with pytest.raises(InvalidModel, match=r"the id 511; the model's embedding has 500 rows") as caught:
        check_ids(tiny_tokenizer(), [windows], 500)
    assert repr(name) in caught.value.detail
    assert caught.value.category == "user"


_A, _UNKNOWN = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<none>", "type_id": 0}}
_DAMAGES: dict[str, dict[str, Any]] = {
    "a template names a token that it does not define": {
        "post_processor": {"type": "TemplateProcessing", "single": [_UNKNOWN, _A], "pair": [], "special_tokens": {}}
    },
    "chunks of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a model that is unheard of": {"model": {"type": "Unheard"}},
    "an unknown token that is not there": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}},
}


def _begun_and_tokenized(directory: Path) -> list[TokenizedDocument]:
    tokenizer = load_tokenizer(directory)
    return tokenized(tokenizer, [Document("hello world")], special_beginning(tokenizer))


@pytest.mark.parametrize("damage", _DAMAGES)
def test_what_the_native_code_fails_on_is_the_models_fault(damage: str, tmp_path: Path) -> None:
    """The first three panic, two of them not before a text is tokenized; a panic is no ``Exception``."""
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | _DAMAGES[damage]))
    with pytest.raises(InvalidModel, match="tokenizer") as caught:
        _begun_and_tokenized(tmp_path)
    assert caught.value.category == "user"


@pytest.mark.parametrize("content", ['{"a":' * 5_000 + "1" + "}" * 5_000, "[", "{}", ""])
def test_a_tokenizer_that_is_no_json_is_the_models_fault(content: str, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises((InvalidModel, ModelNotFound)) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.category == "user"


def test_an_interrupt_is_no_fault_of_the_model() -> None:
    with pytest.raises(KeyboardInterrupt), native_faults():
        raise KeyboardInterrupt
