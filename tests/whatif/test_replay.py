"""The replay on the smallest steps that show a rule; times in µs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.whatif.coarsen import merge_neighbours
from moe_advisor.whatif.model import NEVER_LATE, StepModel
from moe_advisor.whatif.replay import replay
from tests.whatif.steps import US, Step, model


def step_us(one: StepModel, **options) -> float:
    return replay(one, **options).mean_step_ns / US


def test_a_stream_runs_its_items_in_order_and_a_late_launch_delays_them() -> None:
    s = Step()
    s.item(10)
    s.item(10, host=4)  # launched at 4, starts at 10
    s.item(10, host=56)  # launched at 60, when the stream had been idle for 40
    assert step_us(model(s.lane(70))) == 70


def test_streams_run_side_by_side_but_for_their_dependencies() -> None:
    s = Step()
    first = s.item(50, stream=0)
    s.item(30, stream=1)
    s.item(5, stream=1, after=first)
    s.item(0, after=2)
    assert replay(model(s.lane(55))).start_ns[0].tolist() == [0, 0, 50 * US, 55 * US, 55 * US]


def test_the_host_waits_for_the_gpu_in_a_synchronising_call() -> None:
    s = Step()
    long = s.item(100)
    s.wait(long, before=5, own=2, lag=3)
    s.item(10, host=7)  # 100 + 3 + 7
    assert step_us(model(s.lane(120))) == 120


def test_a_faster_host_shortens_what_it_launches_but_not_its_waits() -> None:
    s = Step()
    s.item(10, host=20)
    s.item(10, host=40)
    assert step_us(model(s.lane(70))) == 70
    assert step_us(model(s.lane(70)), host_scale=0.5) == 40


def test_a_collective_ends_after_the_last_rank_arrives() -> None:
    early, late = Step(), Step()
    early.item(10)
    early.item(45, collective=0, transfer=5)
    late.item(50)
    late.item(5, collective=0, transfer=5)
    both = model(early.lane(55), late.lane(55, rank=1), collectives=1)
    timing = replay(both)
    assert timing.step_ns == (55 * US, 55 * US)
    assert timing.forced == 0
    assert replay(both, alone=True).step_ns == (15 * US, 55 * US)


def test_ranks_whose_clocks_differ_meet_on_the_common_clock() -> None:
    first, second = Step(), Step()
    first.item(20, collective=0, transfer=5)
    second.item(5, collective=0, transfer=5)
    both = model(first.lane(20), second.lane(5, rank=1, offset=15), collectives=1)
    assert replay(both).step_ns == (20 * US, 5 * US)


def test_ranks_in_different_order_of_communicators_do_not_hang() -> None:
    first, second = Step(), Step()
    first.item(5, collective=0)
    first.item(5, collective=1, stream=1)
    second.item(5, collective=1)
    second.item(5, collective=0, stream=1)
    timing = replay(model(first.lane(10), second.lane(10, rank=1), collectives=2))
    assert timing.forced > 0
    assert max(timing.step_ns) <= 20 * US


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    st.integers(2, 9),
)
def test_merged_items_end_when_the_plain_ones_did(
    rows: list[tuple[int, int, int, bool]], size: int
) -> None:
    s = Step()
    for duration, host, latency, launched in rows:
        s.item(duration, host=host, launched=launched)
        s.rows[-1]["latency_ns"] = latency * US if launched else NEVER_LATE
        s.rows[-1]["gap_ns"] = latency * 100
        s.rows[-1]["residual_ns"] = duration * 10
    lane = s.lane(1)
    merged = merge_neighbours(lane, size)
    assert len(merged.items) <= len(lane.items)
    assert replay(model(merged)).step_ns == replay(model(lane)).step_ns
