"""Kernels, walls and promises of a comparison, on results made small for it."""

import re
from typing import Any

import pytest
from msgspec.structs import replace

from moe_advisor.compare.judge import compare
from moe_advisor.compare.kernels import kernel_changes
from moe_advisor.compare.model import Share
from moe_advisor.output import compare_html
from moe_advisor.result import ConfigValue, Kernel, Result
from tests.output.result_builder import balanced


def run(kernels: dict[tuple[str, str], tuple[float, float]], **more: Any) -> Result:
    """A balanced run with these kernels: (role, name) -> (ms, count) per step."""
    rows = [Kernel(role=r, name=n, ms=ms, count=c) for (r, n), (ms, c) in kernels.items()]
    return replace(balanced(), kernels=rows, **more)


def states(base: Result, new: Result) -> dict[str, tuple[str, float]]:
    return {one.name: (one.state, one.change_ms) for one in kernel_changes([base], [new])}


def test_kernels_are_new_gone_slower_faster_or_run_more_often() -> None:
    base = run(
        {
            ("permute", "sort"): (4.0, 10),
            ("permute", "gather"): (3.0, 10),
            ("permute", "old"): (2.0, 10),
            ("expert_gemm", "grouped"): (20.0, 48),
            ("norm", "rms"): (1.0, 8),
        }
    )
    new = run(
        {
            ("permute", "sort"): (5.0, 10),
            ("permute", "gather"): (2.0, 10),
            ("permute", "fused"): (2.5, 10),
            ("expert_gemm", "grouped"): (24.0, 96),
            ("norm", "rms"): (1.01, 8),
        }
    )
    assert states(base, new) == {
        "grouped": ("more often", 4.0),
        "fused": ("new", 2.5),
        "old": ("gone", -2.0),
        "sort": ("slower", 1.0),
        "gather": ("faster", -1.0),
    }


def test_a_kernel_that_may_be_among_the_others_is_not_called_gone() -> None:
    base = run({("permute", "old"): (2.0, 10), ("permute", ""): (0.5, 3)})
    assert states(base, run({("permute", ""): (1.5, 12)})) == {}
    assert states(base, run({("permute", ""): (0.4, 3)})) == {"old": ("gone", -2.0)}


def test_results_of_older_versions_list_no_kernels() -> None:
    assert states(run({}), run({("norm", "rms"): (1.0, 8)})) == {}


def test_walls_stand_side_by_side() -> None:
    found = compare([balanced()], [balanced()], ("a", "b")).walls
    assert found[0].wall == "communication"
    assert all(one.base == one.new for one in found)
    assert [one.wall for one in found if one.base_limits] == ["communication"]


def changed(step_ms: float) -> Result:
    """The balanced run with overlap switched on and every step this long."""
    base = balanced()
    metric = base.metrics["step_ms"]
    ranks = [
        replace(one, value=step_ms, steps=[step_ms] * len(one.steps)) for one in metric.per_rank
    ]
    return replace(
        base,
        metrics={
            **base.metrics,
            "step_ms": replace(metric, value=step_ms, per_rank=ranks),
        },
        run=replace(
            base.run,
            config={
                **base.run.config,
                "overlap_moe_expert_parallel_comm": ConfigValue(value=True, source="trace"),
            },
        ),
    )


@pytest.mark.parametrize(("step_ms", "inside"), [(306.0, True), (330.0, False)])
def test_a_followed_recommendation_meets_what_it_promised(step_ms: float, inside: bool) -> None:
    base = balanced()
    found = compare([base], [changed(step_ms)], ("a", "b")).promises
    (one,) = found
    assert one.rule == "exposed-expert-all-to-all"
    assert one.measured_ms == pytest.approx(base.metrics["step_ms"].value - step_ms, abs=1e-3)
    assert one.inside is inside
    assert (one.together, one.others) == (False, [])


def test_nothing_is_promised_where_no_advice_was_followed() -> None:
    assert compare([balanced()], [balanced()], ("a", "b")).promises == []


def test_a_wall_that_was_not_measured_has_a_dash_and_no_change() -> None:
    base = balanced()
    walls = replace(
        base.walls,
        scores=base.walls.scores | {"memory": 0.0},
        not_measured={"memory": "peak memory: no memory events"},
    )
    page = compare_html.render(compare([replace(base, walls=walls)], [base], ("a", "b")))
    row = page[page.index("<b>Memory</b>") :].split("</div>")
    assert "partly measured" in row[0]
    assert "points" not in row[0]
    assert any(cell.endswith(">–") for cell in row[:8])


def test_the_page_shows_walls_promise_and_kernels_with_labels() -> None:
    base = run({("permute", "sort"): (4.0, 10), ("norm", "</th><script>"): (9.0, 1)})
    new = replace(changed(306.0), kernels=[Kernel(role="permute", name="sort", ms=6.0, count=10.0)])
    page = compare_html.render(compare([base], [new], ("a", "b")))
    for words in ("inside the range", "slower", "gone", "Communication, base: ", "points"):
        assert words in page
    assert "<script" not in page
    assert "-7" not in page.partition("<h1>")[2].partition("</h1>")[0]


def test_every_table_of_the_page_is_there_once() -> None:
    found = compare([balanced()], [changed(306.0)], ("a", "b"))
    share = Share(name="one", label="one", base_ms=1.0, new_ms=2.0, change_ms=1.0)
    kinds = ("parts", "causes", "roles", "layers", "ranks")
    page = compare_html.render(replace(found, **{kind: [share] for kind in kinds}))
    ids = re.findall(r' id="([^"]+)"', page)
    assert set(kinds) <= set(ids)
    assert len(ids) == len(set(ids))
