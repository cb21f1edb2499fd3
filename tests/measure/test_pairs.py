"""Sends and receives of neighbouring stages: waiting, transfer and rate."""

from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind
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


def test_of_more_than_two_stages_nobody_knows_who_talks_to_whom() -> None:
    three = [stage(number, (100, 200, 8, 8), world=3) for number in range(3)]
    found = summarise(three, {}).metrics["pp_p2p_transfer_ms"]
    assert found.status == "not_measured"
    assert str(found.reason).startswith("3 ranks of one pipeline group")
