"""Candidates as whole transforms: what they take from the policy, which of them are the same, names and costs."""

from dataclasses import replace

import pytest
import torch

from quant_engine.policy import Statistic, Transform, TransformKind
from quant_engine.selection import Wanted, candidate_name, canonical, distinct, relative_cost, wanted
from quant_engine.transforms import SitePlan
from quant_engine.transforms.plan_builders import CLOSED_FORMS
from quant_engine.transforms.primitives import Hadamard, Kronecker
from tests.unit.quant_engine.outliers import weight

L2 = Statistic(kind="l2")
OWN = Transform(statistic=L2, alpha=0.4, block_size=32)
LEARNED = SitePlan(
    kind=TransformKind.SMOOTH_ROTATION, alpha=0.6, statistic=L2, label="learned", scales_D=torch.ones(96)
)
SEARCHED = SitePlan(kind=TransformKind.SMOOTH_ROTATION, alpha=0.6, statistic=L2, label="l2", scales_D=torch.ones(96))


def test_a_kind_takes_the_rest_from_the_policy() -> None:
    assert wanted(TransformKind.CAT, OWN, None) == Wanted(
        transform=Transform(kind=TransformKind.CAT, statistic=L2, alpha=0.4, block_size=32), inherits=False
    )


def test_a_whole_transform_is_as_it_is() -> None:
    candidate = Transform(kind=TransformKind.SMOOTH)
    assert wanted(candidate, OWN, LEARNED) == Wanted(transform=candidate, inherits=False)


def test_a_kind_with_scales_takes_those_that_were_found() -> None:
    got = wanted(TransformKind.KRONECKER, OWN, LEARNED)
    assert got.inherits
    assert (got.transform.kind, got.transform.alpha, got.transform.statistic) == (TransformKind.KRONECKER, 0.6, L2)
    assert not wanted(TransformKind.CAT, OWN, LEARNED).inherits
    assert not wanted(TransformKind.KRONECKER, OWN, SitePlan(kind=TransformKind.NONE)).inherits


def _fused_only(transform: Transform) -> Transform:
    """What a policy without anything online leaves of a transform."""
    kind = TransformKind.SMOOTH if transform.kind.scales_channels else TransformKind.NONE
    return transform.model_copy(update={"kind": kind})


def test_candidates_that_coincide_once_reduced_are_one() -> None:
    kinds = (TransformKind.NONE, TransformKind.ROTATION, TransformKind.KRONECKER, TransformKind.SMOOTH, Transform())
    asked = [wanted(each, OWN, LEARNED) for each in kinds]
    reduced = [replace(each, transform=_fused_only(each.transform)) for each in asked]
    assert [each.inherits for each in reduced] == [False, False, True, True, False]
    kept, places = distinct(reduced, LEARNED)
    assert [candidate_name(each.transform) for each in kept] == ["none", "smooth(l2, α 0.6)", "smooth(absmax, α 0.5)"]
    assert places == (0, 0, 1, 1, 2)


def test_fields_that_a_kind_does_not_read_tell_nothing_apart() -> None:
    for kind in TransformKind:
        first = Transform(kind=kind, alpha=0.1, statistic=L2, block_size=16, damping=0.3, massive_cap=None)
        kept = canonical(first)
        assert kept.kind is kind
        assert (kept.alpha == 0.1) is (kind.scales_channels or kind in CLOSED_FORMS)
        assert (kept.block_size == 16) is kind.rotates
        assert (kept.damping == 0.3) is (kind in CLOSED_FORMS)


def test_candidates_that_coincide_are_one() -> None:
    candidates = [
        wanted(each, OWN, None)
        for each in (TransformKind.ROTATION, TransformKind.NONE, Transform(kind=TransformKind.NONE, alpha=0.9))
    ]
    kept, places = distinct([*candidates, candidates[0]], None)
    assert [each.transform.kind for each in kept] == [TransformKind.ROTATION, TransformKind.NONE]
    assert places == (0, 1, 1, 0)


@pytest.mark.parametrize(("found", "count"), [(LEARNED, 2), (SEARCHED, 1)])
def test_learned_scales_are_others_than_those_of_their_policy(found: SitePlan, count: int) -> None:
    whole = Transform(statistic=L2, alpha=0.6, block_size=32)
    kept, _ = distinct([wanted(each, OWN, found) for each in (TransformKind.SMOOTH_ROTATION, whole)], found)
    assert len(kept) == count


def test_names() -> None:
    assert candidate_name(Transform(kind=TransformKind.CAT)) == "cat"
    assert candidate_name(Transform(kind=TransformKind.CAT, block_size=128, alpha=0.1)) == "cat(α 0.1, block 128)"
    assert candidate_name(OWN) == "smooth_rotation(l2, α 0.4, block 32)"
    assert candidate_name(OWN, LEARNED) == "smooth_rotation(learned, α 0.4, block 32)"
    quantile = Statistic(kind="quantile", q=0.997)
    assert candidate_name(Transform(statistic=quantile)) == "smooth_rotation(quantile 0.997, α 0.5)"
    capped = Transform(kind=TransformKind.WUSH, massive_cap=8.0, damping=0.05)
    assert candidate_name(capped) == "wush(damping 0.05, cap 8)"


def test_cost_is_relative_to_the_linears_and_spares_the_diagonal() -> None:
    linears = [weight(24, 96), weight(8, 96)]
    kronecker = Kronecker(left_AA=torch.eye(8), right_BB=torch.eye(12))
    assert relative_cost(SEARCHED, linears) == 0.0
    assert relative_cost(SitePlan(kind=TransformKind.KRONECKER, online=(kronecker,)), linears) == 20 / 32
    hadamard = Hadamard(order=96)
    both = SitePlan(kind=TransformKind.KRONECKER, online=(kronecker, hadamard))
    assert relative_cost(both, linears) == pytest.approx(20 / 32 + hadamard.cost(96) / (96 * 32))
