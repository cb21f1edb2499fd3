"""Items that wait for a later launched one; times in µs."""

import pytest

from moe_advisor.whatif.model import NO_ITEM
from moe_advisor.whatif.order import put_off
from moe_advisor.whatif.replay import replay
from tests.whatif.steps import US, Step, model


def starts_us(*lanes: Step, collectives: int = 0, item: int) -> int:
    made = [one.lane(1, rank=rank) for rank, one in enumerate(lanes)]
    return int(replay(model(*made, collectives=collectives)).start_ns[0][item]) // US


def behind_a_later_launch(**first: int) -> Step:
    """Item 0 and what follows it on stream 1 find room 10 µs before the end of item 3."""
    s = Step()
    s.item(5, stream=1, **first)
    s.item(20, stream=0)
    s.item(7, stream=1)
    s.item(50, stream=0)
    s.edges.append((0, 3, -10 * US))
    return s


def test_an_item_starts_in_the_tail_of_a_kernel_that_was_launched_later() -> None:
    s = behind_a_later_launch()
    assert starts_us(s, item=0) == 60
    assert starts_us(s, item=2) == 65
    assert put_off(s.lane(1)) == {0: 3, 2: 3}


def test_a_collective_that_was_put_off_still_meets_its_peer() -> None:
    peer = Step()
    peer.item(5, collective=0, transfer=5)
    late = behind_a_later_launch(collective=0)
    both = model(late.lane(1), peer.lane(1, rank=1), collectives=1)
    timing = replay(both)
    assert timing.start_ns[0][0] == 60 * US
    assert timing.end_ns[1][0] == 65 * US
    assert timing.forced == 0


def test_what_depends_on_an_item_that_was_put_off_waits_too() -> None:
    s = Step()
    s.item(5, stream=1)
    s.item(3, stream=2, after=0)
    s.item(50, stream=0)
    s.edges.append((0, 2, -10 * US))
    assert starts_us(s, item=1) == 45


@pytest.mark.parametrize("case", ["the later one waits for it", "the host does", "collectives"])
def test_a_wait_that_a_replay_cannot_serve_is_left_out(case: str) -> None:
    s = Step()
    s.item(5, stream=1, collective=0 if case == "collectives" else NO_ITEM)
    s.item(1, stream=0, collective=1 if case == "collectives" else NO_ITEM)
    if case == "the host does":
        s.wait(0)
    s.item(50, stream=0, after=0 if case == "the later one waits for it" else None)
    s.edges.append((0, 2, -10 * US))
    assert put_off(s.lane(1)) == {}


def test_two_that_wait_for_each_other_s_followers_are_both_put_off_to_the_last() -> None:
    s = Step()
    s.item(5, stream=1)
    s.item(5, stream=1)
    s.item(30, stream=0)
    s.item(40, stream=0)
    s.edges += [(0, 2, 0), (1, 3, -10 * US)]
    assert put_off(s.lane(1)) == {0: 2, 1: 3}
    assert [starts_us(s, item=0), starts_us(s, item=1)] == [30, 60]
