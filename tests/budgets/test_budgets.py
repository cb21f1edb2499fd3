"""Budgets: what passes, what fails, and what can't be told is never a pass."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from moe_advisor.budgets import judge, load
from moe_advisor.budgets.model import Budget
from moe_advisor.cli.check import check
from moe_advisor.cli.gate import check_gates
from moe_advisor.errors import ConfigError, GateFailed
from moe_advisor.output import budget_report, json_output, openmetrics
from moe_advisor.result import MetricValue, RankValue, Result
from tests.output.result_builder import balanced


def one(expect: str, **more) -> Budget:
    return Budget(name="a", expect=expect, source="moe-advisor.toml", **more)


def with_metric(name: str, **values) -> Result:
    result = balanced()
    metric = MetricValue(**({"status": "measured", "unit": "ms/step"} | values))
    return msgspec.structs.replace(result, metrics=result.metrics | {name: metric})


def outcome(expect: str, result: Result, **more) -> str:
    return judge.judge([one(expect, **more)], result)[0].outcome


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("m.step_ms <= 100.0", "pass"),
        ("m.step_ms <= 99.9", "fail"),
        ("m.step_ms <= 100", "pass"),
        ("m.mfu >= 0.3", "not_measured"),
        ("m.step_ms <= 100.0 || m.mfu >= 0.3", "pass"),
        ("m.step_ms <= 99.0 && m.mfu >= 0.3", "fail"),
    ],
)
def test_an_expression_passes_fails_or_is_not_measured(expect: str, said: str) -> None:
    result = with_metric("step_ms", value=100.0)
    missing = MetricValue(status="not_measured", value=None, unit="share", reason="no log")
    result = msgspec.structs.replace(result, metrics=result.metrics | {"mfu": missing})
    assert outcome(expect, result) == said


def test_a_budget_that_divides_the_range_of_an_estimate_is_not_measured() -> None:
    result = with_metric("step_ms", status="estimated", value=5.0, low=2.0, high=8.0)
    assert outcome("m.step_ms <= 6.0", result) == "not_measured"
    assert outcome("m.step_ms <= 8.0", result) == "pass"
    assert outcome("m.step_ms <= 1.0", result) == "fail"


def test_an_inconclusive_verdict_is_no_verdict_unless_the_budget_names_it() -> None:
    result = balanced()
    walls = msgspec.structs.replace(result.walls, verdict="inconclusive")
    result = msgspec.structs.replace(result, walls=walls)
    assert outcome('walls.verdict != "memory"', result) == "not_measured"
    assert outcome('walls.verdict in ["inconclusive", "compute_host"]', result) == "pass"


def test_a_rule_that_could_not_be_measured_is_no_absent_finding() -> None:
    result = balanced()
    rule = msgspec.structs.replace(result.rules[0], id="some-rule", outcome="not_measured")
    unknown = msgspec.structs.replace(result, rules=[rule])
    passed = msgspec.structs.replace(result, rules=[msgspec.structs.replace(rule, outcome="pass")])
    found = msgspec.structs.replace(
        result, rules=[msgspec.structs.replace(rule, outcome="finding")]
    )
    for expect in ('!("some-rule" in findings)', '!findings.exists(f, f == "some-rule")'):
        assert outcome(expect, unknown) == "not_measured"
        assert outcome(expect, passed) == "pass"
        assert outcome(expect, found) == "fail"


def test_a_scope_of_rank_or_step_names_the_places_that_fail() -> None:
    ranks = [RankValue(rank=0, value=10.0, steps=[9.0, 11.0])]
    ranks.append(RankValue(rank=3, value=20.0, steps=[20.0, 20.0]))
    result = with_metric("step_ms", value=15.0, per_rank=ranks)
    assert outcome("m.step_ms <= 15.0", result) == "pass"
    (judged,) = judge.judge([one("m.step_ms <= 15.0", scope="rank")], result)
    assert (judged.outcome, judged.where) == ("fail", ("rank 3",))
    (judged,) = judge.judge([one("m.step_ms <= 10.0", scope="step")], result)
    assert judged.outcome == "fail"
    assert [place.split(",")[0] for place in judged.where] == ["rank 0", "rank 3", "rank 3"]


def test_a_metric_without_rank_values_is_not_measured_per_rank() -> None:
    result = with_metric("expert_token_imbalance", value=1.2)
    expect = "m.step_ms > 0.0 && m.expert_token_imbalance < 2.0"
    assert outcome(expect, result) == "pass"
    assert outcome(expect, result, scope="rank") == "not_measured"


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ("m.stp_ms < 1.0", "did you mean m.step_ms?"),
        ("walls.verdct == 'memory'", "did you mean walls.verdict?"),
        ("walls.verdict == 'memry'", "did you mean 'memory'?"),
        ("capture.complet", "did you mean capture.complete?"),
        ("c.expert_model_paralel_size > 1.0", "did you mean c.expert_model_parallel_size?"),
        ("m.step_ms", "not true/false"),
        ("m.step_ms <", "not a CEL expression"),
        ("x.y > 1.0", "unknown name"),
        ("k.limit > 1.0", "k belongs to rules"),
        ("'no-such-rule' in findings", "there is no rule"),
    ],
)
def test_what_does_not_exist_is_an_error_with_a_suggestion(expect: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        judge.judge([one(expect)], balanced())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ("m.stp_ms < 1.0", "did you mean m.step_ms?"),
        ("c.expert_model_paralel_size > 1.0", "did you mean c.expert_model_parallel_size?"),
        ("!('exposed-expert-alltoall' in findings)", "did you mean 'exposed-expert-all-to-all'?"),
        ("m.step_ms <", "not a CEL expression"),
    ],
)
def test_a_slip_in_a_budget_is_found_before_any_trace_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect: str, words: str
) -> None:
    limits, trace = tmp_path / "b.toml", tmp_path / "run.json"
    limits.write_text(f'[[budget]]\nname = "a"\nexpect = "{expect}"\n')
    trace.write_text('{"traceEvents": []}')

    def never(*_: object) -> None:
        raise AssertionError("read the trace")

    monkeypatch.setattr("moe_advisor.analysis.analyze", never)
    done = CliRunner().invoke(check, [str(trace), "--budgets", str(limits)])
    assert isinstance(done.exception, ConfigError), done.exception
    assert words in str(done.exception)


@pytest.mark.parametrize(
    ("expression", "code", "words"),
    [
        ('"launch-bound-host" in findings', 1, "could not be measured (rule launch-bound-host"),
        ('walls.verdict == "memory"', 1, "could not be measured (the verdict is inconclusive"),
        ("m.mfu < 0.4", 1, "could not be measured"),
        ("m.step_ms > 0.0", 1, "is true (step_ms = "),
        ("m.step_ms < 0.0", 0, ""),
        ("'no-such-rule' in findings", 2, "there is no rule 'no-such-rule'"),
    ],
)
def test_a_gate_fails_closed_as_a_budget_does(expression: str, code: int, words: str) -> None:
    result = balanced()
    rule = msgspec.structs.replace(result.rules[0], id="launch-bound-host", outcome="not_measured")
    walls = msgspec.structs.replace(result.walls, verdict="inconclusive")
    missing = MetricValue(status="not_measured", value=None, unit="share", reason="no log")
    result = msgspec.structs.replace(
        result, rules=[rule], walls=walls, metrics=result.metrics | {"mfu": missing}
    )
    if not code:
        check_gates(result, [expression])
        return
    with pytest.raises(GateFailed if code == 1 else ConfigError) as error:
        check_gates(result, [expression])
    assert f"--fail-on {expression!r}" in str(error.value)
    assert words in str(error.value)


def test_two_formats_never_share_a_place(tmp_path: Path) -> None:
    run, limits = write_run(tmp_path, "expect = 'm.step_ms > 0.0'")
    common = [run, "--budgets", limits, "--force"]
    place = str(tmp_path / "x")
    done = CliRunner().invoke(
        check, [*common, "--format", f"json={place}", "--format", f"junit={place}"]
    )
    assert "two formats would go there" in str(done.exception)
    done = CliRunner().invoke(check, [*common, "-o", "-"])
    assert "writes one format to standard output" in str(done.exception)
    done = CliRunner().invoke(check, [*common, "-o", "-", "--format", "json"])
    assert json.loads(done.stdout)["passed"]


def test_an_expression_of_endless_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 2000"):
        judge.judge([one("m.step_ms > 0.0" + " && true" * 400)], balanced())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[budget]", "not TOML"),
        ("", "holds no [[budget]]"),
        ("budget = 3", "holds no [[budget]]"),
        ("[[bugdet]]\nname='a'", "did you mean 'budget'?"),
        ("[[budget]]\nname='a'\nexpct='true'", "did you mean 'expect'?"),
        ("[[budget]]\nname='a'", "expect is missing"),
        ("[[budget]]\nexpect='true'", "name is missing"),
        ("[[budget]]\nname='a'\nexpect=true", "expect is bool"),
        ("[[budget]]\nname='a'\nexpect='true'\nlevel='eror'", "did you mean 'error'?"),
        ("[[budget]]\nname='a'\nexpect='true'\n" * 2, "two budgets are named 'a'"),
        ("\xff", "moe-advisor.toml: not"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "moe-advisor.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as error:
        load.load(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_budgets_are_found_here_or_above_and_the_own_file_goes_first(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    project = tmp_path / "pyproject.toml"
    project.write_text("[[tool.moe-advisor.budget]]\nname = 'a'\nexpect = 'true'\n")
    assert load.find(inner) == project
    assert load.load(project)[0].line == 2
    own = tmp_path / "moe-advisor.toml"
    own.write_text("[[budget]]\nname = 'b'\nexpect = 'true'\n")
    assert load.find(inner) == own


def write_run(folder: Path, *budgets: str) -> tuple[str, str]:
    run, limits = folder / "run.json", folder / "limits.toml"
    run.write_bytes(json_output.encode(balanced()))
    rows = [f"[[budget]]\nname = 'b{i}'\n{text}\n" for i, text in enumerate(budgets)]
    limits.write_text("".join(rows))
    return str(run), str(limits)


@pytest.mark.parametrize(
    ("budget", "fails"),
    [
        ("expect = 'm.step_ms > 0.0'", False),
        ("expect = 'm.step_ms < 0.0'", True),
        ("expect = 'm.step_ms < 0.0'\nlevel = 'warn'", False),
        ("expect = 't.no_such_fact > 0.0'", True),
        ("expect = 't.no_such_fact > 0.0'\nif_not_measured = 'pass'", False),
    ],
)
def test_only_missed_errors_fail_the_check(tmp_path: Path, budget: str, fails: bool) -> None:
    run, limits = write_run(tmp_path, budget)
    done = CliRunner().invoke(check, [run, "--budgets", limits])
    assert isinstance(done.exception, GateFailed) == fails
    assert fails or done.exit_code == 0


def test_all_formats_tell_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    run, limits = write_run(
        tmp_path,
        "expect = 'm.step_ms > 0.0'",
        "expect = 'm.step_ms < 0.0'\nmessage='<Slow> & \"so\"'",
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(check, [run, "--budgets", limits, "-o", str(out)])
    assert isinstance(done.exception, GateFailed)
    suite = ET.parse(out / "junit.xml").getroot()
    rules = balanced().rules
    cases = suite.findall(".//testcase")
    assert len(cases) == int(suite.get("tests", "0")) == 2 + len(rules)
    (failure,) = suite.findall(".//failure")
    assert failure.text == '<Slow> & "so"'
    issues = json.loads((out / "gl-code-quality-report.json").read_text())
    assert issues[0]["check_name"] == "budget/b1"
    assert issues[0]["location"] == {"path": "limits.toml", "lines": {"begin": 5}}
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)
    checked = json.loads((out / "check.json").read_text())
    assert not checked["passed"]
    assert [row["outcome"] for row in checked["budgets"]] == ["pass", "fail"]
    assert (tmp_path / "step.md").read_text().startswith("## Budgets: 1 of 2 budgets missed")
    metrics = (out / "metrics.txt").read_text()
    met = [line for line in metrics.splitlines() if line.startswith("moe_advisor_budget_met")]
    assert [line.partition("budget=")[2] for line in met] == ['"b0"} 1.0', '"b1"} 0.0']


def test_openmetrics_leaves_out_what_was_not_measured_and_ends_as_it_must() -> None:
    result = with_metric("step_ms", value=12.5, per_rank=[RankValue(rank=1, value=12.5)])
    missing = MetricValue(status="not_measured", value=None, unit="share", reason="no log")
    result = msgspec.structs.replace(result, metrics=result.metrics | {"mfu": missing})
    text = openmetrics.render(result)
    assert text.endswith("# EOF\n")
    assert 'status="measured"} 12.5\n' in text
    assert 'status="measured",rank="1"} 12.5\n' in text
    assert "moe_advisor_mfu" not in text
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_markdown_and_text_cannot_be_broken_by_a_message() -> None:
    hostile = one("m.step_ms < 0.0", message="a|b\x1b[31m `c` @all <b>")
    judged = judge.judge([hostile], balanced())
    markdown = budget_report.markdown(judged)
    assert "\x1b" not in markdown + budget_report.text(judged)
    assert "a\\|b" in markdown
    assert "\\<b\\>" in markdown
