"""How documents are joined and cut into windows, from their lengths alone. It loads no torch."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Piece:
    """A window of joined documents: the tokens from ``begin`` on, behind the first ``again`` tokens of their document.

    ``size`` counts both.
    """

    begin: int
    document: int
    again: int
    size: int


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Return where each document begins when all are joined."""
    return list(accumulate(lengths, initial=0))[:-1]


def packed_pieces(lengths: Sequence[int], leads: Sequence[int], sequence_length: int) -> list[Piece]:
    """Return every window of ``sequence_length`` tokens in order, and at last a shorter one with those that remain.

    A window that begins within a document begins with the special tokens of that document again.

    Args:
        lengths: the tokens of each document; leads: how many of them are special tokens in front of it, which have to
            be fewer than ``sequence_length``.
    """
    starts, total = starts_of(lengths), sum(lengths)
    pieces: list[Piece] = []
    begin = 0
    while begin < total:
        document = bisect_right(starts, begin) - 1
        start, lead = starts[document], leads[document]
        if begin < start + lead:
            # The window begins where its document does, also if the window before ended within the special tokens.
            begin, again = start, 0
        else:
            again = lead
        taken = min(sequence_length - again, total - begin)
        pieces.append(Piece(begin, document, again, again + taken))
        begin += taken
    return pieces
