"""Who arrives last, how often, and why; the split of waiting and transfer keeps every nanosecond."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.peers import match_peers
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind
from moe_advisor.result import Lateness
from moe_advisor.roles.roles import Role
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ALL_REDUCE, GROUPED, TraceBuilder

EP, DP, TP = "EXPERT_MODEL_PARALLEL_GROUP", "DATA_PARALLEL_GROUP", "TENSOR_MODEL_PARALLEL_GROUP"
LAYER = 1_000


def rank(
    number: int,
    late: list[float],
    *,
    experts: bool = True,
    received: list[int] | None = None,
    idle: bool = False,
) -> RankPartial:
    """Layers of dispatch, experts that take `late` µs longer, combine; both end in common.

    With `idle` the extra time is a gap in which the host launches nothing.
    """
    b = TraceBuilder(rank=number, world_size=2)
    b.range(0, LAYER * len(late), "iteration 1")
    for layer, extra in enumerate(late):
        at = LAYER * layer
        b.kernel(at, at + 100, launch=at)
        b.collective(
            at + 100,
            at + 200,
            CollectiveKind.ALL_TO_ALL,
            "1|[0, 1]",
            EP,
            received=received[layer] if received else 1 << 20,
            launch=at + 1,
        )
        busy = 0 if idle else extra
        b.kernel(at + 200, at + 300 + busy, GROUPED if experts else "gemm", launch=at + 2)
        arrives = at + 300 + extra
        b.collective(
            arrives,
            at + 900,
            CollectiveKind.ALL_TO_ALL,
            "1|[0, 1]",
            EP,
            received=1 << 20,
            launch=arrives - 1 if idle else at + 3,
        )
        b.kernel(at + 900, at + 990, launch=at + 4)
    return measure_rank(b.build(), builtin()).partial


def rows(ranks: list[RankPartial]) -> dict[int, Lateness]:
    why = summarise(ranks, {}).why
    assert why is not None
    return {one.rank: one for one in why.lateness if one.family == "ep_a2a"}


def test_a_sticky_rank_with_more_tokens_is_named_with_its_cause() -> None:
    full, empty = [3 << 20] * 8, [1 << 20] * 8
    found = rows([rank(0, [0.0] * 8, received=empty), rank(1, [400.0] * 8, received=full)])
    late = found[1]
    assert (late.arrived_last, late.of, late.pattern) == (8, 8, "sticky")
    assert late.caused_wait_ms == 3.2
    assert late.why == {"tokens": 3.2}
    assert found[0].caused_wait_ms == 0.0


def test_without_more_tokens_the_extra_work_is_compute_and_a_gap_is_the_hosts() -> None:
    assert rows([rank(0, [0.0] * 4), rank(1, [400.0] * 4)])[1].why == {"compute": 1.6}
    held = rows([rank(0, [0.0] * 4), rank(1, [400.0] * 4, idle=True)])[1].why
    assert held == {"host": 1.6}


def test_ranks_that_take_turns_rotate() -> None:
    found = rows([rank(0, [300.0, 0.0] * 4), rank(1, [0.0, 300.0] * 4)])
    assert [found[0].arrived_last, found[1].arrived_last] == [4, 4]
    assert {one.pattern for one in found.values()} == {"rotating"}


def test_few_collectives_have_no_pattern() -> None:
    found = rows([rank(0, [0.0] * 4), rank(1, [400.0] * 4)])
    assert (found[1].arrived_last, found[1].pattern) == (4, "mixed")


def test_starts_within_the_scatter_name_nobody() -> None:
    assert rows([rank(0, [0.0] * 4), rank(1, [10.0] * 4)]) == {}


def test_a_slow_gpu_explains_the_compute_that_made_others_wait() -> None:
    ranks = [rank(0, [0.0] * 4), rank(1, [400.0] * 4)]
    ranks[0].facts["kernel_speeds"] = {"gemm|1|9": (100_000.0, 900_000)}
    ranks[1].facts["kernel_speeds"] = {"gemm|1|9": (120_000.0, 1_080_000)}
    assert rows(ranks)[1].why == {"slow_gpu": 1.6}


def families(number: int, starts: list[int], ends: list[int]) -> RankPartial:
    """One collective per family and place; ends are common to the ranks, starts are not."""
    b = TraceBuilder(rank=number, world_size=3)
    b.range(0, 10_000, "iteration 1")
    b.kernel(0, 1, launch=0)
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        kind, group = [
            (CollectiveKind.ALL_TO_ALL, EP),
            (CollectiveKind.ALL_REDUCE, DP),
            (CollectiveKind.ALL_REDUCE, TP),
        ][place % 3]
        name = {"name": ALL_REDUCE} if kind == CollectiveKind.ALL_REDUCE else {}
        b.collective(start, end, kind, f"{group}|[0, 1, 2]", group, launch=1, size=3, **name)
    return measure_rank(b.build(), builtin()).partial


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.integers(0, 80) for _ in range(3)), st.integers(1, 15)),
        min_size=1,
        max_size=9,
    ),
    st.permutations([0, 1, 2]),
)
def test_waiting_and_transfer_are_the_whole_duration_whatever_the_order(
    chosen: list[tuple[int, int, int, int]], order: list[int]
) -> None:
    ends = [100 * n + 85 + extra for n, (*_, extra) in enumerate(chosen, 1)]
    ranks = [
        families(number, [100 * n + one[number] for n, one in enumerate(chosen, 1)], ends)
        for number in range(3)
    ]
    peers = match_peers(ranks)
    for one in ranks:
        waiting, table = peers.by_rank[one.rank], one.collectives
        for family in waiting.wait:
            mine = np.isin(table.role, [role for role in Role if role.family is family])
            split = waiting.wait[family].sum() + waiting.transfer[family].sum()
            assert split == table.duration_ns[mine].sum()
    shuffled, sorted_ = summarise([ranks[n] for n in order], {}), summarise(ranks, {})
    assert shuffled.metrics == sorted_.metrics
    assert shuffled.why == sorted_.why
