"""Patterns: what each form matches, what is refused and how, and that no pattern takes long."""

import re
import time

import pytest

from quant_engine.policy.patterns import Names, PatternError, check_pattern, matches

NAME = "model.layers.0.mlp.down_proj"
LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MANY = [f"model.layers.{block}.{leaf}" for block in range(2_600) for leaf in LEAVES]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("down_proj", True),
        (NAME, True),
        ("proj", False),
        ("mlp.down_proj", False),
        ("Linear", True),
        ("*.down_proj", True),
        ("down_*", True),
        ("model.layers.0.*", True),
        ("model.layers.[0-3].*", True),
        ("model.layers.[!0-3].*", False),
        ("model.layers.?.mlp.*", True),
        ("*.mlp.*", True),
        ("*.self_attn.*", False),
        ("model.layers.1*", False),
        ("layers.0.*", False),
        (r"re:.*layers\.0\..*", True),
        (r"re:layers\.0", False),
        (r"re:^model.*down_proj$", True),
        ("re:(?i).*DOWN_PROJ", True),
        (r"re:.*\.(0|1)\.mlp\.(up|down)_proj", True),
        ("re:.*[qkv]_proj", False),
        ("re:", False),
    ],
)
def test_one_name_and_many_names_agree_on_what_a_pattern_matches(pattern: str, expected: bool) -> None:
    check_pattern(pattern)
    assert matches(pattern, NAME) is expected
    assert Names([NAME]).any_match(pattern) is expected
    assert Names(["other", NAME, "another"]).any_match(pattern) is (expected or matches(pattern, "other"))


def test_no_pattern_matches_beyond_the_end_of_a_name() -> None:
    names = Names(["model.a", "model.b"])
    for pattern in (r"re:model\.a[^x]model\.b", r"re:(?s)model\.a.model\.b", "re:model.a\\smodel.b", "re:a|b", "*a*b"):
        assert not names.any_match(pattern)
    assert not Names([]).any_match("re:.*")


@pytest.mark.parametrize(
    ("pattern", "code", "told"),
    [
        ("re:(?u)(?a)x", "bad_pattern", "a flag or a group at character 1"),
        ("re:x(?=y)", "bad_pattern", "a look-ahead at character 2, .* linear time"),
        ("re:(?!y)x", "bad_pattern", "a look-ahead"),
        ("re:(?<=x)y", "bad_pattern", "a look-behind"),
        ("re:(?<!x)y", "bad_pattern", "a look-behind"),
        (r"re:(a)\1", "bad_pattern", "a back reference at character 4"),
        ("re:(?P<n>a)(?P=n)", "bad_pattern", "a back reference"),
        ("re:(?>a)b", "bad_pattern", "an atomic group"),
        ("re:a++", "bad_pattern", "possessive"),
        ("re:(", "bad_pattern", r"a '\(' without its '\)'"),
        ("re:a)(?:b", "bad_pattern", r"a '\)' without its '\('"),
        ("re:[", "bad_pattern", r"a '\[' without"),
        ("re:*", "bad_pattern", "nothing in front"),
        ("re:a{1000}{1000}", "bad_pattern", "Correct the pattern"),
        ("re:((a{100}){100}){100}", "bad_pattern", "repeats too much"),
        ("re:a{99999999999}", "bad_pattern", "repeats too much"),
        ("re:(.?){900}", "bad_pattern", "repeats too much"),
        ("re:" + "(" * 250, "bad_pattern", "without its"),
        (r"re:down_proj\Z", "bad_pattern", "an escape"),
        (r"re:\Amodel.*", "bad_pattern", "one whole name"),
        ("re:(?m)^down", "bad_pattern", "one whole name"),
        ("re:(?i-m:^down)", "bad_pattern", "one whole name"),
        ("re:größe", "bad_pattern", "printable ASCII"),
        ("re:a\nb", "bad_pattern", "printable ASCII"),
        ("down proj", "bad_pattern", "A name has letters"),
        ("(q|k)_proj", "bad_pattern", "put 're:' in front"),
        ("down_proj[", "bad_pattern", "A glob has"),
        ("model.layers.[9-0].*", "bad_pattern", "The glob has a set of characters whose range is not valid[.]"),
        ("*.(q|k)_proj", "bad_pattern", "put 're:' in front"),
        ("LlamaDecoderLayer", "class_name", "Linear, written so"),
        ("Embedding", "class_name", "never quantized"),
        ("nn.RMSNorm", "class_name", "Linear"),
    ],
)
def test_what_can_not_be_matched_is_refused_with_its_kind_and_a_remedy(pattern: str, code: str, told: str) -> None:
    with pytest.raises(PatternError) as refused:
        check_pattern(pattern)
    assert refused.value.code == code
    assert re.search(told, refused.value.detail)
    # Nothing of the pattern that is more than punctuation comes back.
    assert not [word for word in re.findall(r"[A-Za-z_]{6,}", pattern) if word in refused.value.detail]


def test_a_pattern_that_can_not_run_is_refused_wherever_it_is_used() -> None:
    for pattern in ("re:(", "re:a(?=b)", "*[", "re:(.?){900}"):
        with pytest.raises(PatternError):
            matches(pattern, NAME)
        with pytest.raises(PatternError):
            Names([NAME]).any_match(pattern)


def test_sixty_four_patterns_over_ten_thousand_names_take_a_moment() -> None:
    names = Names(MANY)
    assert len(names.names) > 10_000
    patterns = [f"re:(([a-z0-9_.])+)+!{index}" for index in range(24)]
    patterns += [f"re:.*[a-m].{{20}}{index}" for index in range(20)]
    patterns += [f"re:(.?){{100}}!{index}" for index in range(20)]
    started = time.process_time()
    for pattern in patterns:
        check_pattern(pattern)
        assert not names.any_match(pattern)
    # About 0.1 s on a quiet machine; the bound is for one that is not.
    assert time.process_time() - started < 2.0
