"""Expressions: three-valued answers, limits, and a child process for foreign rules."""

import subprocess
import sys

import pytest

from moe_advisor.advise.expressions import (
    MAX_SOURCE,
    Truth,
    check_source,
    evaluate,
    names,
    plain,
)
from moe_advisor.advise.sandbox import Sandbox

CONTEXT = {"m": {"a": 2, "b": 0.5}, "c": {"flag": True, "none": None, "modules": ("x", "y")}}


@pytest.mark.parametrize(
    ("source", "truth"),
    [
        ("m.a > 1.0", Truth.YES),
        ("m.a < 1.0", Truth.NO),
        ("m.a * m.b == 1.0", Truth.YES),
        ("'x' in c.modules", Truth.YES),
        ("c.none == null", Truth.YES),
        ("m.gone > 1.0", Truth.UNKNOWN),
        ("m.gone > 1.0 && m.a < 1.0", Truth.NO),
        ("m.gone > 1.0 || m.a > 1.0", Truth.YES),
        ("hw.gone == 'H100'", Truth.UNKNOWN),
        ("has(m.gone) && m.gone > 1.0", Truth.NO),
        ("c.none > 1.0", Truth.ERROR),
        ("m.a + 1.0", Truth.ERROR),
        ("'m.gone' == 'm.gone'", Truth.YES),
    ],
)
def test_an_absent_name_is_unknown_only_where_the_answer_depends_on_it(
    source: str, truth: Truth
) -> None:
    assert evaluate(source, CONTEXT).truth is truth


def test_an_unknown_answer_names_what_is_missing_and_not_what_is_guarded() -> None:
    answer = evaluate("has(t.x) || (m.gone > 1.0 && m.a > 1.0 && c.other == true)", CONTEXT)
    assert set(answer.missing) == {"m.gone", "c.other"}


def test_names_ignore_strings_and_keep_order() -> None:
    assert names("m.b > 1.0 && 'c.no' != '' && t.x && m.b < 2.0") == ("m.b", "t.x")


def test_numbers_go_in_as_floats_and_long_lists_are_cut() -> None:
    assert plain(3) == 3.0
    assert plain(True) is True
    assert len(plain(list(range(10_000)))) == 256


def test_a_source_is_refused_for_length_depth_syntax_and_unknown_names() -> None:
    assert "at most 2000" in (check_source("true" + " && true" * MAX_SOURCE) or "")
    deep = "c.a.all(x, c.b.all(y, c.d.all(z, x == y)))"
    assert "nested macros" in (check_source(deep) or "")
    assert "not a CEL expression" in (check_source("m.a >") or "")
    assert "unknown name 'q'" in (check_source("q.a > 1.0") or "")
    assert check_source("c.modules.all(x, x in ['x', 'y'])") is None


def test_the_sandbox_gives_the_same_answers_as_this_process() -> None:
    with Sandbox() as sandbox:
        for source in ("m.a > 1.0", "m.a < 1.0", "m.gone > 1.0", "c.none > 1.0"):
            assert sandbox(source, CONTEXT) == evaluate(source, CONTEXT)


def test_the_sandbox_ends_an_expression_that_takes_too_long_and_goes_on() -> None:
    numbers = {"c": {"l": list(range(256))}}
    slow = "c.l.all(x, c.l.all(y, c.l.all(z, x + y + z >= 0.0)))"
    with Sandbox(deadline_s=1.0) as sandbox:
        assert sandbox(slow, numbers).truth is Truth.ERROR
        assert sandbox("m.a > 1.0", CONTEXT).truth is Truth.YES


def test_the_sandbox_survives_an_expression_that_exhausts_memory() -> None:
    text = {"c": {"s": "x" * 1_000_000, "l": list(range(200))}}
    with Sandbox(deadline_s=5.0) as sandbox:
        answer = sandbox("size(c.l.map(x, c.l.map(y, c.s + c.s + c.s))) > 0", text)
        assert answer.truth is Truth.ERROR
        assert sandbox("true", {}).truth is Truth.YES


def test_gates_may_use_further_names_that_rules_may_not() -> None:
    source = "'a' in findings && !capture.complete"
    extra = {"findings": ["a"], "capture": {"complete": False}}
    assert evaluate(source, {}, extra).truth is Truth.YES
    assert check_source(source, extra) is None
    assert "unknown name" in (check_source(source) or "")


def test_expressions_do_not_wait_for_cel_s_own_command_line() -> None:
    code = (
        "import sys; from moe_advisor.advise.expressions import Truth, evaluate;"
        "assert evaluate('m.a > 1.0', {'m': {'a': 2}}).truth is Truth.YES;"
        "assert 'cel' in sys.modules and 'prompt_toolkit' not in sys.modules;"
        "import cel.cli; assert cel.cli.__file__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
