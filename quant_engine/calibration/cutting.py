"""Cut tokenized documents into windows: a seeded sample for calibration, the first tokens in order for evaluation.

A window begins as its document begins, because a model in use has the special tokens at its first position.

Shapes: S windows, T tokens of a window, N tokens of all documents together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from quant_engine.calibration.tokens import TokenizedDocument
from quant_engine.errors import NotEnoughText
from quant_engine.interface.packing import Piece, packed_pieces, starts_of
from quant_engine.interface.text_needs import calibration_remedy, documents_remedy, evaluation_remedy, no_room
from quant_engine.windows import Windows


@dataclass(frozen=True, eq=False)
class _Row:
    """The tokens of one window, before padding; ``special_T`` marks those that begin a text."""

    ids_T: Tensor
    special_T: Tensor


def calibration_windows(
    documents: Sequence[TokenizedDocument],
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    pack: bool = True,
    special_tokens: Sequence[str] = (),
) -> Windows:
    """Return ``samples`` windows [S, T], drawn and ordered at random by ``seed``.

    Args:
        pack: whether to join the documents and cut them into disjoint windows. Otherwise each window is one document,
            cut or padded.
        special_tokens: the names of the tokens that the documents begin with.

    Raises:
        NotEnoughText: the documents give fewer than ``samples`` windows.
        UnsupportedPolicy: the special tokens leave no room in a window.
    """
    check_room(max((each.lead for each in documents), default=0), sequence_length)
    if pack:
        stream = _Stream(documents)
        whole = [piece for piece in stream.pieces(sequence_length) if piece.size == sequence_length]
        _check_samples(len(whole), samples, sequence_length, tokens=len(stream.ids))
        drawn = [stream.row(whole[index]) for index in _order(len(whole), samples, seed)]
    else:
        usable = [each for each in documents if len(each.ids) > max(1, each.lead)]
        _check_documents(len(usable), samples)
        drawn = [_first_tokens(usable[index], sequence_length) for index in _order(len(usable), samples, seed)]
    return _assembled(drawn, sequence_length, special_tokens)


def evaluation_windows(
    documents: Sequence[TokenizedDocument], *, tokens: int, sequence_length: int, special_tokens: Sequence[str] = ()
) -> list[Windows]:
    """Return the first ``tokens`` tokens as windows [S, T] in order. The special tokens of each window are counted.

    The rest that fills no window is a shorter one, unless it predicts nothing.

    Raises:
        NotEnoughText: the documents give fewer than ``tokens``.
        UnsupportedPolicy: the special tokens leave no room in a window.
    """
    check_room(max((each.lead for each in documents), default=0), sequence_length)
    stream = _Stream(documents)
    pieces = stream.pieces(sequence_length)
    available = sum(piece.size for piece in pieces)
    if available < tokens:
        raise NotEnoughText(
            detail=f"Perplexity asks for {tokens:,} tokens; the evaluation text has {available:,}.",
            hint=evaluation_remedy(available, tokens),
        )
    whole, rest = divmod(tokens, sequence_length)
    rows = [stream.row(piece) for piece in pieces[:whole]]
    found = [_assembled(rows, sequence_length, special_tokens)] if whole else []
    if rest:
        row = stream.row(pieces[whole])
        last = _assembled([_Row(row.ids_T[:rest], row.special_T[:rest])], rest, special_tokens)
        found += [last] if last.predicted else []
    return found


@dataclass(frozen=True)
class _Stream:
    """All documents, one behind the other."""

    documents: Sequence[TokenizedDocument]

    @cached_property
    def ids(self) -> Tensor:
        return torch.cat([torch.empty(0, dtype=torch.int64), *(each.ids for each in self.documents)])

    @cached_property
    def _special(self) -> Tensor:
        special_N = torch.zeros(len(self.ids), dtype=torch.bool)
        for start, document in zip(self._starts, self.documents, strict=True):
            special_N[start : start + document.lead] = True
        return special_N

    @cached_property
    def _starts(self) -> list[int]:
        return starts_of([len(each.ids) for each in self.documents])

    def pieces(self, length: int) -> list[Piece]:
        """Every window of ``length`` tokens in order, and at last a shorter one with the tokens that remain."""
        return packed_pieces([len(each.ids) for each in self.documents], [each.lead for each in self.documents], length)

    def row(self, piece: Piece) -> _Row:
        end = piece.begin + piece.size - piece.again
        repeated_T = self.documents[piece.document].ids[: piece.again]
        return _Row(
            torch.cat([repeated_T, self.ids[piece.begin : end]]),
            torch.cat([torch.ones_like(repeated_T, dtype=torch.bool), self._special[piece.begin : end]]),
        )


def _first_tokens(document: TokenizedDocument, length: int) -> _Row:
    ids_T = document.ids[:length]
    return _Row(ids_T, torch.arange(len(ids_T)) < document.lead)


def _assembled(rows: Sequence[_Row], length: int, special_tokens: Sequence[str]) -> Windows:
    # Padded with the last token: an id that the model knows. No position that counts depends on it.
    ids_ST = torch.stack([torch.cat([r.ids_T, r.ids_T[-1:].expand(length - len(r.ids_T))]) for r in rows])
    valid_ST = torch.stack([torch.arange(length) < len(row.ids_T) for row in rows])
    special_ST = torch.stack([pad(row.special_T, (0, length - len(row.special_T))) for row in rows])
    predicted_ST = valid_ST & ~special_ST
    predicted_ST[:, 0] = False
    return Windows(ids_ST=ids_ST, valid_ST=valid_ST, predicted_ST=predicted_ST, special_tokens=tuple(special_tokens))


def _order(available: int, samples: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    return order


def check_room(lead: int, sequence_length: int) -> None:
    """Check that a window holds more than its special tokens.

    Raises:
        UnsupportedPolicy: it does not.
    """
    if lead >= sequence_length:
        raise no_room(lead, sequence_length)


def _check_samples(available: int, samples: int, length: int, *, tokens: int) -> None:
    if available >= samples:
        return
    raise NotEnoughText(
        detail=f"Calibration asks for {samples} × {length} = {samples * length:,} tokens; the text has {tokens:,}.",
        hint=calibration_remedy(available, tokens, samples, length),
    )


def _check_documents(available: int, samples: int) -> None:
    if available >= samples:
        return
    raise NotEnoughText(
        detail=f"Calibration asks for {samples} documents, because calibration.pack is false; the data set has "
        f"{available} with two tokens or more.",
        hint=documents_remedy(available),
    )
