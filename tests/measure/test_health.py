"""Lost records, short ranks, emit_nvtx, slow GPUs and memory levels by the trace's own evidence."""

import lzma
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from moe_advisor.analysis import analyze
from moe_advisor.ingest import sources
from moe_advisor.measure.health import (
    for_profiler,
    gpu_slowness,
    run_issues,
    slow_gpus,
    sparser_ranks,
)
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import (
    MEMORY_SCHEMA,
    ActivityKind,
    CollectiveKind,
    RangeKind,
    RankTrace,
)
from moe_advisor.output.run_view import capture_rows
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import FLASH, TraceBuilder


def rank(number: int = 0, length: int = 50, steps: int = 1) -> TraceBuilder:
    b = TraceBuilder(rank=number)
    for step in range(steps):
        at = step * 1000
        b.range(at, at + 1000, f"iteration {step}")
        for place in range(8):
            b.kernel(at + place * 100, at + place * 100 + length, FLASH, launch=at + place * 100)
    return b


def partial(b: TraceBuilder) -> RankPartial:
    return measure_rank(b.build(), builtin()).partial


def test_a_whole_capture_raises_nothing() -> None:
    ranks = [partial(rank(0)), partial(rank(1))]
    assert [one.issues for one in ranks] == [(), ()]
    assert run_issues(ranks, "nsys") == []


def test_launches_that_left_no_kernel_are_lost_records() -> None:
    b = rank()
    for at in range(850, 890, 5):
        b.call(at, at + 1)
    (issue,) = partial(b).issues
    assert (issue.id, issue.severity.value, issue.count) == ("launches-without-kernel", "error", 8)
    assert "8 of 16 kernel launches" in issue.message
    assert "nsys profile" in issue.message


def test_kernels_without_a_launch_are_said() -> None:
    b = rank()
    for at in range(850, 890, 5):
        b.kernel(at, at + 1, launch=None)
    (issue,) = partial(b).issues
    assert (issue.id, issue.count) == ("kernels-without-launch", 8)


def test_a_rank_with_fewer_steps_than_its_peers_was_cut_off() -> None:
    ranks = [partial(rank(0, steps=3)), partial(rank(1, steps=2))]
    (issue,) = run_issues(ranks, "nsys")
    assert (issue.id, issue.rank, issue.count) == ("rank-shorter", 1, 1)


def exchanging(number: int, kernels: int, exchanges: int, group: str = "ep") -> RankPartial:
    b = TraceBuilder(rank=number)
    b.range(0, 10_000, "iteration 0")
    for place in range(kernels):
        b.kernel(place * 100, place * 100 + 50, FLASH, launch=place * 100)
    for place in range(exchanges):
        b.collective(place * 100 + 60, place * 100 + 80, CollectiveKind.ALL_TO_ALL, group)
    return partial(b)


def test_a_rank_that_lacks_kernels_and_collectives_of_its_peers_lost_records() -> None:
    ranks = [exchanging(0, 60, 20), exchanging(1, 50, 12)]
    (issue,) = sparser_ranks(ranks)
    assert (issue.id, issue.severity, issue.rank, issue.count) == ("rank-sparser", "error", 1, 18)
    assert "rank 1 has 62 of rank 0's 80 kernels and 12 of its 20 collectives" in issue.message


def test_a_rank_with_fewer_kernels_but_all_collectives_only_had_less_to_do() -> None:
    assert sparser_ranks([exchanging(0, 60, 20), exchanging(1, 30, 20)]) == []


def test_stages_that_share_no_group_may_have_different_numbers() -> None:
    ranks = [exchanging(0, 60, 20, "first stage"), exchanging(1, 30, 10, "last stage")]
    assert sparser_ranks(ranks) == []


def test_the_command_to_capture_again_is_that_of_the_profiler_used() -> None:
    issues = run_issues([partial(rank(0, steps=3)), partial(rank(1, steps=1))], "nsys")
    (nsys,), (torch,) = for_profiler(issues, "nsys"), for_profiler(issues, "torch")
    said = [("nsys profile" in m, "torch.profiler" in m) for m in (nsys.message, torch.message)]
    assert said == [(True, False), (False, True)]


def test_operator_ranges_inflate_the_host_only_where_they_are_nvtx() -> None:
    b = rank()
    b.range(1, 5, "aten::mm", kind=RangeKind.OPERATOR)
    assert [issue.id for issue in run_issues([partial(b)], "nsys")] == ["operator-ranges"]
    assert run_issues([partial(b)], "torch") == []


def test_a_slow_gpu_takes_longer_for_the_same_kernel_and_grid() -> None:
    ranks = [partial(rank(n, length)) for n, length in enumerate((50, 50, 55, 50))]
    found = gpu_slowness(ranks)
    assert found[2] == pytest.approx(1.1)
    assert found[0] == pytest.approx(1.0)
    metric = summarise(ranks, {}).metrics["gpu_slowness"]
    assert (metric.value, metric.basis) == (1.1, "slowest is rank 2")


def test_slow_gpus_are_named_with_their_kernels_and_those_within_noise_are_not() -> None:
    ranks = [partial(rank(n, length)) for n, length in enumerate((50, 51, 55, 50))]
    (slow,) = slow_gpus(ranks)
    assert (slow.rank, slow.slowness) == (2, 1.1)
    assert [(k.name, k.ms, k.peers_ms, k.slowness) for k in slow.kernels] == [
        (FLASH, 0.055, 0.05, 1.1)
    ]


Traces = Callable[[str], list[Path]]


