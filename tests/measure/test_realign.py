"""Steps in which some rank lacks collectives: exact waiting and transfer of what is certain."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.peers import match_peers
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import NONE, CollectiveKind
from moe_advisor.roles.roles import Family
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import TraceBuilder

DP = "DATA_PARALLEL_GROUP"
PERIOD = 100
"""µs from one collective's end to the next one's."""


def rank(
    number: int,
    sizes: list[int],
    *,
    lost: tuple[int, ...] = (),
    steps: int = 1,
    lost_in: int = 0,
    world: int = 2,
    numbered: bool = False,
    epoch: int | None = None,
) -> RankPartial:
    """All-reduces of `sizes`; the k-th ends at (k+1) x PERIOD and lasts 10 + 10 x ((k + rank) % 3).

    `lost` are not in the trace of step `lost_in`.
    """
    b = TraceBuilder(rank=number, world_size=world)
    length = PERIOD * (len(sizes) + 1)
    for step in range(steps):
        origin = step * length
        b.range(origin, origin + length, f"iteration {step}")
        b.kernel(origin, origin + 5, launch=origin)
        for k, size in enumerate(sizes):
            if step == lost_in and k in lost:
                continue
            end = origin + PERIOD * (k + 1)
            start = end - 10 - 10 * ((k + number) % 3)
            b.collective(
                start,
                end,
                CollectiveKind.ALL_REDUCE,
                "1|all",
                DP,
                name="ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)",
                sent=size,
                size=world,
                sequence=step * len(sizes) + k if numbered else NONE,
                launch=start - 1,
            )
        b.kernel(origin + length - 5, origin + length - 1, launch=origin + length - 6)
    trace = replace(b.build(), epoch_ns=epoch, rank_source="communicator")
    return measure_rank(trace, builtin()).partial


def splits(partials: list[RankPartial]) -> dict[tuple[int, int], tuple[int, int]]:
    """(rank, start of a matched collective) -> (transfer, waiting) in µs."""
    peers = match_peers(partials)
    found = {}
    for one in partials:
        waiting, table = peers.by_rank[one.rank], one.collectives
        for row in np.flatnonzero(waiting.matched).tolist():
            waited = int(waiting.wait_ends_ns[row] - table.start_ns[row])
            whole = int(table.duration_ns[row])
            found[one.rank, int(table.start_ns[row]) // 1000] = (
                (whole - waited) // 1000,
                waited // 1000,
            )
    return found


DIFFERENT = [1000, 2000, 3000, 4000, 5000, 6000]


def test_the_first_and_last_collectives_of_a_rank_may_be_missing() -> None:
    whole = splits([rank(0, DIFFERENT), rank(1, DIFFERENT)])
    assert len(whole) == 12
    for lost in ((0,), (5,), (0, 1), (4, 5)):
        found = splits([rank(0, DIFFERENT), rank(1, DIFFERENT, lost=lost)])
        assert len(found) == 2 * (6 - len(lost))
        assert found.items() <= whole.items()


def test_one_lost_in_the_middle_leaves_the_others_matched_and_says_how_many_not() -> None:
    partials = [rank(0, DIFFERENT), rank(1, DIFFERENT, lost=(2,))]
    peers = match_peers(partials)
    assert peers.realigned == {"size": 5}
    assert peers.unmatched_groups["1|all"] == (
        "step iteration 0: ranks launched different collectives (6, 5); 1 of 6 stay unmatched"
    )
    found = summarise(partials, {}).metrics
    wait, transfer = found["dp_collective_wait_ms"], found["dp_collective_transfer_ms"]
    # Durations 10 20 30 10 20 30 and 20 30 - 20 30 10: transfers 10 20 - 10 20 10.
    assert (transfer.status, transfer.low, wait.low) == ("estimated", 0.07, 0.03)
    # Rank 0's third, 30 µs, may be either: 15 µs per rank.
    assert (transfer.high, wait.high) == (0.085, 0.045)
    assert "1 of 11 collectives (all ranks) stay unmatched" in str(wait.basis)
    assert "kind, size and order (5)" in str(wait.basis)


def test_a_rank_that_ends_halfway_is_matched_as_far_as_it_goes() -> None:
    found = splits([rank(0, DIFFERENT), rank(1, DIFFERENT, lost=(3, 4, 5))])
    assert sorted(start for number, start in found if number == 0) == [90, 180, 270]


def test_equal_sizes_need_more_than_their_order() -> None:
    """Any of six equal collectives may be the lost one."""
    equal = [1000] * 6
    assert splits([rank(0, equal), rank(1, equal, lost=(2,))]) == {}


def test_numbers_of_the_trace_tell_equal_collectives_apart() -> None:
    equal = [1000] * 6
    whole = splits([rank(0, equal), rank(1, equal)])
    partials = [rank(0, equal, numbered=True), rank(1, equal, lost=(2, 3), numbered=True)]
    found = splits(partials)
    assert len(found) == 8
    assert found.items() <= whole.items()
    assert match_peers(partials).realigned == {"number": 4}


def test_time_tells_equal_collectives_apart_on_one_clock() -> None:
    equal = [1000] * 6
    whole = splits([rank(0, equal), rank(1, equal)])
    partials = [rank(0, equal, epoch=7), rank(1, equal, lost=(2,), epoch=7)]
    found = splits(partials)
    assert len(found) == 10
    assert found.items() <= whole.items()
    assert match_peers(partials).realigned == {"time": 5}


def test_the_clocks_of_whole_steps_serve_the_damaged_one() -> None:
    """Ranks of two hosts, 3 ms apart: two whole steps give the offset for the third."""
    equal = [1000] * 6
    partials = [
        rank(0, equal, steps=3, epoch=0),
        replace(rank(1, equal, steps=3, lost=(2,), lost_in=2, epoch=3_000_000), host=2),
    ]
    assert match_peers(partials).realigned == {"time": 5}


def test_other_steps_stand_whole_for_the_metric() -> None:
    equal = [1000] * 6
    partials = [rank(0, equal, steps=3), rank(1, equal, steps=3, lost=(2,))]
    found = summarise(partials, {}).metrics["dp_collective_transfer_ms"]
    # Transfers 10 20 10 10 20 10 in each whole step.
    assert (found.status, found.value) == ("measured", 0.08)
    assert "without 2 of 6 steps (all ranks) that are not matched whole" in str(found.basis)


def test_equal_numbers_of_different_collectives_are_not_matched_by_order() -> None:
    """Each rank lost another one: six and six would pair the wrong ones."""
    seven = [*DIFFERENT, 7000]
    found = splits([rank(0, seven, lost=(0,)), rank(1, seven, lost=(6,))])
    whole = splits([rank(0, seven), rank(1, seven)])
    assert len(found) == 10
    assert found.items() <= whole.items()


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([100, 200, 300]), min_size=1, max_size=8),
    lost=st.sets(st.integers(0, 7)),
    world=st.integers(2, 3),
    numbered=st.booleans(),
    clock=st.booleans(),
)
def test_losing_events_of_one_rank_never_changes_the_split_of_those_still_matched(
    sizes: list[int], lost: set[int], world: int, numbered: bool, clock: bool
) -> None:
    epoch = 5 if clock else None

    def all_of(gone: tuple[int, ...]) -> list[RankPartial]:
        return [
            rank(n, sizes, lost=gone if n == 1 else (), world=world, numbered=numbered, epoch=epoch)
            for n in range(world)
        ]

    whole, found = splits(all_of(())), splits(all_of(tuple(lost)))
    assert found.items() <= whole.items()
    if numbered or clock:
        assert len(found) == world * (len(sizes) - len({k for k in lost if k < len(sizes)}))
    peers = match_peers(all_of(tuple(lost)))
    for one in all_of(tuple(lost)):
        waiting = peers.by_rank[one.rank]
        total = waiting.transfer[Family.DP] + waiting.wait[Family.DP]
        assert total.sum() == one.collectives.duration_ns[waiting.matched].sum()
