"""Every shipped rule: valid, with cases that hold, keys that exist, and figures on both sides."""

import json
from pathlib import Path

import pytest

from moe_advisor.advise import checks, load_rules
from moe_advisor.advise.cases import run_case
from moe_advisor.advise.docs import stale
from moe_advisor.advise.expressions import check_source
from moe_advisor.advise.rule import Rule, all_changes, read_folder
from moe_advisor.keys import environment_names, known
from moe_advisor.resources import rules_dir

RULES = load_rules()
ROOT = Path(__file__).parents[2]


def test_there_are_at_least_45_rules_and_each_file_is_valid() -> None:
    assert len(read_folder(rules_dir())) >= 45


@pytest.mark.parametrize("rule", RULES, ids=[rule.id for rule in RULES])
def test_every_case_of_a_rule_gives_what_it_expects(rule: Rule) -> None:
    assert [result for case in rule.cases if (result := run_case(rule, case)).problem] == []


@pytest.mark.parametrize("rule", RULES, ids=[rule.id for rule in RULES])
def test_a_rule_that_changes_a_run_has_evidence_or_says_that_there_is_none(rule: Rule) -> None:
    if rule.wall != "capture" and rule.topic != "contradiction":
        assert rule.counter_evidence
    for item in (*rule.evidence, *rule.counter_evidence):
        assert item.source


def test_names_that_rules_give_each_other_exist() -> None:
    ids = {rule.id for rule in RULES}
    for rule in RULES:
        for name in (*rule.symptom_of, *rule.excludes, *rule.after):
            assert name in ids, f"{rule.id}: {name}"
            assert name != rule.id


def test_every_changed_key_is_one_the_frameworks_have() -> None:
    for rule in RULES:
        for _, change in all_changes(rule):
            if change.framework == "env":
                assert change.key in environment_names()
            elif change.framework not in ("pytorch", "job"):
                assert change.key in known()


def test_every_known_validation_is_an_expression_over_known_settings() -> None:
    ids = set()
    for check in checks.catalogue():
        assert check_source(check.violated) is None, check.id
        assert check.consequence
        assert check.source
        for touch in check.touches:
            key = touch.partition("=")[0].partition("~")[0]
            assert key in known() or key in environment_names(), f"{check.id}: {key}"
        ids.add(check.id)
    assert len(ids) == len(checks.catalogue())


def test_the_pages_are_up_to_date() -> None:
    assert stale(RULES, ROOT / "docs" / "rules") == []


def test_every_bridge_path_and_flag_has_the_form_of_its_framework() -> None:
    sections = {
        "model",
        "comm_overlap",
        "ddp",
        "optimizer",
        "train",
        "dist",
        "rng",
        "rerun_state_machine",
        "profiling",
        "logger",
        "dataset",
        "mixed_precision",
    }
    for key in known().values():
        if key.bridge:
            assert key.bridge.partition(".")[0] in sections
        for flag in (key.flag, key.off):
            assert flag is None or flag.startswith("--")
        assert key.bridge or key.flag


def test_the_key_data_is_plain_json_with_sources() -> None:
    data = json.loads(
        (ROOT / "moe_advisor/advise/data/known_keys.json").read_text(encoding="utf-8")
    )
    assert set(data["sources"]) == {"megatron-lm", "megatron-bridge"}