def slowed(trace: RankTrace, factor: float) -> RankTrace:
    """The trace as a GPU would have run it whose kernels (not NCCL's) take `factor` times longer.

    Whatever follows on a stream moves back by as much as it has to.
    """
    table = trace.activities
    nccl = np.asarray(["nccl" in name for name in trace.names])
    start, end = table["start_ns"].to_numpy().copy(), table["end_ns"].to_numpy().copy()
    stretched = (table["kind"].to_numpy() == ActivityKind.KERNEL) & ~nccl[table["name"].to_numpy()]
    length = np.where(stretched, (end - start) * factor, end - start).astype(np.int64)
    free: dict[int, int] = {}
    for row, stream in enumerate(table["stream"].to_list()):
        start[row] = max(start[row], free.get(stream, 0))
        free[stream] = start[row] + length[row]
    changed = table.with_columns(start_ns=start, end_ns=start + length)
    assert changed["start_ns"].is_sorted()  # no stream was pushed past another
    return replace(trace, activities=changed)


@pytest.mark.parametrize("name", ["nsys/base", "nsys/small"])
def test_a_real_gpu_made_slower_is_found_and_an_untouched_pair_is_not(
    real_trace: Traces, name: str
) -> None:
    ranks = sources.load(real_trace(name)[0], "nsys-sqlite").ranks
    names = builtin()
    as_captured = [measure_rank(one, names).partial for one in ranks]
    assert slow_gpus(as_captured) == []
    for slow in (0, 1):
        slower = measure_rank(slowed(ranks[slow], 1.06), names).partial
        pair = [slower if n == slow else one for n, one in enumerate(as_captured)]
        (found,) = slow_gpus(pair)
        assert found.rank == slow
        assert found.slowness == pytest.approx(1.06, abs=0.02)
        assert found.kernels


def test_a_kernel_that_begins_before_its_launch_shows_clocks_that_disagree() -> None:
    b = rank()
    for at in (810, 820):
        b.kernel(at, at + 5, FLASH, launch=at + 100)
    (issue,) = partial(b).issues
    assert (issue.id, issue.count) == ("clock-skew", 2)
    assert "50 µs" in issue.message


def test_a_step_with_half_of_the_kernels_lost_some() -> None:
    b = rank(steps=4)
    b.range(4000, 5000, "iteration 4")
    for place in range(3):
        b.kernel(4000 + place * 100, 4050 + place * 100, FLASH, launch=4000 + place * 100)
    (issue,) = partial(b).issues
    assert (issue.id, issue.count) == ("uneven-steps", 1)
    assert "iteration 4: 3" in issue.message


def test_one_rank_alone_has_no_peer_to_be_slower_than() -> None:
    assert gpu_slowness([partial(rank())]) == {}
    metric = summarise([partial(rank())], {}).metrics["gpu_slowness"]
    assert metric.status == "not_measured"


def test_memory_growth_and_fragmentation_come_from_the_levels() -> None:
    gib = 1 << 30
    trace = rank(steps=2).build()
    memory = pl.DataFrame(
        {
            "time_ns": [0, 500_000, 999_000, 1_500_000, 1_900_000],
            "allocated_bytes": [gib, 4 * gib, 2 * gib, 4 * gib, 3 * gib],
            "reserved_bytes": [6 * gib] * 5,
        },
        schema=MEMORY_SCHEMA,
    )
    one = measure_rank(replace(trace, memory=memory), builtin()).partial
    metrics = summarise([one], {}).metrics
    assert metrics["memory_growth_gib"].value == 1.0
    assert metrics["memory_fragmentation_gib"].value == 2.0
    assert summarise([partial(rank())], {}).metrics["memory_growth_gib"].status == "not_measured"


def test_driver_allocations_are_counted_per_step() -> None:
    b = rank(steps=2)
    for at, name in ((50, "cudaMalloc"), (60, "cudaFree"), (1050, "cuMemMap")):
        b.call(at, at + 1, name)
    value = summarise([partial(b)], {}).metrics["device_allocs_per_step"]
    assert value.value == 1.5


def test_a_rank_that_lost_records_is_left_out_of_the_result(tmp_path: Path) -> None:
    packed = Path(__file__).parents[1] / "fixtures" / "nsys" / "2025.3" / "ncclep.sqlite.xz"
    whole, cut = tmp_path / "whole.sqlite", tmp_path / "cut.sqlite"
    whole.write_bytes(lzma.decompress(packed.read_bytes()))
    cut.write_bytes(whole.read_bytes())
    kernels, calls = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"
    with sqlite3.connect(cut) as report:
        ((gone,),) = report.execute(f"SELECT max(globalPid) FROM {kernels}").fetchall()
        launches = f"SELECT correlationId FROM {kernels} WHERE globalPid = {gone} AND rowid % 3"
        report.execute(
            f"DELETE FROM {calls} WHERE globalTid >> 24 = {gone >> 24}"
            f" AND correlationId IN ({launches})"
        )
        report.execute(f"DELETE FROM {kernels} WHERE globalPid = {gone} AND rowid % 3")
    before, after = analyze([str(whole)]), analyze([str(cut)])
    (issue,) = [one for one in after.capture.issues if one.id == "rank-sparser"]
    assert (issue.severity, issue.rank, after.capture.complete) == ("error", 1, False)
    assert [one.rank for one in after.ranks] == [0]
    assert after.run.world_size == 2
    parts = [
        [one for one in result.parts_by_rank[0].parts if one.family == "compute"]
        for result in (before, after)
    ]
    assert parts[0] == parts[1]
    assert ("Ranks read", "2 of 2, 1 left out") in capture_rows(after)
