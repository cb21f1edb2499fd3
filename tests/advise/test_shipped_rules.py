"""Every shipped rule: valid, with cases that hold, keys that exist, and figures on both sides."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from moe_advisor.advise import checks, load_rules
from moe_advisor.advise.cases import run_case
from moe_advisor.advise.docs import stale
from moe_advisor.advise.expressions import Truth, check_source, evaluate, names
from moe_advisor.advise.rule import ChangeSpec, Rule, all_changes, read_folder
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


_SAME = {"dispatch-wgrad-overlap": "ep-overlap-dispatch-wgrad"}
"""A validation that another one states as well, from the other setting's side."""


def _values(name: str, source: str) -> list[Any]:
    """What a fact may be for an expression: the values it is compared with, and others."""
    found: list[Any] = []
    at = re.escape(name)
    for text in re.findall(
        rf"{at}\)? (?:==|!=|<=|>=|<|>) ('[^']*'|true|false|null|[\d.]+)", source
    ):
        if text in ("true", "false"):
            found += [True, False]
        elif text[0] == "'":
            found += [text[1:-1], "other"]
        elif text == "null":
            found += [None, 1.0]
        else:
            found += [float(text) - 1.0, float(text), float(text) + 1.0]
    for items in re.findall(rf"{at} in \[([^\]]*)\]", source):
        found += [*re.findall(r"'([^']*)'", items), "other"]
    for item in re.findall(rf"'(\w+)' in {at}", source):
        found += [[], [item]]
    if f"size({name})" in source:
        found += [[], ["x"]]
    if "/" in source or "double(" in source:
        found += [8.0, 12.0]
    unique: list[Any] = []
    return [x for x in found if not (x in unique or unique.append(x))][:6] or [1.0]  # type: ignore[func-returns-value]


def _breaks(change: ChangeSpec, source: str) -> bool:
    """Whether on some configuration the change makes the expression true that was not."""
    others = [name for name in names(source) if name != f"c.{change.key}"]
    choices = [_values(name, source) for name in others]
    before = [x for x in _values(f"c.{change.key}", source) if x != change.to]
    for values in itertools.islice(itertools.product(*choices), 5000):
        context: dict[str, dict[str, Any]] = {"c": {}, "hw": {}, "t": {}, "m": {}}
        for name, value in zip(others, values, strict=True):
            root, _, leaf = name.partition(".")
            context[root][leaf] = value
        context["c"][change.key] = change.to
        if evaluate(source, context).truth is Truth.YES:
            for old in before:
                context["c"][change.key] = old
                if evaluate(source, context).truth is Truth.NO:
                    return True
    return False


def test_a_validation_that_a_change_can_break_is_among_its_conditions() -> None:
    changes = {
        (change.key, json.dumps(change.to)): change
        for rule in RULES
        for _, change in all_changes(rule)
        if change.framework not in ("pytorch", "job") and "{" not in str(change.to)
    }
    missed = []
    for change in changes.values():
        shown = {check.id for check in checks.touching([change])}
        for check in checks.catalogue():
            if f"c.{change.key}" not in names(check.violated) or check.id in shown:
                continue
            if _SAME.get(check.id) not in shown and _breaks(change, check.violated):
                missed.append((change.key, change.to, check.id))
    assert missed == []
