"""The guarded choice over tables of scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_engine.search import SiteScores, guarded, search_layer, search_shared

positive = st.floats(0.1, 1e6)


def tables(count: int) -> st.SearchStrategy[dict[str, SiteScores]]:
    row = st.builds(
        lambda baseline, errors: SiteScores(baseline=baseline, errors=tuple(errors)),
        positive,
        st.lists(positive, min_size=count, max_size=count),
    )
    return st.dictionaries(st.text(min_size=1, max_size=3), row, min_size=1, max_size=5)


def test_shared_policy_has_the_lowest_mean_over_the_judges() -> None:
    rows = {
        "a": SiteScores(baseline=10.0, errors=(9.0, 5.0, 7.0)),
        "b": SiteScores(baseline=10.0, errors=(9.0, 9.5, 7.0)),
        "not a judge": SiteScores(baseline=10.0, errors=(0.1, 9.9, 9.9)),
    }
    choice = search_shared(rows, ["a", "b"])
    assert choice.index == 2
    assert choice.mean_error == 7.0
    assert choice.unguarded_means == (9.0, 7.25, 7.0)


def test_a_policy_that_one_layer_refuses_is_judged_with_that_layers_baseline() -> None:
    rows = {
        "a": SiteScores(baseline=10.0, errors=(9.0, 5.0)),
        "b": SiteScores(baseline=10.0, errors=(9.0, 1e6)),
    }
    choice = search_shared(rows, rows)
    assert choice.index == 1
    assert choice.mean_error == 7.5
    assert guarded(choice.index, rows["a"]) == 1
    assert guarded(choice.index, rows["b"]) is None


def test_a_layers_own_choice() -> None:
    assert search_layer(SiteScores(baseline=10.0, errors=(9.0, 5.0, 5.0))) == 1
    assert search_layer(SiteScores(baseline=4.0, errors=(9.0, 5.0))) is None
    assert search_layer(SiteScores(baseline=5.0, errors=(9.0, 5.0))) == 1


@given(rows=tables(3))
def test_no_layer_ends_above_its_baseline_and_no_other_policy_is_better(rows: dict[str, SiteScores]) -> None:
    def outcome(index: int) -> list[float]:
        return [row.baseline if guarded(index, row) is None else row.errors[index] for row in rows.values()]

    choice = search_shared(rows, rows)
    assert all(error <= row.baseline for error, row in zip(outcome(choice.index), rows.values(), strict=True))
    assert sum(outcome(choice.index)) == pytest.approx(min(sum(outcome(i)) for i in range(3)))


def test_somebody_has_to_judge() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        search_shared({"a": SiteScores(baseline=1.0, errors=(1.0,))}, [])
    with pytest.raises(ValueError, match="longer"):
        search_shared(
            {"a": SiteScores(baseline=1.0, errors=(1.0,)), "b": SiteScores(baseline=1.0, errors=(1.0, 2.0))}, ["a", "b"]
        )
