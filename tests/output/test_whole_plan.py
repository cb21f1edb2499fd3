"""The whole plan as one change: every form to paste and the check are on the page."""

import html as entities

import msgspec

from moe_advisor.output import html, markdown, plan_view
from tests.output.result_builder import balanced


def test_every_form_is_copyable_in_html_with_the_check_beside_it() -> None:
    page = html.render(balanced())
    for name in ("megatron-bridge", "bridge-cli", "megatron-lm", "env"):
        assert f'data-copy="whole-{name}"' in page
    assert "comm_overlap.overlap_moe_expert_parallel_comm=true\n</textarea>" in page
    text = entities.unescape(page)
    assert "of 12 known validations that concern these settings 10 hold, 1 can't be told" in text
    assert "1 broken" in text


def test_markdown_holds_the_same_forms() -> None:
    text = markdown.render(balanced())
    assert "```text\ncomm_overlap.overlap_moe_expert_parallel_comm=true\n```" in text
    assert "```text\n--overlap-moe-expert-parallel-comm\n# remove: --recompute-method\n```" in text
    assert "- **broken**: needs virtual pipeline stages: raises" in text


def test_a_plan_that_changes_no_setting_has_no_such_block() -> None:
    result = msgspec.structs.replace(balanced(), plan_change=None)
    assert plan_view.whole(result) is None
    assert "whole-plan" not in html.render(result)
    assert "The whole plan as one change" not in markdown.render(result)


def test_all_that_holds_is_said_so() -> None:
    change = balanced().plan_change
    assert change is not None
    good = msgspec.structs.replace(change, checked=10, unknown=[], broken=[])
    shown = plan_view.whole(msgspec.structs.replace(balanced(), plan_change=good))
    assert shown is not None
    assert (shown.good, shown.verdict) == (
        True,
        "Checked on the configuration after the plan: of 10 known validations that concern these "
        "settings 10 hold, none is broken.",
    )
