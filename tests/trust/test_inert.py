"""Names that mean something to a CI log, a parser or a terminal stay text."""

from xml.etree import ElementTree

import pytest

from moe_advisor.cli.outputs import render_one
from moe_advisor.compare.judge import compare
from moe_advisor.output import compare_text
from tests import kineto_builder as k
from tests.hostile.run_cases import program
from tests.output import result_builder

COMMANDS = "\n::set-output name=x::y\r\n::error file=a::b\u2028##[group]z ::add-mask::secret "


def poisoned(monkeypatch: pytest.MonkeyPatch, text: str) -> result_builder.Result:
    monkeypatch.setattr(result_builder, "HOSTILE", text)
    return result_builder.hostile()


def workflow_commands(text: str) -> list[str]:
    """Lines that a runner of GitHub or Azure would take for a command."""
    return [line for line in text.splitlines() if line.strip().startswith(("::", "##["))]


@pytest.mark.parametrize("kind", ["text", "markdown"])
def test_no_line_of_an_output_is_a_workflow_command(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = poisoned(monkeypatch, COMMANDS)
    text = render_one(result, kind)
    assert "set-output" in str(text)
    assert workflow_commands(str(text)) == []


def test_no_line_of_a_comparison_is_a_workflow_command(monkeypatch: pytest.MonkeyPatch) -> None:
    result = poisoned(monkeypatch, COMMANDS)
    found = compare([result], [result], ("::error::a", "::error::b"))
    assert workflow_commands(compare_text.text(found)) == []


def test_a_check_and_a_refusal_print_no_workflow_command(tmp_path) -> None:  # type: ignore[no-untyped-def]
    step = "iteration 1\n::set-output name=x::y"
    events = [k.annotation(step, 100, 900), k.call(110, 5, 1), k.kernel(COMMANDS, 130, 200, 1)]
    trace = k.write(tmp_path, k.trace(*events), "trace.json")
    (tmp_path / "b.toml").write_text('[[budget]]\nname = "a"\nexpect = "m.step_ms < 0.0"\n')
    for arguments in (
        ["check", str(trace), "--budgets", str(tmp_path / "b.toml")],
        ["whatif", str(trace)],
        ["compare", str(trace), str(trace)],
        ["analyze", "::error::no such\n::error::file"],
    ):
        ended = program(arguments)
        assert ended.code in (0, 1, 2)
        assert workflow_commands(ended.stdout + "\n" + ended.stderr) == []


@pytest.mark.parametrize("text", [COMMANDS, "\x00\x08]]><a b='c'>&x;\ufffe\ud800"])
def test_junit_is_well_formed_whatever_the_names(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\ud800" in text:
        text = text.replace("\ud800", "")  # JSON of a result can't hold half a character
    found = ElementTree.fromstring(str(render_one(poisoned(monkeypatch, text), "junit")))
    assert found.tag == "testsuites"
    assert not found.findall(".//a")
