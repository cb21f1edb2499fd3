"""The rule format: what is read, what is refused, and where an error points."""

import json
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml

from moe_advisor.advise.rule import Rule, json_schema, load_rules, parse, read_folder
from moe_advisor.errors import RuleError
from moe_advisor.resources import rules_dir

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


def _rule(text: str = MINIMAL) -> Rule:
    rule = parse(text, "x.yaml", topic="test")
    assert isinstance(rule, Rule)
    return rule


def test_a_minimal_rule_is_read() -> None:
    rule = _rule()
    assert (rule.id, rule.topic, rule.severity) == ("slow-thing", "test", "low")
    assert rule.changes[0].key == "moe_permute_fusion"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("severity: low", "severity: huge", "x.yaml:4: severity: Invalid enum value 'huge'"),
        ("title: Make it fast\n", "", "missing required field `title`"),
        ("why: Because.", "why: Because.\nwhy_not: x", "unknown field `why_not`"),
        ("when: m.step_ms > 1.0", "when: m.step_ms >", "x.yaml:7: when: not a CEL expression"),
        ("when: m.step_ms > 1.0", "when: m.stepms > 1.0", "when: unknown metric 'm.stepms'"),
        ("when: m.step_ms > 1.0", "when: m.step_ms > k.x", "when: 'k.x' is not in thresholds"),
        ("moe_permute_fusion, to", "moe_fast, to", "x.yaml:11: changes[0].key: unknown config"),
        ("permute-fusion}", "magic}", "x.yaml:12: estimate.whatif: unknown what-if"),
        ("{m.step_ms:.1f} ms", "{m.x} ms", "finding: unknown metric 'm.x'"),
        ("expect: not_measured", "expect: pass", "x.yaml:15: cases: needs a case that expects"),
        ("id: slow-thing", "id: Slow_Thing", "x.yaml:1: id: use lower-case words"),
        ("id: slow-thing", "id: &a slow-thing", "x.yaml:1: anchors and aliases are not allowed"),
        ("title: Make", "title: [Make", "not YAML"),
        ("id: slow-thing", "topic: a\nid: slow-thing", "x.yaml:1: topic: is set by the folder"),
    ],
)
def test_an_error_names_file_line_and_field(old: str, new: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(MINIMAL.replace(old, new), "x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_python_tag_is_refused_and_nothing_runs() -> None:
    with pytest.raises(RuleError, match="not YAML"):
        parse("id: !!python/object/apply:os.system [true]", "x.yaml")


def test_user_rules_add_override_and_disable(tmp_path: Path) -> None:
    shipped = {rule.id for rule in load_rules()}
    (tmp_path / "slow-thing.yaml").write_text(MINIMAL)
    (tmp_path / "a.yaml").write_text("{id: launch-bound-host, disabled: true}")
    override = MINIMAL.replace("slow-thing", "imbalanced-experts")
    (tmp_path / "imbalanced-experts.yaml").write_text(override)
    rules = {rule.id: rule for rule in load_rules([tmp_path])}
    assert set(rules) == shipped - {"launch-bound-host"} | {"slow-thing"}
    assert rules["imbalanced-experts"].title == "Make it fast"
    assert rules["slow-thing"].foreign
    assert not rules["exposed-expert-all-to-all"].foreign


def test_an_id_that_is_not_the_file_name_or_comes_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(MINIMAL)
    with pytest.raises(RuleError, match="must be the file's name"):
        read_folder(tmp_path)
    (tmp_path / "other.yaml").unlink()
    for topic in ("a", "b"):
        (tmp_path / topic).mkdir()
        (tmp_path / topic / "slow-thing.yaml").write_text(MINIMAL)
    with pytest.raises(RuleError, match="is also in"):
        read_folder(tmp_path)


def test_a_missing_folder_and_a_large_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="no such folder"):
        load_rules([tmp_path / "gone"])
    (tmp_path / "big.yaml").write_text("# " + "x" * 200_000)
    with pytest.raises(RuleError, match="larger than"):
        read_folder(tmp_path)


def test_the_schema_in_the_package_is_current_and_accepts_every_shipped_rule() -> None:
    path = Path(__file__).parents[2] / "moe_advisor/advise/data/rule.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    assert schema == json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    for file in sorted(rules_dir().glob("*/*.yaml")):
        validator.validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def test_the_schema_refuses_an_unknown_field() -> None:
    document = yaml.safe_load(textwrap.dedent(MINIMAL)) | {"extra": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
