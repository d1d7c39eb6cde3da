"""The known name that a misspelled word most likely means, for errors that offer it."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import islice
from typing import Final

_LONGEST: Final = 80
_MOST_KNOWN: Final = 500
_ENOUGH: Final = 0.6
"""The similarity from which two words count as near; difflib's own default."""
_SEPARATORS: Final = "_-./"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the name of ``known`` that is most like ``word``, or None where no name is near.

    The result is a known name, so a message may show it; ``word`` is a stranger's text and may not be shown. Case does
    not count. A word that is the beginning of one name alone, up to a separator, means it: ``up`` is ``up_proj``.
    Of equally near names the first is returned. Words of more than 80 characters are near to nothing, and only the
    first 500 names are compared, so that a request can not buy much time.
    """
    if not word or len(word) > _LONGEST:
        return None
    names = [name for name in islice(known, _MOST_KNOWN) if len(name) <= _LONGEST]
    matcher = SequenceMatcher(autojunk=False)
    # SequenceMatcher remembers its second sequence, so the word that stays the same is the second.
    matcher.set_seq2(word.casefold())
    best, found = _ENOUGH, None
    for name in names:
        matcher.set_seq1(name.casefold())
        # The first two are cheap upper bounds of the third.
        if matcher.real_quick_ratio() >= best and matcher.quick_ratio() >= best:
            ratio = matcher.ratio()
            if ratio > best or (found is None and ratio >= best):
                best, found = ratio, name
    return found or _only_beginning_with(word.casefold(), names)


def _only_beginning_with(word: str, names: list[str]) -> str | None:
    longer = [name for name in names if name.casefold().startswith(tuple(word + each for each in _SEPARATORS))]
    return longer[0] if len(longer) == 1 else None
