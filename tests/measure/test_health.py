"""Lost records, short ranks, emit_nvtx, slow GPUs and memory levels by the trace's own evidence."""

from dataclasses import replace

import polars as pl
import pytest

from moe_advisor.measure.health import gpu_slowness, run_issues
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import MEMORY_SCHEMA, RangeKind
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
