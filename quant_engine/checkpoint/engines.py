"""Describe what serving engines do with a checkpoint: one statement for each engine, for the model card.

Each kind of linear has a verdict for each engine (:mod:`.engine_schemes`). Each hazard below has one, too: it depends
on the online transforms of a linear, and on the linears that an engine merges with it. The engine's verdict is the
worst of these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quant_engine.checkpoint.config import stored_orders
from quant_engine.checkpoint.engine_schemes import (
    STATEMENTS,
    UNCHECKED,
    VERSIONS,
    Scheme,
    Statement,
    Verdict,
    scheme_of,
)
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.quantry_section import Reach, reach
from quant_engine.policy.known_names import FUSED_LINEARS

__all__ = ["EngineNote", "Verdict", "engine_notes"]


@dataclass(frozen=True)
class EngineNote:
    """What one engine does with one checkpoint.

    Attributes:
        engine: its name.
        version: what the statement was checked against, and how.
        verdict: "runs": computes what was measured, with kernels of its own; "differs": runs, but computes something
            else than was measured; "wrong": loads, and gives wrong logits without an error; "refuses": stops with an
            error; "unknown": nobody has checked.
        note: one or two plain sentences.
    """

    engine: str
    version: str
    verdict: Verdict
    note: str


@dataclass(frozen=True)
class _Hazard:
    engines: tuple[str, ...]
    met: Callable[[Sequence[QuantizedLinear]], bool]
    statement: Statement


# From the least to the most severe; an engine that refuses never gets as far as wrong logits.
_SEVERITY: Final[tuple[Verdict, ...]] = ("runs", "differs", "unknown", "wrong", "refuses")
_SERVERS: Final = ("vLLM", "SGLang")


def engine_notes(linears: Sequence[QuantizedLinear]) -> tuple[EngineNote, ...]:
    """Return one statement for each engine: the worst verdict of any linear, and the reasons for it.

    Raises:
        KeyError: there is no statement about the scheme of a linear.
        ValueError: a linear's weight is not quantized.
    """
    found: list[EngineNote] = []
    schemes = sorted({scheme_of(linear) for linear in linears}, key=_label)
    met = [hazard for hazard in _HAZARDS if hazard.met(linears)]
    for engine, version in VERSIONS.items():
        statements = [_statement(engine, scheme, alone=len(schemes) == 1) for scheme in schemes]
        statements += [hazard.statement for hazard in met if engine in hazard.engines]
        found.append(_worst(engine, version, statements))
    return tuple(found)


def _statement(engine: str, scheme: Scheme | None, *, alone: bool) -> Statement:
    """Return what ``engine`` does with linears of ``scheme``. The note names the scheme if there are several."""
    statement = UNCHECKED if scheme is None else STATEMENTS[engine][scheme]
    return statement if alone else Statement(statement.verdict, f"For {_label(scheme)}: {statement.note}")


def _label(scheme: Scheme | None) -> str:
    return "other number formats" if scheme is None else scheme.value


def _worst(engine: str, version: str, statements: Sequence[Statement]) -> EngineNote:
    """Return the worst of an engine's statements, with the notes that matter."""
    # If an engine refuses or is wrong, the other notes do not matter. Equal notes of several schemes appear once.
    worst = max((each.verdict for each in statements), key=_SEVERITY.index)
    fatal = worst in ("wrong", "refuses")
    notes = dict.fromkeys(each.note for each in statements if not fatal or each.verdict == worst)
    return EngineNote(engine, version, worst, " ".join(notes))


def _fused(linears: Sequence[QuantizedLinear]) -> Iterator[tuple[tuple[str, ...], list[QuantizedLinear]]]:
    """Yield the linears that serving engines compute as one, with the names of all parts that they expect."""
    by_name = {linear.name: linear for linear in linears}
    for parts in FUSED_LINEARS.values():
        for prefix in sorted({name.rpartition(".")[0] for name in by_name if name.rpartition(".")[2] in parts}):
            names = [f"{prefix}.{part}" for part in parts]
            yield parts, [by_name[name] for name in names if name in by_name]


def _is_partly_quantized(linears: Sequence[QuantizedLinear]) -> bool:
    return any(len(members) < len(parts) for parts, members in _fused(linears))


def _is_mixed_where_fused(linears: Sequence[QuantizedLinear]) -> bool:
    return any(len({each.scheme([]).model_dump_json() for each in members}) > 1 for _, members in _fused(linears))


def _reaches(kind: Reach) -> Callable[[Sequence[QuantizedLinear]], bool]:
    return lambda linears: reach(linears) is kind


def _has_stored_matrix(linears: Sequence[QuantizedLinear]) -> bool:
    return bool(stored_orders(linears))


_HAZARDS: Final = (
    _Hazard(
        ("transformers", *_SERVERS),
        _reaches(Reach.LOADER),
        Statement(
            "refuses",
            "Its online transforms can not be said in compressed-tensors' terms, so the number types are spelled to "
            "make other readers stop (ValidationError).",
        ),
    ),
    _Hazard(
        ("transformers",),
        _reaches(Reach.HADAMARD),
        Statement(
            "wrong",
            "Plain `from_pretrained` drops the online rotations without an error; use `quant_engine.checkpoint.load`.",
        ),
    ),
    _Hazard(
        ("vLLM",),
        _reaches(Reach.HADAMARD),
        Statement(
            "differs",
            "It rotates by transform_config, in the model's own dtype; it refuses tensor parallelism, and a bias on a "
            "rotated linear.",
        ),
    ),
    _Hazard(
        ("vLLM",),
        _has_stored_matrix,
        Statement(
            "differs",
            "Orders that are no power of two cost a dense matrix product. The matrix of a rotation is stored once: no "
            "pipeline parallelism.",
        ),
    ),
    _Hazard(
        ("SGLang",),
        _reaches(Reach.HADAMARD),
        Statement("wrong", "It never reads transform_config: it loads the weights and leaves the rotations out."),
    ),
    _Hazard(
        ("transformers", *_SERVERS),
        lambda linears: any(linear.online.clip_ratio < 1.0 for linear in linears),
        Statement("differs", "It leaves activation clipping out, and rounds on a wider range than was measured."),
    ),
    _Hazard(
        _SERVERS,
        _is_partly_quantized,
        Statement("refuses", "It computes q, k and v, and gate and up, as one, and here only some are quantized."),
    ),
    _Hazard(
        _SERVERS,
        _is_mixed_where_fused,
        Statement(
            "wrong",
            "It computes q, k and v, and gate and up, as one, by the scheme of the first; here they have several. It "
            "stops only where the stored shapes tell.",
        ),
    ),
)
