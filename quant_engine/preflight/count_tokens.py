"""Count the tokens of texts: a program of its own, because the files of a foreign tokenizer can stop native code.

``python count_tokens.py tokenizer.json`` reads a JSON list of lists of texts from standard input. It writes an object:
``lead`` is the number of special tokens that the tokenizer puts in front of a text. ``counts`` has for each list the
tokens of each text, special ones included. ``largest`` is the largest id, and its token. Where nothing is put in front,
the texts of a list are joined with empty lines between them, as :mod:`quant_engine.calibration.tokens` does.

It imports nothing of Quantry, so that it starts in a fraction of a second. Its exit status is 3 where the library fails
on the file.
"""

import json
import resource
import sys
from typing import Any

_FAILED = 3
_MEMORY = 2 << 30
"""Bytes of addresses. A tokenizer may replace every letter by a text, and that text's letters again."""


def main() -> int:
    """Count; the exit status is 0 if that was possible."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - an installation of the API alone may lack it
    except ImportError:
        return 1
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    groups = json.loads(sys.stdin.read())
    try:
        found = _counted(Tokenizer.from_file(sys.argv[1]), groups)
    # A panic in native code is no Exception.
    except BaseException:  # noqa: BLE001 - whatever it raises, the tokenizer can not be used
        return _FAILED
    sys.stdout.write(json.dumps(found))
    return 0


def _counted(tokenizer: Any, groups: list[list[str]]) -> dict[str, Any]:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain, whole = (tokenizer.encode("x", add_special_tokens=special).ids for special in (False, True))
    lead = next((at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain), 0)
    counts, largest = [], max([*whole, 0])
    for texts in groups:
        encoded = tokenizer.encode_batch(texts if lead else ["\n\n".join(texts)], add_special_tokens=False)
        counts.append([lead + len(each.ids) for each in encoded])
        largest = max([largest, *(max(each.ids, default=0) for each in encoded)])
    return {"lead": lead, "counts": counts, "largest": [largest, tokenizer.id_to_token(largest)]}


if __name__ == "__main__":
    sys.exit(main())
