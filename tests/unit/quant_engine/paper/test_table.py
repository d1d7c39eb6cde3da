"""The report's arithmetic, by hand."""

import json

import pytest

from tests.unit.quant_engine.paper.reports import small_report


def test_the_table_has_a_row_per_selected_layer_and_the_chosen_member_of_each_family() -> None:
    table = small_report()["table"]
    assert table["columns"] == ["SmoothRot", "N2", "N3", "T1", "T2"]
    first, second = table["rows"]
    assert (first["layer"], first["block"], first["group"]) == ("a", 3, "critical")
    assert [first[name] for name in table["columns"]] == pytest.approx([10.0, 9.0, 8.1, 6.0, 4.0])
    assert [second[name] for name in table["columns"]] == pytest.approx([4.0, 3.6, 3.24, 6.0, 4.0])
    assert table["mean"]["N3"] == pytest.approx((8.1 + 3.24) / 2)
    assert table["gain_percent"]["N3"] == pytest.approx(19.0)
    assert table["gain_percent"]["SmoothRot"] == 0.0


def test_a_family_says_what_either_split_would_have_chosen() -> None:
    t1 = small_report()["families"]["T1"]
    assert t1["judged_on"] == "validation"
    assert t1["chosen"] == t1["best_by_validation"]
    assert (t1["best_by_validation"]["learning_rate"], t1["best_by_validation"]["mean_error"]) == (0.02, 6.0)
    assert (t1["best_by_test"]["learning_rate"], t1["best_by_test"]["mean_error"]) == (0.01, 5.0)


def test_explosions_are_listed_once() -> None:
    report = small_report()
    assert report["exploded"] == [{"alpha": 0.5, "q": 0.9, "layers": ["b"]}]
    row = next(row for row in report["families"]["N2"]["rows"] if row["q"] == 0.9)
    assert (row["exploded"], row["errors"]) == (["b"], {"a": 0.1, "b": 8.1})


def test_t3_is_reported_as_replayed_and_as_guarded() -> None:
    replay = small_report()["T3"]
    assert [(row["layer"], row["kept"]) for row in replay["rows"]] == [("b", False), ("a", True)]
    assert [row["gain_percent"] for row in replay["rows"]] == pytest.approx([-25.0, 40.0])
    assert (replay["baseline_mean_error"], replay["mean_error"], replay["guarded_mean_error"]) == (7.0, 5.5, 5.0)
    assert replay["guarded_gain_percent"] == pytest.approx(100 * 2 / 7)
    assert replay["configuration"] == {"start": {"alpha": 0.4, "q": 0.99}, "learning_rate": 0.02}


def test_the_published_numbers_agree_with_themselves() -> None:
    published = small_report()["published"]
    errors = published["selected_mean_error"]
    for family, gain in published["gain_percent"].items():
        assert 100 * (1 - errors[family] / errors["SmoothRot"]) == pytest.approx(gain, abs=0.06)
    blocks = published["table"]["SmoothRot"].values()
    assert sum(blocks) / len(blocks) == pytest.approx(errors["SmoothRot"], abs=0.005)
    assert 100 * (1 - published["T3"]["mean_error"] / published["T3"]["baseline_mean_error"]) == pytest.approx(
        published["T3"]["gain_percent"], abs=0.05
    )


def test_the_report_is_plain_json() -> None:
    report = small_report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
