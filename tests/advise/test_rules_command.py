"""`moe-advisor rules`: list, show, validate, test, docs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_advisor.cli.rules import rules
from moe_advisor.errors import GateFailed, RuleError

MINIMAL = """\
id: slow-thing
title: Make it fast
wall: compute_host
severity: low
confidence: low
phase: profile
when: m.step_ms > 1.0
finding: It takes {m.step_ms:.1f} ms.
passes: It is fast.
changes:
  - {key: moe_permute_fusion, to: true}
estimate: {whatif: permute-fusion}
verify: Measure.
why: Because.
cases:
  - {name: slow, expect: finding, m: {step_ms: 2}}
  - {name: fast, expect: pass, m: {step_ms: 0.5}}
  - {name: unknown, expect: not_measured}
"""


def run(*args: str) -> str:
    result = CliRunner().invoke(rules, args, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_list_has_every_topic_and_the_count() -> None:
    output = run("list")
    assert "overlap:\n" in output
    assert "exposed-expert-all-to-all" in output
    assert output.rstrip().endswith("rules")


def test_show_prints_what_why_when_not_apply_verify_and_sources() -> None:
    output = run("show", "exposed-expert-all-to-all")
    for heading in ("What it finds", "Why it matters", "When not", "How to apply", "How to verify"):
        assert f"## {heading}" in output
    assert "41.25 s to 31.31 s" in output
    assert "822 ms to 827 ms" in output


def test_show_of_an_unknown_rule_suggests_the_nearest() -> None:
    with pytest.raises(RuleError, match="did you mean 'imbalanced-experts'"):
        CliRunner().invoke(rules, ["show", "inbalanced-experts"], catch_exceptions=False)


def test_validate_and_test_take_a_folder(tmp_path: Path) -> None:
    (tmp_path / "slow-thing.yaml").write_text(MINIMAL)
    assert run("validate", str(tmp_path)) == "1 rule files are valid\n"
    assert "1 rules, 3 cases, 0 failed" in run("test", str(tmp_path))


def test_a_case_that_does_not_hold_fails_the_command(tmp_path: Path) -> None:
    broken = MINIMAL.replace("step_ms: 0.5", "step_ms: 5")
    (tmp_path / "slow-thing.yaml").write_text(broken)
    with pytest.raises(GateFailed, match="1 of 3 rule cases failed"):
        CliRunner().invoke(rules, ["test", str(tmp_path)], catch_exceptions=False)


def test_docs_are_written_checked_and_cleared_of_gone_rules(tmp_path: Path) -> None:
    run("docs", "-o", str(tmp_path))
    assert (tmp_path / "exposed-expert-all-to-all.md").is_file()
    assert "up to date" in run("docs", "-o", str(tmp_path), "--check")
    (tmp_path / "gone.md").write_text("old")
    with pytest.raises(GateFailed, match="out of date"):
        CliRunner().invoke(rules, ["docs", "-o", str(tmp_path), "--check"], catch_exceptions=False)
    run("docs", "-o", str(tmp_path))
    assert not (tmp_path / "gone.md").exists()


def test_schema_is_json() -> None:
    assert json.loads(run("schema"))["title"] == "moe-advisor rule"
