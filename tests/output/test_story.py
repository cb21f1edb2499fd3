"""What all outputs tell: printed parts add up, ranks are named, nothing unknown turns into 0."""

import msgspec
import pytest

from moe_advisor.output import plan_view, run_view, step_view, tile_view, verdict_view
from moe_advisor.output.charts import below_class, bracket_titles
from moe_advisor.output.formatting import tenths
from moe_advisor.output.step_view import Bar, Segment
from moe_advisor.result import Estimate
from tests.output.result_builder import (
    ALL,
    balanced,
    bar,
    empty,
    many,
    mixed,
    one_rank,
    parts,
    recommendation,
    skewed,
)

WITH_STEPS = [name for name in ALL if name != "empty"]


@pytest.mark.parametrize("name", WITH_STEPS)
def test_printed_parts_of_every_bar_add_up_to_its_printed_step(name: str) -> None:
    result = ALL[name]()
    mean = step_view.mean_bar(result)
    assert mean is not None
    for one in [mean, *(one for group in step_view.bars(result) for one in group)]:
        assert sum(segment.tenths for segment in one.segments) == tenths(one.total_ms)


@pytest.mark.parametrize("name", WITH_STEPS)
def test_brackets_add_up_too(name: str) -> None:
    mean = step_view.mean_bar(ALL[name]())
    assert mean is not None
    assert sum(family[1] for family in mean.families()) == tenths(mean.total_ms)


@pytest.mark.parametrize("parts", [(284.1, 56.4, 19.3), (23.1, 5.8, 155.6), (3.0, 3.0, 194.0)])
def test_family_totals_over_a_bar_never_touch_or_leave_it(parts: tuple[float, ...]) -> None:
    families = ("compute", "exposed_communication", "rest")
    bar = Bar(
        "Mean",
        "",
        "",
        tuple(
            Segment(family, family, "compute", family, ms, round(10 * ms), ms / sum(parts))
            for family, ms in zip(families, parts, strict=True)
        ),
        sum(parts),
    )
    placed = bracket_titles(bar, sum(parts), 7.8, 900)
    assert len(placed) == 3
    edge = 0.0
    for words, middle, need in placed:
        half = len(words) * 7.8 / 2
        assert need <= 900.5
        assert middle * 900 - half >= edge - 0.01
        edge = middle * 900 + half
    assert edge <= 900


def test_table_columns_add_up_per_rank() -> None:
    titles, rows = step_view.part_rows(balanced())
    assert titles == ["Rank 0", "Rank 1"]
    for i, total in enumerate(step_view.rank_totals(balanced())):
        assert sum(tenths(float(row.per_rank[i])) for row in rows) == tenths(float(total))


def test_thin_compute_parts_join_other_compute() -> None:
    mean = step_view.mean_bar(balanced())
    assert mean is not None
    other = next(s for s in mean.segments if s.key == "compute_other")
    assert other.tenths == 132
    assert "norm" not in {s.key for s in mean.segments}


def test_segments_have_the_same_order_in_every_bar() -> None:
    result = skewed()
    orders = {
        tuple(s.key for s in one.segments) for group in step_view.bars(result) for one in group
    }
    assert len(orders) == 1


def test_a_part_that_only_one_rank_has_is_still_shown() -> None:
    base = skewed()
    extra = {"expert_gemm": 10.0, "copies": 5.0}
    result = msgspec.structs.replace(
        base,
        step_parts=parts({"expert_gemm": 10.0, "copies": 2.5}),
        parts_by_rank=[bar(0, None, extra), bar(1, None, {"expert_gemm": 10.0})],
    )
    _, rows = step_view.part_rows(result)
    copies = next(row for row in rows if row.segment.key == "copies")
    assert copies.per_rank == ("5.0", "0.0")


def test_many_ranks_show_eight_extremes_and_the_others_as_one() -> None:
    group = step_view.bars(many())[0]
    assert len(group) == 9
    assert group[-1].title == "56 others"


def test_many_ranks_name_those_that_are_waited_for() -> None:
    assert {44, 45, 46, 47} <= set(step_view.extremes(many()))


