"""The pipeline bubble, its phases and what is none; µs in, exact figures out."""

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind, ProcessGroup, RankTrace
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import GEMM, TraceBuilder

PP = "PIPELINE_MODEL_PARALLEL_GROUP"
EP = "EXPERT_MODEL_PARALLEL_GROUP"


def stage(number: int = 0, forward: int = 10) -> TraceBuilder:
    """Two micro-batches in 100 µs; the host (thread 1) runs backward on thread 2.

    Receives: 0-20 before the first forward, 40-50 before the second, 75-80 before the last
    backward. Compute: forward 20-30 and 50-60, backward 30-40 and 80-90.
    """
    b = TraceBuilder(rank=number)
    b.range(0, 100, "iteration 1")
    b.range(0, 1, "setup")  # the thread with the most annotations is the forward thread
    for start, end, launch in ((0, 20, 0), (40, 50, 35), (75, 80, 61)):
        b.collective(start, end, CollectiveKind.SEND_RECV, "9", PP, launch=launch, stream=9)
    b.kernel(20, 20 + forward, GEMM, launch=2)
    b.kernel(30, 40, GEMM, launch=3, tid=2)
    b.kernel(50, 50 + forward, GEMM, launch=36)
    b.kernel(80, 90, GEMM, launch=62, tid=2)
    return b


def built(b: TraceBuilder) -> RankTrace:
    trace = b.build()
    groups = (ProcessGroup("9", PP, (0, 1)),)
    return RankTrace(
        **{
            name: getattr(trace, name)
            for name in ("rank", "rank_source", "names", "activities", "calls", "ranges")
        },
        collectives=trace.collectives,
        device=trace.device,
        groups=groups,
    )


def times(b: TraceBuilder) -> dict[str, float]:
    partial = measure_rank(built(b), builtin()).partial
    return {name: float(values[0]) / 1e3 for name, values in partial.times_ns.items()}


def test_the_bubble_is_divided_into_warm_up_steady_and_cool_down() -> None:
    t = times(stage())
    # Not 0-2: the host had not issued the first forward yet, and stood in no call.
    assert t["pp_bubble_warmup"] == 18
    assert t["pp_bubble_steady"] == 10
    assert t["pp_bubble_cooldown"] == 5
    assert t["pp_bubble"] == 33
    assert t["host_gap"] + t["dependency_idle"] == t["gpu_idle"]


def test_a_receive_that_the_host_itself_waits_for_is_a_bubble_and_not_launch_starved() -> None:
    b = stage()
    b.call(0.5, 2, "cudaDeviceSynchronize")
    t = times(b)
    assert t["pp_bubble_warmup"] == 19.5
    assert t["launch_starved"] == times(stage())["launch_starved"] - 1.5


def test_expert_communication_beside_a_receive_is_not_the_bubble() -> None:
    b = stage()
    b.collective(42, 46, CollectiveKind.ALL_TO_ALL, "1", EP, launch=36, stream=11)
    assert times(b)["pp_bubble_steady"] == 6


def test_a_send_holds_nobody_up() -> None:
    b = stage()
    b.collective(60, 70, CollectiveKind.SEND_RECV, "9", PP, launch=60, stream=9, sent=8, received=0)
    assert times(b)["pp_bubble"] == 33


def test_the_ideal_bubble_and_the_slowest_stage_come_from_all_stages() -> None:
    ranks = [measure_rank(built(stage(n, 10 - 2 * n)), builtin()).partial for n in (0, 1)]
    metrics = summarise(ranks, {}).metrics
    # First forward or receive at 0, last backward until 90, bubble 33: 57 µs of work.
    ideal = [one.value for one in metrics["pp_bubble_ideal_ms"].per_rank]
    assert ideal == [0.0285, 0.0285]
    assert metrics["pp_bubble_ideal_ms"].basis == "2 stages, 2 backward passes per step"
    assert metrics["pp_stage_imbalance_ms"].value == 0.002
    assert "stage 0 of 2" in str(metrics["pp_stage_imbalance_ms"].basis)
    alone = summarise(ranks[:1], {}).metrics["pp_stage_imbalance_ms"]
    assert alone.reason == "1 of 2 pipeline stages were read"


def test_without_a_pipeline_passes_are_micro_batches_and_pieces_of_one_are_not() -> None:
    def passes(pieces: list[int]) -> float | None:
        b = TraceBuilder()
        b.range(0, 200, "iteration 1")
        at = 0
        for size in pieces:
            b.kernel(at, at + 1, GEMM, launch=at)
            for _ in range(size):
                at += 2
                b.kernel(at, at + 1, GEMM, launch=at, tid=2)
            at += 2
        metrics = summarise([measure_rank(b.build(), builtin()).partial], {}).metrics
        return metrics["microbatches_per_step"].value

    assert passes([3, 3, 3, 3]) == 4
    assert passes([1, 3, 1, 3]) is None
