"""The nearest known name: typos find theirs, foreign words find none, and the work is bounded."""

import time

import pytest

from quant_engine.policy.nearest import nearest

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PRESETS = ("rtn-w4a4", "smoothrot-w4a4", "trainable-smoothrot-w4a4", "w4a16", "w8a8", "fp8", "nvfp4", "mxfp4")


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("down_porj", LINEARS, "down_proj"),
        ("downproj", LINEARS, "down_proj"),
        ("DOWN_PROJ", LINEARS, "down_proj"),
        ("q_porj", LINEARS, "q_proj"),
        ("down", LINEARS, "down_proj"),
        ("up", LINEARS, "up_proj"),
        ("w4a61", PRESETS, "w4a16"),
        ("nvpf4", PRESETS, "nvfp4"),
        ("trainable-smoothrot", PRESETS, "trainable-smoothrot-w4a4"),
        ("rtn", PRESETS, "rtn-w4a4"),
        ("fp-8", PRESETS, "fp8"),
        ("Linear", LINEARS, None),
        ("lm_head", LINEARS, None),
        ("xyz", PRESETS, None),
        ("", LINEARS, None),
        ("weights", (), None),
    ],
)
def test_a_typo_means_the_name_most_like_it(word: str, known: tuple[str, ...], expected: str | None) -> None:
    assert nearest(word, known) == expected


def test_of_equally_near_names_the_first_is_returned() -> None:
    assert nearest("x_proj", LINEARS) == "q_proj"
    assert nearest("x_proj", reversed(LINEARS)) == "o_proj"


def test_a_beginning_of_several_names_means_none_of_them() -> None:
    assert nearest("ab", ("ab-one-of-them", "ab-the-other-one")) is None


def test_the_work_is_bounded_whatever_a_request_sends() -> None:
    started = time.process_time()
    assert nearest("x" * 2_000_000, LINEARS) is None
    # The slowest words have the letters of every known name in another order.
    names = [f"model.layers.{block}.self_attn.q_proj" for block in range(3_000)]
    assert nearest("jorp_q.nttataflesa.0.sreyal.ledom" * 2, names) is None
    assert time.process_time() - started < 2.0


def test_names_beyond_the_bound_are_not_read() -> None:
    names = iter(f"name{index}" for index in range(3_000))
    assert nearest("unlike", names) is None
    assert next(names) == "name500"
