"""Bodies that cost a server as much as their size allows: deep, wide, long, and with as many errors as possible."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

LARGEST: Final = 8 << 20
"""The default of QUANTRY_MAX_BODY_BYTES."""

_SIZES: Final = (LARGEST, LARGEST // 4, LARGEST // 16)
_SMALL: Final = 256 << 10
_MARK: Final = b"@here@"


@dataclass(frozen=True)
class WorstBody:
    """One request: what it is made of, where it is sent, and its bytes."""

    name: str
    method: str
    path: str
    body: bytes


_JOB: Final = {"model": {"source": "local", "id": "tiny"}, "policy": {"preset": "rtn-w4a4"}}
_PLACES: Final = (
    {"calibration": {"dataset": {"texts": "@here@"}}},
    {"evaluation": {"perplexity": {"dataset": {"texts": "@here@"}}}},
    {"calibration": {"dataset": "@here@"}},
    {"policy": {"targets": "@here@"}},
    {"policy": {"overrides": "@here@"}},
    {"policy": {"selection": {"kind": "lowest_error", "candidates": "@here@"}}},
    {"policy": {"search": {"alpha": "@here@"}}},
    {"policy": {"training": "@here@"}},
    {"metadata": "@here@"},
    {"model": "@here@"},
    {"limits": "@here@"},
)
_UNITS: Final = (
    *(b"1", b"-1e-300", b"null", b"true", b'""', b'"x"', b"{}", b"[]", b'{"a":1}', b'{"kind":"smooth","x":{}}'),
    *(b"9" * 900, b"0." + b"3" * 900, b"9" * 4000, b'{"match":"x","weights":{"a":1,"b":2},"c":[1,2]}'),
    *(b"[[[[[[[[1]]]]]]]]", b'{"role":"user","content":"hello"}', b'{"a":1,"a":2}', b'"\\ud83d\\ude00"', b'"\\ud800"'),
)
_CHARACTERS: Final = (b"x", b"hello, wor[l]d: ", b'\\"', b"\\\\", b"\\n", b"\\u0001", b"\\ud83d\\ude00", b"\\ud83d")
_RAW: Final = (b'"', b"\\", b"[", b"]", b'{"a":', b",", b":", b"9", b" ", b"\x00", b"\xff", b'"a":1,', b'[{"', b'\\"')


def worst_bodies(count: int, seed: int = 0) -> Iterator[WorstBody]:
    """Yield ``count`` bodies, the same for the same seed; every kind in turn."""
    draw = random.Random(seed)  # noqa: S311 - not a secret
    kinds: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
        *(_many, _long, _valid, _wide, _raw),
        *(_conversations, _patterns),
    )
    for index in range(count):
        name, body = kinds[index % len(kinds)](draw)
        yield WorstBody(name, "POST", "/v1/jobs", body)
        # The other routes have the same parser and a smaller limit.
        if index % 10 == 9:
            path = draw.choice(("/v1/webhooks", "/v1/credentials", "/v1/jobs/x/retry", "/v1/jobs/x/cancel"))
            yield WorstBody(f"{path} {name}", "POST", path, body[: _SMALL - 1])


def _many(draw: random.Random) -> tuple[str, bytes]:
    """A list of very many entries at one place: up to the cap, or just within the budget of values."""
    unit, place = draw.choice(_UNITS), draw.randrange(len(_PLACES))
    cost = 1 + sum(unit.count(each) for each in (b",", b":", b"[", b"{"))
    within = draw.random() < 0.6
    count = min(110_000 // cost, 16_000) if within else draw.choice(_SIZES)
    count = min(count, (LARGEST - 500) // (len(unit) + 1))
    return f"{count} of {unit[:20]!r} at {place}", _placed(place, b"[" + b",".join([unit] * count) + b"]")


def _long(draw: random.Random) -> tuple[str, bytes]:
    """One string of the largest size, as a value or as a key."""
    unit, place = draw.choice((*_CHARACTERS, "漢".encode(), "\U0001f600".encode())), draw.randrange(len(_PLACES))
    text = b'"' + unit * ((draw.choice(_SIZES) - 600) // len(unit)) + b'"'
    if draw.random() < 0.3:
        return f"key of {unit!r} at {place}", _placed(place, b"{" + text + b":1}")
    return f"string of {unit!r} at {place}", _placed(place, text)


def _valid(draw: random.Random) -> tuple[str, bytes]:
    """Texts that are accepted, which are stored and answered as well."""
    unit = draw.choice((*_CHARACTERS[:7], "漢".encode(), "\U0001f600".encode()))
    number = draw.choice((1, 4, 60, 4096))
    characters = min(1_990_000, (LARGEST - 600) // number - 4)
    text = b'"' + unit * (characters // len(unit)) + b'"'
    return f"{number} texts of {unit!r}", _placed(0, b"[" + b",".join([text] * number) + b"]")


def _conversations(draw: random.Random) -> tuple[str, bytes]:
    """Messages that are accepted: each is an object of its own."""
    number = draw.choice((1, 30, 1000))
    one = b"[" + b",".join([b'{"role":"user","content":"hi"}'] * number) + b"]"
    copies = min(22_000 // number, 4096)
    messages = b'{"messages":[' + b",".join([one] * copies) + b"]}"
    return f"{copies} conversations of {number}", _placed(2, messages)


def _patterns(draw: random.Random) -> tuple[str, bytes]:
    """As many patterns as a policy may have, as slow as they may be; half of them match."""
    unit = draw.choice((r".*\pL\PL.*|", r"(?i).*[a-z].*[^x].*|", r"(a|b|c|.)*", "[a-z.]*"))
    every = [f"re:{(unit * 40)[: 8 * len(unit)]}{index}" for index in range(64)]
    overrides = [{"match": pattern, "weights": {"format": "int8"}} for pattern in every]
    policy = {"preset": "rtn-w4a4", "targets": every, "ignore": every, "overrides": overrides}
    return f"patterns of {unit!r}", json.dumps(_JOB | {"policy": policy}).encode()


def _wide(draw: random.Random) -> tuple[str, bytes]:
    """Objects with very many unknown or repeated keys, side by side or inside each other."""
    keys, place = draw.choice((250, 2_000, 90_000)), draw.randrange(len(_PLACES))
    safe = draw.random() < 0.5
    names = [f"key_{_letters(index)}" if safe else f"K {index}" for index in range(keys)]
    members = b",".join(f'"{name}":{index}'.encode() for index, name in enumerate(names))
    objects = b"{" + members + b"}"
    copies = max(1, min(40_000 // keys, 60))
    if draw.random() < 0.5:
        return f"{copies} objects of {keys} keys at {place}", _placed(
            place, b"[" + b",".join([objects] * copies) + b"]"
        )
    nested = b'{"weights":' * 5 + objects + b"}" * 5
    return f"{keys} keys, nested, at {place}", _placed(place, nested)


def _raw(draw: random.Random) -> tuple[str, bytes]:
    """What is not JSON, from its beginning or at its end."""
    unit = draw.choice(_RAW)
    body = unit * (draw.choice(_SIZES) // len(unit))
    if draw.random() < 0.3:
        head = _placed(0, _MARK).partition(_MARK)[0] + b"["
        return f"head and {unit!r}", head + body[: LARGEST - len(head)]
    return f"raw {unit!r}", body


def _letters(index: int) -> str:
    return "".join(chr(97 + index // 26**power % 26) for power in range(4))


def _placed(place: int, value: bytes) -> bytes:
    body = json.loads(json.dumps(_JOB))
    for key, below in _PLACES[place].items():
        body[key] = body.get(key, {}) | below if isinstance(below, dict) else below
    return json.dumps(body).encode().replace(b'"@here@"', value)
