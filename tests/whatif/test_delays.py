"""What a start waited for, on the smallest steps that show it; times in µs."""

import numpy as np
import pytest

from moe_advisor.whatif.calibrate import measure
from moe_advisor.whatif.delays import with_delays
from moe_advisor.whatif.model import Lane
from moe_advisor.whatif.replay import replay
from tests.whatif.steps import COSTS, US, Step, model


def measured(s: Step, *starts_us: float) -> Lane:
    """The lane as it was measured: launched all at once, the last item begins the next step."""
    lane = s.lane(starts_us[-1])
    starts = np.asarray([int(one * US) for one in starts_us], np.int64)
    return with_delays(lane.with_items(start_ns=starts), COSTS)


def unexplained_us(lane: Lane) -> list[float]:
    return [round(one / US, 1) for one in lane.items.residual_ns.tolist()]


def beside(blocks: int) -> Step:
    """A GEMM of 100 µs, and a kernel that another stream was free to start from the beginning."""
    s = Step()
    s.item(100, stream=0, blocks=blocks)
    s.item(20, stream=1, blocks=32)
    return s


def test_a_start_behind_a_kernel_that_fills_the_gpu_is_explained() -> None:
    lane = measured(beside(132), 0, 90, 101)
    assert unexplained_us(lane) == [0, 0, 0]
    # A shorter kernel gives its SMs back earlier, so what stood behind it starts earlier.
    shorter = lane.with_items(duration_ns=lane.items.duration_ns - [40 * US, 0, 0])
    assert replay(model(shorter)).start_ns[0].tolist()[1] == 50 * US


@pytest.mark.parametrize(
    ("blocks", "start"),
    [
        pytest.param(64, 90, id="half of the GPU was free"),
        pytest.param(132, 30, id="no block of it can have ended yet"),
        pytest.param(132, 104, id="it had ended before"),
    ],
)
def test_a_late_start_stays_unexplained_without_a_full_gpu(blocks: int, start: int) -> None:
    waited = start - COSTS.latency_ns / US  # a launch takes so long to arrive
    assert unexplained_us(measured(beside(blocks), 0, start, 200))[1] == waited


def test_room_taken_after_an_item_was_ready_explains_nothing() -> None:
    s = Step()
    s.item(50, stream=0, blocks=32)
    s.item(100, stream=0, blocks=132)  # begins at 50, 45 µs after the other stream could go on
    s.item(20, stream=1, blocks=32)
    assert unexplained_us(measured(s, 0, 50, 140, 160))[2] == 135


def test_clusters_leave_no_room_on_the_last_sms() -> None:
    assert unexplained_us(measured(beside(128), 0, 90, 101)) == [0, 0, 0]
    assert unexplained_us(measured(beside(112), 0, 90, 101))[1] == 85


@pytest.mark.parametrize(
    ("second", "unexplained"),
    [
        pytest.param(50, 0, id="without a break"),
        pytest.param(70, 115, id="room was there in between"),
    ],
)
def test_kernels_that_fill_the_gpu_one_after_the_other_explain_a_start_behind_the_last(
    second: int, unexplained: int
) -> None:
    s = Step()
    s.item(50, stream=0, blocks=132)
    s.item(50, stream=1, blocks=132)
    s.item(20, stream=2, blocks=32)
    found = measured(s, 0, second, second + 50, second + 90)
    assert unexplained_us(found)[2] == unexplained


def test_the_kernel_that_took_the_room_may_have_been_launched_later() -> None:
    s = Step()
    s.item(20, stream=1, blocks=32)
    s.item(100, stream=0, blocks=132)
    lane = measured(s, 90, 0, 101)
    assert unexplained_us(lane) == [0, 0, 0]
    assert replay(model(lane)).start_ns[0].tolist() == [90 * US, 0, 101 * US]


def test_the_unchanged_replay_keeps_a_start_that_had_no_room() -> None:
    lane = measured(beside(132), 0, 90, 101)
    assert replay(model(lane)).start_ns[0].tolist() == [0, 90 * US, 101 * US]


def test_a_gap_is_the_gpus_own_where_nothing_ran_beside_and_no_stream_was_waited_for() -> None:
    """Kernels 2 µs apart on one stream; two other streams take turns and start 40 µs late."""
    s = Step()
    starts = []
    for number in range(30):
        s.item(10, stream=0)
        starts.append(number * 12)
    for number in range(30):
        last = s.item(10, stream=1 + number % 2, after=len(s.rows) - 1)
        starts.append(400 + number * 12)
    lane = s.lane(starts[last] + 10)
    starts_ns = np.asarray([*starts, starts[-1] + 10], np.int64) * US
    launches = np.full(len(starts_ns), -100 * US)
    ahead = lane.with_items(start_ns=starts_ns, launch_ns=launches)
    assert measure([], [ahead], {}).gap_ns == 2 * US
