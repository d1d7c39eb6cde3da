"""Whether the texts of a job have enough tokens, and the model a row of its embedding for each of them.

Texts are counted here that are short: those of the request itself, the built-in one, and small folders of plain text.
Longer ones are counted in the stage ``load``.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from quant_engine.errors import EngineError, InvalidModel, NotEnoughText
from quant_engine.interface.datasets import Purpose, built_in_text, dataset_files, dataset_folder
from quant_engine.interface.layout import ModelLayout
from quant_engine.interface.packing import Piece, packed_pieces
from quant_engine.interface.problems import Problem
from quant_engine.interface.text_needs import calibration_remedy, documents_remedy, evaluation_remedy, no_room
from quant_engine.model_files import ModelFiles
from quant_engine.policy import BUILT_IN, Calibration, Dataset, Evaluation, InlineMessages, InlineTexts, Perplexity
from quant_engine.preflight.programs import run_program

_MODEL: Final = "/model/id"
_PROGRAM: Final = Path(__file__).with_name("count_tokens.py")
_MOST_CHARACTERS: Final = 500_000
_MOST_TOKENIZER_BYTES: Final = 10 * 2**20
_FAILED: Final = 3
_SLACK: Final = 1.02
"""transformers may split a text a little differently than the library alone. Where a text is this close to what is
needed, the stage ``load`` decides."""
_MARGIN: Final = 4
_PLENTY: Final = 6
"""Characters for each token that is needed: a text with more of them has enough tokens."""


@dataclass(frozen=True)
class _Counted:
    """The tokens of each document, of which the first ``lead`` are special ones."""

    lengths: Sequence[int]
    lead: int

    def pieces(self, sequence_length: int) -> list[Piece]:
        return packed_pieces(self.lengths, [self.lead] * len(self.lengths), sequence_length)

    def lengthened(self) -> "_Counted":
        """The most tokens that another way of splitting the texts could give."""
        return replace(self, lengths=[int(each * _SLACK) + 1 for each in self.lengths])


def text_problems(
    files: ModelFiles,
    layout: ModelLayout,
    calibration: Calibration | None,
    evaluation: Evaluation,
    datasets_dir: Path | None,
) -> Iterator[Problem]:
    """Yield a problem for each text that is too short, or that has a token for which the model has no embedding.

    Args:
        calibration: None where the job calibrates nothing.
    """
    yield from _too_few_documents(calibration, datasets_dir)
    asked: dict[Purpose, Calibration | Perplexity | None]
    asked = {Purpose.CALIBRATION: calibration, Purpose.EVALUATION: evaluation.perplexity}
    counted = [
        (request, documents)
        for purpose, request in asked.items()
        if request is not None and (documents := _documents(request, purpose, datasets_dir)) is not None
    ]
    if not counted:
        return
    try:
        answer = _answer_about(files, [documents for _, documents in counted], layout.vocabulary)
    except EngineError as error:
        yield Problem.of(error, _MODEL)
        return
    if answer is None:
        for request, documents in counted:
            yield from _hopelessly_short(documents, request)
        return
    for (request, _), lengths in zip(counted, answer["counts"], strict=True):
        lead = answer["lead"] if request.special_tokens == "auto" else 0
        # The program puts the special tokens in front of each document.
        found = _Counted([each - answer["lead"] + lead for each in lengths], lead)
        if lead < request.sequence_length:
            yield from _too_short(found, request)
        else:
            of_evaluation = isinstance(request, Perplexity)
            pointer = f"/{'evaluation/perplexity' if of_evaluation else 'calibration'}/sequence_length"
            yield Problem.of(no_room(lead, request.sequence_length), pointer)


def _too_short(found: _Counted, request: Calibration | Perplexity) -> Iterator[Problem]:
    if isinstance(request, Perplexity):
        if _tokens(found.lengthened(), request) < request.tokens:
            available = _tokens(found, request)
            yield Problem(
                pointer="/evaluation/perplexity/dataset",
                code=NotEnoughText.code,
                detail=f"Perplexity asks for {request.tokens:,} tokens; the evaluation text has {available:,}.",
                hint=evaluation_remedy(available, request.tokens),
            )
        return
    samples, length = request.samples, request.sequence_length
    # Without packing each document is a window, and its tokens do not matter.
    if request.pack and _windows(found.lengthened(), request) < samples:
        available, tokens = _windows(found, request), sum(found.lengths)
        yield Problem(
            pointer="/calibration/dataset",
            code=NotEnoughText.code,
            detail=f"Calibration asks for {samples:,} × {length:,} = {samples * length:,} tokens; the text has "
            f"{tokens:,}.",
            hint=calibration_remedy(available, tokens, samples, length),
        )


def _hopelessly_short(documents: list[str], request: Calibration | Perplexity) -> Iterator[Problem]:
    """Yield a problem where not even one token a byte would be enough; that needs no tokenizer."""
    needed = request.tokens if isinstance(request, Perplexity) else request.samples * request.sequence_length
    size = sum(len(each.encode()) for each in documents)
    # Special tokens and normalization add some; where it is not clear, the run counts.
    if _MARGIN * (size + len(documents)) < needed:
        of_evaluation = isinstance(request, Perplexity)
        yield Problem(
            pointer="/evaluation/perplexity/dataset" if of_evaluation else "/calibration/dataset",
            code=NotEnoughText.code,
            detail=f"{'Perplexity' if of_evaluation else 'Calibration'} asks for {needed:,} tokens; the text has only "
            f"{size:,} bytes.",
            hint=f"Give a text of at least {needed:,} tokens, or ask for fewer.",
        )


def _tokens(found: _Counted, request: Perplexity) -> int:
    return sum(piece.size for piece in found.pieces(request.sequence_length))


def _windows(found: _Counted, request: Calibration) -> int:
    return sum(piece.size == request.sequence_length for piece in found.pieces(request.sequence_length))


def _too_few_documents(calibration: Calibration | None, datasets_dir: Path | None) -> Iterator[Problem]:
    """Yield a problem where each window is one document, and there are fewer of them than samples."""
    dataset = None if calibration is None else calibration.dataset
    if calibration is None or dataset is None or calibration.pack:
        return
    if isinstance(dataset, InlineMessages):
        available = len(dataset.messages)
    elif (documents := _short_documents(dataset, Purpose.CALIBRATION, datasets_dir)) is not None:
        available = len(documents)
    else:
        return
    if available < calibration.samples:
        yield Problem(
            pointer="/calibration/dataset",
            code=NotEnoughText.code,
            detail=f"Calibration asks for {calibration.samples:,} documents, because calibration.pack is false; the "
            f"data set has {available:,}.",
            hint=documents_remedy(available),
        )


def _documents(request: Calibration | Perplexity, purpose: Purpose, datasets_dir: Path | None) -> list[str] | None:
    """Return the documents of a request if they are to be counted here, and None otherwise."""
    dataset = request.dataset
    documents = None if dataset is None else _short_documents(dataset, purpose, datasets_dir)
    if documents is None:
        return None
    characters = sum(map(len, documents))
    needed = request.tokens if isinstance(request, Perplexity) else request.samples * request.sequence_length
    # A named text that is clearly long enough is not counted for every job.
    if characters > _MOST_CHARACTERS or (isinstance(dataset, str) and characters > _PLENTY * needed):
        return None
    return documents if request.special_tokens == "auto" else ["\n\n".join(documents)]


def _short_documents(dataset: Dataset, purpose: Purpose, datasets_dir: Path | None) -> list[str] | None:
    """Return the documents of a data set that may be short; None for all others."""
    if isinstance(dataset, InlineTexts):
        return list(dataset.texts)
    if dataset == BUILT_IN:
        return [built_in_text(purpose)]
    return _short_folder(dataset_folder(datasets_dir, dataset), purpose) if isinstance(dataset, str) else None


def _short_folder(folder: Path | None, purpose: Purpose) -> list[str] | None:
    files = [] if folder is None else dataset_files(folder, purpose)
    if not files or any(file.suffix != ".txt" for file in files):
        return None
    if sum(file.stat().st_size for file in files) > _MOST_CHARACTERS:
        return None
    return ["\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)]


def _answer_about(files: ModelFiles, groups: list[list[str]], rows: int) -> dict[str, Any] | None:
    """Return what the program says about the groups of documents, or None where it is not known here.

    Raises:
        InvalidModel: the tokenizer's library fails on its file, or a token has no row in the embedding.
    """
    if not files.has("tokenizer.json") or files.path("tokenizer.json").stat().st_size > _MOST_TOKENIZER_BYTES:
        return None
    answer = _answer(files.path("tokenizer.json"), groups)
    if answer is None or _is_changed(files, answer["lead"]):
        return None
    largest, token = answer["largest"]
    if largest >= rows:
        raise InvalidModel(
            detail=f"The tokenizer gives {_shown(token)} the id {largest}; the model's embedding has {rows} rows.",
            hint="Use the tokenizer that belongs to the model, or resize its embedding (resize_token_embeddings) and "
            "save it again.",
        )
    return answer


def _shown(token: str | None) -> str:
    # A template may add an id for which the vocabulary has no token.
    return "a special token" if token is None else repr(token[:80])


def _answer(tokenizer: Path, groups: list[list[str]]) -> dict[str, Any] | None:
    done = run_program(_PROGRAM, str(tokenizer), given=json.dumps(groups).encode())
    if done is None:
        return None
    if done.returncode == _FAILED:
        raise InvalidModel(
            detail="The library that reads the model's tokenizer (tokenizers) fails on its files.",
            hint="Save the tokenizer again with save_pretrained, or download the model again, and retry.",
        )
    # Any other end says nothing about the model: the library may not be installed where only the API is.
    answer: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return answer


def _is_changed(files: ModelFiles, lead: int) -> bool:
    """Return whether the tokenizer's configuration adds or removes special tokens, which only transformers does."""
    config = files.read_json("tokenizer_config.json") if files.has("tokenizer_config.json") else {}
    adds = config.get("add_bos_token")
    return isinstance(adds, bool) and adds != (lead > 0)
