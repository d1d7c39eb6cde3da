"""Data sets by name, inline and of the Hub, as documents."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from jinja2 import TemplateError

from quant_engine.calibration import ChatRenderer, Document, Purpose, dataset_documents, dataset_names
from quant_engine.calibration.data_files import MAX_ROW_BYTES
from quant_engine.errors import DatasetNotFound, EngineError, InvalidDataset, NoChatTemplate
from quant_engine.policy import Dataset, HubDataset, InlineMessages, InlineTexts
from quant_engine.stages.context.text import documents_digest
from tests.tiny_models import write_tiny_model

MUCH = 10_000_000
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


class Tokenizer:
    """The one method of a tokenizer that is used here, with a template of Python."""

    chat_template = "of Python"

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, tokenize: bool) -> str:
        assert not tokenize
        if messages[0]["role"] == "assistant":
            raise TemplateError("Conversations begin with the user")
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


CHAT = ChatRenderer(Tokenizer)


def read(
    dataset: Dataset,
    directory: Path | None = None,
    purpose: Purpose = Purpose.CALIBRATION,
    *,
    chat: ChatRenderer = CHAT,
    max_characters: int = MUCH,
    fetched: Path | None = None,
) -> list[Document]:
    return dataset_documents(dataset, purpose, directory, chat=chat, max_characters=max_characters, fetched=fetched)


def folder(root: Path, **files: Any) -> Path:
    """The data set ``mine``; a list is written as JSON Lines, and ``_`` in a name stands for a dot."""
    (root / "mine").mkdir()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json_lines(content) if isinstance(content, list) else content
        path = root / "mine" / name.replace("_", ".")
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def json_lines(rows: Sequence[object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def parquet(path: Path, **columns: list[Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def test_pydoc_is_split_in_two_halves_that_share_nothing() -> None:
    (calibration,) = texts(read("pydoc"))
    (evaluation,) = texts(read("pydoc", purpose=Purpose.EVALUATION))
    assert abs(len(calibration) - len(evaluation)) <= 1
    assert len(calibration) > 200_000
    assert calibration[:200] != evaluation[:200]


def test_a_directory_gives_train_and_valid_for_calibration_and_test_for_evaluation(tmp_path: Path) -> None:
    for name in ("train-b", "train-a", "valid", "test"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{name}.txt").write_text(name)
    assert texts(read("mine", tmp_path)) == ["train-a\n\ntrain-b\n\nvalid"]
    assert texts(read("mine", tmp_path, Purpose.EVALUATION)) == ["test"]
    assert texts(read("mine", tmp_path, max_characters=9)) == ["train-a\n\ntr"]
    assert dataset_names(tmp_path) == ["pydoc", "self", "mine"]


@pytest.mark.parametrize("name", ["absent", "..", "../secret"])
def test_an_unknown_name_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound) as caught:
        read(name, tmp_path / "sets")
    assert "pydoc, self" in caught.value.hint


def test_a_directory_without_text_for_the_purpose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="no text for evaluation") as caught:
        read("mine", folder(tmp_path, train_txt="x"), Purpose.EVALUATION)
    assert "test*" in caught.value.hint


def test_each_inline_text_is_a_document() -> None:
    assert read(InlineTexts(texts=("a", "b"))) == [Document("a"), Document("b")]
    assert read(InlineTexts(texts=("abc", "de", "f")), max_characters=4) == [Document("abc"), Document("d")]


def test_rows_of_text_and_of_messages_are_documents_in_order(tmp_path: Path) -> None:
    rows = [{"text": "one", "id": 1}, {"messages": TALK}, {"text": ""}, {"text": "two", "messages": None}]
    root = folder(tmp_path, train_jsonl=rows, train_txt="plain", test_jsonl=[{"text": "held out"}])
    assert read("mine", root) == [
        Document("plain"),
        Document("one"),
        Document("<user>Hi<assistant>Hello", rendered=True),
        Document("two"),
    ]
    assert texts(read("mine", root, Purpose.EVALUATION)) == ["held out"]


def test_parquet_jsonl_and_compressed_rows_are_the_same_documents(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "more": [number]} for number in range(150)]
    root = folder(tmp_path, train_jsonl=rows, test_jsonl_gz=gzip.compress(json_lines(rows).encode()))
    parquet(root / "mine" / "valid.parquet", text=[row["text"] for row in rows], more=[row["more"] for row in rows])
    expected = [row["text"] for row in rows]
    assert texts(read("mine", root)) == expected * 2
    assert texts(read("mine", root, Purpose.EVALUATION)) == expected


def test_messages_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    parquet(tmp_path / "mine" / "train.parquet", messages=[TALK, TALK[:1]], id=[1, 2])
    assert texts(read("mine", tmp_path)) == ["<user>Hi<assistant>Hello", "<user>Hi"]


def test_rows_are_read_no_further_than_needed(tmp_path: Path) -> None:
    broken_later = json_lines([{"text": "x" * 10}] * 3) + "\nno JSON"
    assert texts(read("mine", folder(tmp_path, train_jsonl=broken_later), max_characters=25)) == ["x" * 10] * 2 + [
        "xxxxx"
    ]


def test_a_folder_without_the_usual_names_is_for_calibration_alone(tmp_path: Path) -> None:
    root = folder(tmp_path, data_jsonl=[{"text": "mine"}], README_txt="about it")
    assert texts(read("mine", root)) == ["mine"]
    with pytest.raises(DatasetNotFound, match="no text for evaluation"):
        read("mine", root, Purpose.EVALUATION)
    (root / "mine" / "test.jsonl").write_text('{"text": "held out"}')
    with pytest.raises(DatasetNotFound, match="no text for calibration"):
        read("mine", root)


@pytest.mark.parametrize(
    ("row", "place", "words"),
    [
        ("{", "train.jsonl, line 2", "JSON"),
        ("[" * 100_000, "train.jsonl, line 2", "JSON"),
        ("[1]", "train.jsonl, line 2", "no object"),
        (b'{"text": "\xff"}', "train.jsonl, line 2", "UTF-8"),
        ('{"text": "\\ud800"}', "train.jsonl, line 2", "Unicode"),
        ('{"title": "x"}', "train.jsonl, line 2", '"messages"'),
        ('{"text": 5}', "train.jsonl, line 2", '"messages"'),
        ('{"messages": [{"role": "user"}]}', "train.jsonl, line 2", '"content"'),
        ('{"messages": [{"role": "user", "content": null}]}', "train.jsonl, line 2", '"content"'),
        ('{"messages": [{"role": "assistant", "content": "first"}]}', "train.jsonl, line 2", "begin with the user"),
        (b" " * (MAX_ROW_BYTES + 1), "train.jsonl, line 2", "longer"),
    ],
    ids=["cut", "deep", "array", "latin", "surrogate", "other", "number", "no-content", "null", "template", "long"],
)
def test_a_broken_row_is_named_with_what_it_needs(row: str | bytes, place: str, words: str, tmp_path: Path) -> None:
    root = folder(tmp_path, train_jsonl=b'{"text": "fine"}\n' + (row if isinstance(row, bytes) else row.encode()))
    with pytest.raises(InvalidDataset) as refused:
        read("mine", root)
    assert place in refused.value.detail
    assert words in str(refused.value)
    assert refused.value.category == "user"


def test_a_broken_parquet_file_or_row_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, train_parquet=b"PAR1 and no more")
    with pytest.raises(InvalidDataset, match=r"train.parquet can not be read as Parquet, from row 1 on"):
        read("mine", root)
    parquet(root / "mine" / "train.parquet", text=["a", None])
    with pytest.raises(InvalidDataset, match=r"train.parquet, row 2: the row has neither"):
        read("mine", root)


def test_damaged_compression_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(4000).hex().encode())
    for content in (whole[:-2000], b"no gzip at all"):
        root = tmp_path / str(len(content))
        root.mkdir()
        for name, dataset_file in (("train_jsonl_gz", content), ("valid_txt_gz", content)):
            home = root / name
            home.mkdir()
            with pytest.raises(InvalidDataset, match="is damaged"):
                read("mine", folder(home, **{name: dataset_file}))


def test_nothing_but_regular_files_of_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    root = folder(tmp_path, train_txt="mine")
    (root / "mine" / "train-link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "mine" / "train-inside.txt").symlink_to(root / "mine" / "train.txt")
    os.mkfifo(root / "mine" / "train-fifo.txt")
    (root / "mine" / "train-folder.txt").mkdir()
    assert texts(read("mine", root)) == ["mine\n\nmine"]


def test_a_file_that_is_replaced_by_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}')
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    (fetched / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(InvalidDataset, match="no regular file"):
        read(HubDataset(hub="owner/name"), fetched=fetched)
    (fetched / "a.jsonl").unlink()
    os.mkfifo(fetched / "a.jsonl")
    with pytest.raises(InvalidDataset, match="no regular file"):
        read(HubDataset(hub="owner/name"), fetched=fetched)


def test_messages_are_rendered_by_the_models_own_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 — only this test needs it

    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "model"))
    inline = InlineMessages.model_validate({"messages": [TALK, TALK[:1]]})
    with pytest.raises(NoChatTemplate, match="no chat template") as refused:
        read(inline, chat=ChatRenderer(lambda: tokenizer))
    assert "chat_template.jinja" in refused.value.hint
    tokenizer.chat_template = TEMPLATE
    assert read(inline, chat=ChatRenderer(lambda: tokenizer)) == [
        Document("<|user|>Hi<|assistant|>Hello", rendered=True),
        Document("<|user|>Hi", rendered=True),
    ]
    tokenizer.chat_template = "{{ raise_exception('No system message, please') }}"
    with pytest.raises(InvalidDataset, match=r"Conversation 1: .*No system message, please"):
        read(inline, chat=ChatRenderer(lambda: tokenizer))


def test_plain_text_needs_no_tokenizer(tmp_path: Path) -> None:
    def load() -> Any:
        raise AssertionError("no tokenizer is needed")

    assert read("mine", folder(tmp_path, train_jsonl=[{"text": "x"}]), chat=ChatRenderer(load)) == [Document("x")]


def test_a_data_set_of_the_hub_is_read_from_where_it_was_fetched(tmp_path: Path) -> None:
    parquet(tmp_path / "data%2Ftrain-1.parquet", question=["q1", "q2"], text=["t1", None])
    assert texts(read(HubDataset(hub="owner/name", column="question"), fetched=tmp_path)) == ["q1", "q2"]
    with pytest.raises(InvalidDataset, match=r"data/train-1.parquet, row 2"):
        read(HubDataset(hub="owner/name"), fetched=tmp_path)
    with pytest.raises(InvalidDataset, match="asked column") as refused:
        read(HubDataset(hub="owner/name", column="answer"), fetched=tmp_path)
    assert "answer" not in str(refused.value)


def test_the_lines_of_wikitext_are_one_text(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", text=["", " = Title = \n", "", "Words."])
    expected = [Document("\n\n = Title = \n\n\n\n\nWords.")]
    assert read("wikitext2", fetched=tmp_path) == expected
    assert read(HubDataset(hub="Salesforce/wikitext", config="wikitext-2-raw-v1"), fetched=tmp_path) == expected
    (tmp_path / "sets" / "wikitext2").mkdir(parents=True)
    (tmp_path / "sets" / "wikitext2" / "valid.txt").write_text("the operator's")
    assert texts(read("wikitext2", tmp_path / "sets", fetched=tmp_path)) == ["the operator's"]


@pytest.mark.parametrize("dataset", ["c4", HubDataset(hub="owner/name")])
def test_the_engine_alone_fetches_nothing(dataset: Dataset) -> None:
    with pytest.raises(DatasetNotFound, match="not on this machine"):
        read(dataset)


def test_digests_tell_documents_apart() -> None:
    lists = [
        [Document("ab")],
        [Document("a"), Document("b")],
        [Document("b"), Document("a")],
        [Document("ab", rendered=True)],
        [Document("a\n\nb")],
        [],
    ]
    assert len({documents_digest(each) for each in lists}) == len(lists)
    # The digest of one plain text is that of earlier releases.
    assert documents_digest([Document("ab")]) == "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"


def test_every_error_has_a_remedy(tmp_path: Path) -> None:
    for dataset in ("absent", HubDataset(hub="owner/name")):
        with pytest.raises(EngineError) as refused:
            read(dataset, tmp_path)
        assert refused.value.hint
