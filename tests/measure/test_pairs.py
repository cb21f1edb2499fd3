"""Sends and receives of neighbouring stages: waiting, transfer and rate."""

from moe_advisor.measure.pairs import stage_places
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import NONE, CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import TraceBuilder

PP = "PIPELINE_MODEL_PARALLEL_GROUP"
GB = 1_000_000_000


def stage(number: int, *kernels: tuple[float, float, int, int], world: int = 2) -> RankPartial:
    """A stage whose P2P kernels are (start, end, bytes sent, bytes received)."""
    b = TraceBuilder(rank=number, world_size=world)
    b.range(0, 1_000, "iteration 1")
    b.kernel(0, 1, launch=0)
    for start, end, sent, received in kernels:
        b.collective(
            start,
            end,
            CollectiveKind.SEND_RECV,
            "1|pipe",
            PP,
            sent=sent,
            received=received,
            size=world,
            launch=start - 0.5,
        )
    b.kernel(900, 1_000, launch=890)
    return measure_rank(b.build(), builtin()).partial


def test_a_receive_waits_until_its_sender_arrives() -> None:
    metrics = summarise(
        [stage(0, (300, 400, GB // 100, 0)), stage(1, (100, 400, 0, GB // 100))], {}
    ).metrics
    assert [one.value for one in metrics["pp_p2p_wait_ms"].per_rank] == [0.0, 0.2]
    assert [one.value for one in metrics["pp_p2p_transfer_ms"].per_rank] == [0.1, 0.1]
    assert metrics["pp_p2p_bus_gbps"].value == 100.0


def test_sends_meet_receives_in_whatever_order_each_side_issues_them() -> None:
    first = stage(0, (100, 150, 8, 0), (200, 300, 0, 16))
    second = stage(1, (120, 300, 16, 0), (310, 340, 0, 8))
    metrics = summarise([first, second], {}).metrics
    # 8 bytes: min(50, 30) µs; 16 bytes: min(100, 180) µs.
    assert metrics["pp_p2p_transfer_ms"].value == 0.13
    assert [one.value for one in metrics["pp_p2p_wait_ms"].per_rank] == [0.02, 0.08]


def test_sizes_that_do_not_fit_are_not_matched() -> None:
    found = summarise([stage(0, (1, 9, 8, 0)), stage(1, (1, 9, 0, 16))], {}).metrics
    assert found["pp_p2p_wait_ms"].status == "not_measured"
    assert "differ in number or size" in str(found["pp_p2p_wait_ms"].reason)


def four_stages(
    told: bool, lost: tuple[int, int] | None = None, size: int = 4
) -> list[RankPartial]:
    """Two micro-batches through four stages: sends and receives of 1F1B, with their peers if `told`.

    The k-th exchange over the link from stage s to s + 1 (forward 0, 1) ends at 100 x (3k + s + 1)
    µs; the sender is there 10 µs, the receiver 10 + 5 x (s + 1) µs before its end. Backward over
    the same link ends at 1000 + 100 x (3k + 3 - s) µs; the receiver is there 20 + s µs, the sender 8.
    """
    rows: list[list[tuple[float, float, int, int, int]]] = [[] for _ in range(4)]  # peer: last
    for k in range(2):
        for s in range(3):
            end = 100 * (3 * k + s + 1)
            rows[s].append((end - 10, end, 8, 0, s + 1))
            rows[s + 1].append((end - 10 - 5 * (s + 1), end, 0, 8, s))
            end = 1000 + 100 * (3 * k + 3 - s)
            rows[s].append((end - 20 - s, end, 0, 8, s + 1))
            rows[s + 1].append((end - 8, end, 8, 0, s))
    ranks = []
    for number, mine in enumerate(rows):
        b = TraceBuilder(rank=number, world_size=4)
        b.range(0, 2_000, "iteration 1")
        b.kernel(0, 1, launch=0)
        for place, (start, end, sent, received, peer) in enumerate(sorted(mine)):
            if lost == (number, place):
                continue
            b.collective(
                start,
                end,
                CollectiveKind.SEND_RECV,
                "1|pipe",
                PP,
                sent=sent,
                received=received,
                size=size,
                place=number if told else NONE,
                to=(peer,) if told and sent else (),
                from_=(peer,) if told and received else (),
                launch=start - 0.5,
            )
        b.kernel(1_900, 2_000, launch=1_890)
        ranks.append(measure_rank(b.build(), builtin()).partial)
    return ranks


def test_the_peers_that_a_trace_tells_split_waiting_in_any_number_of_stages() -> None:
    metrics = summarise(four_stages(told=True), {}).metrics
    wait, transfer = metrics["pp_p2p_wait_ms"], metrics["pp_p2p_transfer_ms"]
    assert wait.status == transfer.status == "measured"
    # Forward 10 µs per exchange, backward 8; the middle stages have two neighbours.
    assert [one.value for one in transfer.per_rank] == [0.036, 0.072, 0.072, 0.036]
    # Receivers: backward 12 + s from s + 1, forward 5 x stage from the one before; two of each.
    assert [one.value for one in wait.per_rank] == [0.024, 0.036, 0.048, 0.03]


def test_a_lost_send_leaves_the_other_stages_split_as_they_were() -> None:
    """Stage 1 lost its first exchange with stage 2: equal sizes, so both of that way are open."""
    metrics = summarise(four_stages(told=True, lost=(1, 1)), {}).metrics
    wait, transfer = metrics["pp_p2p_wait_ms"], metrics["pp_p2p_transfer_ms"]
    assert wait.status == "estimated"
    # Without 1 -> 2: stage 1 loses 2 x 10 µs of transfer, stage 2 the same and 2 x 10 of waiting.
    assert transfer.low == round((0.036 + 0.052 + 0.052 + 0.036) / 4, 6)
    assert wait.low == round((0.024 + 0.036 + 0.028 + 0.03) / 4, 6)
    assert "3 sends and receives found no partner" in str(wait.basis)
    assert "rank 1 and the receives of rank 2 differ in number" in str(wait.basis)


def test_a_stage_that_was_not_read_is_named() -> None:
    found = summarise(four_stages(told=True)[:2], {}).metrics["pp_p2p_wait_ms"]
    # All that stage 0 does is matched, of stage 1 the exchanges with stage 0 only.
    assert found.status == "estimated"
    assert "rank 1 exchanges with stage 2 of the pipeline, which was not read" in str(found.basis)


def test_the_peers_tell_how_many_stages_there_are_where_no_size_is_in_the_trace() -> None:
    ranks = four_stages(told=True, size=NONE)
    assert stage_places(ranks) == {0: (4, 0), 1: (4, 1), 2: (4, 2), 3: (4, 3)}
    assert stage_places(ranks[:2]) == {}  # the third is talked to, and was not read
    assert stage_places(four_stages(told=False, size=NONE)) == {}


def one_f_one_b_ranks() -> list[RankPartial]:
    """Three stages, two micro-batches, launched as Megatron does; every kernel lasts 10 µs more
    the later its stage."""
    ways = [
        [(8, 0), (8, 0), (0, 8), (0, 8)],
        [(0, 8), (8, 0), (0, 8), (8, 8), (8, 0), (0, 8), (8, 0)],
        [(0, 8), (8, 8), (8, 0)],
    ]
    return [
        stage(
            number,
            *((100 * k, 100 * k + 10 * (number + 1), *way) for k, way in enumerate(row, 1)),
            world=3,
        )
        for number, row in enumerate(ways)
    ]


def test_without_peers_the_order_of_1f1b_bounds_the_split() -> None:
    metrics = summarise(one_f_one_b_ranks(), {}).metrics
    wait, transfer = metrics["pp_p2p_wait_ms"], metrics["pp_p2p_transfer_ms"]
    assert wait.status == transfer.status == "estimated"
    # Stage 0: 4 x 10. Stage 1: 4 exchanges with stage 0 (10), 3 with stage 2 (20). Stage 2: 3 x 20.
    assert transfer.value == transfer.high == round((0.04 + 0.1 + 0.06) / 3, 6)
    assert transfer.low == 0.0
    assert wait.value == round((0.0 + 0.04 + 0.03) / 3, 6)
    assert wait.high == round((0.04 + 0.14 + 0.09) / 3, 6)
    assert str(wait.basis).startswith("whom a kernel talks to is not in the trace")


def test_of_more_than_two_stages_nobody_knows_who_talks_to_whom() -> None:
    three = [stage(number, (100, 200, 8, 8), world=3) for number in range(3)]
    found = summarise(three, {}).metrics["pp_p2p_transfer_ms"]
    assert found.status == "not_measured"
    assert str(found.reason).startswith("3 ranks of one pipeline group")
