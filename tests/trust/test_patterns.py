"""A user's regular expression costs time linear in the name, or is refused with the reason."""

import time
from pathlib import Path

import pytest

from moe_advisor.errors import ConfigError
from moe_advisor.patterns import Screen, UserPattern, user_pattern
from tests import kineto_builder
from tests.hostile.cases import steps
from tests.hostile.run_cases import program

LONG = "a" * 4_000 + "b"
CATASTROPHIC = ("(a+)+$", "(a|aa)+$", "(a*)*c", "a*a*a*a*a*c", "^(a|a?)+$")


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_a_pattern_that_backtracks_for_ages_elsewhere_is_quick(pattern: str) -> None:
    begun = time.process_time()
    assert not user_pattern(pattern, "--step-pattern").search(LONG)
    assert time.process_time() - begun < 20  # elsewhere: ages


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "unclosed group"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        ("(a{50}){50}", "multiply to 2500"),
        ("a" * 1_001, "1001 characters"),
        (r"(\w{0,30}){0,30}x", "size limit"),
    ],
)
def test_what_the_engine_can_not_bound_is_refused_with_the_reason(pattern: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        user_pattern(pattern, "--step-pattern")
    assert len(str(caught.value).splitlines()) == 1


def test_only_the_beginning_of_a_name_is_matched() -> None:
    assert not user_pattern("end$", "x").search("a" * 5_000 + "end")
    assert user_pattern("^a+$", "x").search("a" * 5_000)


def test_a_screen_changes_no_answer() -> None:
    patterns = ("^own_", "gemm(_x)?$", "(?i)SORT")
    screen = Screen(patterns)
    for name in ("own_a", "a_gemm_x", "radixsort", "copy", ""):
        for one in patterns:
            assert UserPattern(one, screen).search(name) == UserPattern(one).search(name)


@pytest.mark.parametrize("option", ["--step-pattern", "--taxonomy"])
def test_the_options_end_in_time(option: str, tmp_path: Path) -> None:
    events = [*steps(), kineto_builder.kernel("a" * 3_000 + "!", 400, 20)]
    events.append(kineto_builder.annotation("a" * 3_000 + "!", 400, 20))
    trace = kineto_builder.write(tmp_path, kineto_builder.trace(*events), "t.json.gz")
    own = tmp_path / "own.yaml"
    own.write_text("kernels: [{id: a, pattern: '(a+)+$', nature: gemm}]")
    given = "(a+)+$" if option == "--step-pattern" else str(own)
    ended = program(["analyze", "-q", str(trace), option, given, "-o", str(tmp_path / "o")])
    assert ended.code in (0, 2), ended.stderr
    assert ended.code == (2 if option == "--step-pattern" else 0), ended.stderr