def test_many_steps_show_first_median_worst_and_the_rest() -> None:
    result = many()
    few = msgspec.structs.replace(result, parts_by_rank=result.parts_by_rank[:1])
    names = [one.subtitle for one in step_view.bars(few)[0]]
    assert [name.split(":")[0] for name in names] == [
        "first",
        "median",
        "worst",
        "mean of 97 others",
    ]


def test_last_to_arrive_is_named_with_its_count() -> None:
    assert "Last to arrive: rank 0, in 91 of 120" in tile_view.ranks_line(balanced())


def test_run_name_is_the_common_start_of_the_inputs() -> None:
    assert run_view.run_name(balanced()) == "shm_balanced"
    assert run_view.run_name(one_rank()) == "rank3"
    assert run_view.run_name(many()) == "64 files"


def test_missing_ranks_turn_the_capture_badge() -> None:
    assert run_view.capture_state(one_rank()) == ("warn", "Partial: 1 of 16 ranks")


def test_an_error_in_the_capture_is_damage() -> None:
    assert run_view.capture_state(empty()) == ("bad", "Damaged")


def test_unmeasured_tiles_say_why() -> None:
    for tile in tile_view.tiles(empty()):
        assert not tile.figure.measured
        assert tile.lines == ("no GPU activity in the trace",)


def test_wire_rate_shows_bytes_time_and_link() -> None:
    tile = tile_view.tiles(balanced())[3]
    assert tile.lines == ("4.29 GB/GPU ÷ 181.1 ms", "5.3 % of NVLink's 450")


def test_two_level_walls_carry_equal_tags() -> None:
    assert [row.tag for row in verdict_view.wall_rows(mixed())] == ["level", "level", ""]


def test_walls_are_in_order_of_their_score() -> None:
    assert [row.wall for row in verdict_view.wall_rows(balanced())] == [
        "communication",
        "compute_host",
        "memory",
    ]


def test_alternatives_get_letters_and_withheld_changes_none() -> None:
    plan = plan_view.plan(balanced())
    assert [advice.mark for advice in plan.main] == ["1", "2", "3"]
    assert [(advice.mark, advice.instead_of) for advice in plan.instead] == [("A", "1")]
    assert [advice.mark for advice in plan.waiting] == ["–"]


def test_combined_gain_names_the_steps_it_covers() -> None:
    assert plan_view.plan(balanced()).combined == (
        "Steps 1 to 2 together: 40.9 ms (12.3 %), 17.0 to 65.0 → step 291.8 ms"
    )


def test_gain_scale_holds_every_range_and_zero() -> None:
    assert plan_view.gain_domain(balanced()) == (-16.0, 136.0)


def test_gain_scale_of_losses_alone_still_holds_zero() -> None:
    loss = recommendation(
        "r",
        1,
        "t",
        estimate=Estimate(status="estimated", low_ms=-5.0, expected_ms=-2.0, high_ms=-1.0),
    )
    low, high = plan_view.gain_domain(msgspec.structs.replace(balanced(), recommendations=[loss]))
    assert low == -5.0
    assert high > 0


def test_hidden_time_is_known_only_with_both_metrics() -> None:
    assert step_view.hidden_ms(empty()) is None
    assert step_view.hidden_ms(balanced()) == 0.0


def test_open_questions_don_t_repeat_each_other() -> None:
    assert verdict_view.open_questions(balanced()) == [
        "Peak memory: no memory events in the trace; give --log or recapture"
    ]


def test_a_wall_label_that_a_narrow_bar_hides_stands_below_it() -> None:
    assert below_class([("EP all-to-all on the wire 43.7 %", 0.437)]) == "u560"
    assert below_class([]) == ""


def test_a_wall_of_which_part_is_not_measured_never_shows_a_zero() -> None:
    result = balanced()
    memory = next(row for row in verdict_view.wall_rows(result) if row.wall == "memory")
    assert memory.score == 0
    assert memory.missing
    assert verdict_view.wall_score(result, memory) == "–"
    whole = msgspec.structs.replace(result.walls, not_measured={})
    told = msgspec.structs.replace(result, walls=whole)
    row = next(row for row in verdict_view.wall_rows(told) if row.wall == "memory")
    assert verdict_view.wall_score(told, row) == "0.0 %"
