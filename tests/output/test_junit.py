"""JUnit: one case per rule, skipped is skipped, a finding fails only behind a gate."""

from xml.etree import ElementTree

import pytest

from moe_advisor.output import junit
from tests.output.regenerate import GOLDEN, documents
from tests.output.result_builder import ALL, balanced


@pytest.mark.parametrize("name", [name for name in documents() if name.endswith(".xml")])
def test_document_is_the_golden_one(name: str) -> None:
    assert documents()[name] == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("gated", [True, False])
def test_it_is_well_formed_and_its_counts_are_true(name: str, gated: bool) -> None:
    root = ElementTree.fromstring(junit.render(ALL[name](), findings_fail=gated))
    suite = root[0]
    for tag, attribute in (
        ("testcase", "tests"),
        ("failure", "failures"),
        ("error", "errors"),
        ("skipped", "skipped"),
    ):
        assert int(suite.attrib[attribute]) == len(list(suite.iter(tag)))
    assert root.attrib["tests"] == suite.attrib["tests"] == str(len(ALL[name]().rules))


def _case(gated: bool, name: str) -> ElementTree.Element:
    root = ElementTree.fromstring(junit.render(balanced(), findings_fail=gated))
    return next(one for one in root.iter("testcase") if one.attrib["name"] == name)


def test_finding_is_a_failure_only_when_asked_for() -> None:
    assert _case(False, "exposed-expert-all-to-all")[0].tag == "system-out"
    failure = _case(True, "exposed-expert-all-to-all")[0]
    assert (failure.tag, failure.attrib["type"]) == ("failure", "high")


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", ["full-recompute-with-headroom", "sequential-expert-gemms"])
def test_what_was_not_judged_is_skipped_with_its_reason(gated: bool, name: str) -> None:
    case = _case(gated, name)
    assert [child.tag for child in case] == ["skipped"]
    assert case[0].attrib["message"].startswith("not ")


def test_rule_that_failed_to_run_is_an_error() -> None:
    assert _case(False, "broken-rule")[0].tag == "error"


def test_pass_is_an_empty_case() -> None:
    assert len(_case(True, "imbalanced-experts")) == 0
