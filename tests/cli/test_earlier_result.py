"""An earlier result as input: what can't act on it any more is said, not passed over."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_advisor.cli import cli
from moe_advisor.errors import ConfigError, InputError
from moe_advisor.output import json_output
from tests.output.result_builder import balanced


@pytest.fixture
def earlier(tmp_path: Path) -> str:
    path = tmp_path / "run.json"
    path.write_bytes(json_output.encode(balanced()))
    return str(path)


@pytest.mark.parametrize(
    "verb", [["analyze"], ["check"], ["history", "add", "runs.db"], ["compare", "run.json"]]
)
@pytest.mark.parametrize("option", [["--set", "ep=8"], ["--steps", "0:1"], ["--rules", "mine"]])
def test_an_analysis_option_beside_a_result_is_refused(
    verb: list[str],
    option: list[str],
    earlier: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moe-advisor.toml").write_text('[[budget]]\nname = "a"\nexpect = "m.step_ms > 0.0"\n')
    done = CliRunner().invoke(cli, [*verb, earlier, *option], standalone_mode=False)
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == (
        f"run.json: is an earlier result, which {option[0]} can't change: give the trace it "
        "was made from"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moe-advisor.toml", "run.json"]


def test_the_same_option_from_the_environment_is_for_traces_and_stays_unsaid(
    earlier: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        cli,
        ["analyze", earlier, "-q", "-o", str(tmp_path / "out")],
        env={"MOE_ADVISOR_ANALYZE_STEPS": "0:1"},
        standalone_mode=False,
    )
    assert done.exception is None
    assert (tmp_path / "out" / "report.html").exists()


def test_whatif_says_that_it_needs_the_trace_of_a_result(earlier: str) -> None:
    done = CliRunner().invoke(cli, ["whatif", earlier], standalone_mode=False)
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith("run.json: is an earlier result and a trace is")
