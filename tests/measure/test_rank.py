"""One rank's measurements on the smallest timelines that show them; µs in, exact ms out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import ActivityKind, CollectiveKind, CopyKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, GROUPED, TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"


def times_us(builder: TraceBuilder) -> dict[str, float]:
    """Times of the one step, in µs."""
    partial = measure_rank(builder.build(), builtin()).partial
    return {name: float(values[0]) / 1e3 for name, values in partial.times_ns.items()}


def test_exposed_communication_is_what_no_kernel_hides_and_copies_hide_nothing() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(10, 20)
    b.collective(15, 60, CollectiveKind.ALL_TO_ALL, "1", EP, stream=9)
    b.kernel(50, 70, "copy", kind=ActivityKind.MEMCPY, copy=CopyKind.DEVICE_TO_DEVICE, stream=3)
    b.kernel(55, 100)
    t = times_us(b)
    assert t["ep_a2a"] == 45
    assert t["ep_a2a_exposed"] == 35
    assert t["compute"] == 55
    assert t["gpu_busy"] == 90
    assert t["gpu_idle"] == 10


def test_a_gap_is_the_hosts_if_the_next_launch_began_after_it_did() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.kernel(30, 40, launch=25)  # launched in the gap: the host was late
    b.kernel(60, 100, launch=35)  # launched before the gap: it waited for something else
    t = times_us(b)
    assert t["host_gap"] == 20
    assert t["host_gap_launch"] == 20
    assert t["dependency_idle"] == 20


def test_a_host_gap_is_divided_by_what_held_the_host() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.call(12, 22, "cudaStreamSynchronize")
    b.call(25, 30, "cudaMalloc")
    b.range(35, 50, "data_loading")
    b.kernel(60, 100, launch=55)
    t = times_us(b)
    assert t["host_gap"] == 50
    assert t["host_gap_sync"] == 10
    assert t["host_gap_alloc"] == 5
    assert t["host_gap_data"] == 15
    assert t["host_gap_launch"] == 20
    assert t["host_gap_after_sync"] == 0


def test_a_gap_that_begins_inside_a_synchronisation_is_marked() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.call(5, 15, "cudaDeviceSynchronize")
    b.kernel(40, 100, launch=30)
    t = times_us(b)
    assert t["host_gap_sync"] == 5
    assert t["host_gap_after_sync"] == 30


def test_compute_absent_time_is_divided_once() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.collective(10, 50, CollectiveKind.ALL_TO_ALL, "1", EP, launch=2)
    b.kernel(60, 80, launch=30)  # issued at 30: starved 10-30, blocked 30-50, unresolved 50-60
    b.kernel(90, 100, launch=85)  # issued at 85: starved 80-85, unresolved 85-90
    t = times_us(b)
    assert t["compute_absent"] == 60
    assert t["launch_starved"] == 25
    assert t["blocked_by_comm"] == 20
    assert t["ep_a2a_blocking"] == 20
    assert t["compute_absent_unresolved"] == 15


def test_kernels_beside_communication_are_compared_with_their_undisturbed_median() -> None:
    b = TraceBuilder()
    b.range(0, 200, "iteration 1")
    for at in (0, 20, 40):
        b.kernel(at, at + 10, launch=0)
    b.kernel(60, 75, launch=0)
    b.collective(60, 80, CollectiveKind.ALL_TO_ALL, "1", EP, stream=9, launch=0)
    assert times_us(b)["overlap_slowdown"] == 5


def test_an_opaque_graph_is_busy_and_what_it_hides_is_not_measured() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 50, launch=0)
    b.kernel(50, 100, "graph", kind=ActivityKind.GRAPH, launch=0)
    partial = measure_rank(b.build(), builtin()).partial
    metrics = summarise([partial], {}).metrics
    assert metrics["gpu_busy_ms"].value == 0.1
    assert metrics["expert_gemm_ms"].status == "not_measured"
    assert "cuda-graph-trace=node" in str(metrics["expert_gemm_ms"].reason)
    assert metrics["graph_opaque_share"].value == 0.5


def test_a_trace_without_gpu_work_measures_nothing_and_says_so() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    summary = summarise([measure_rank(b.build(), builtin()).partial], {})
    assert {metric.status for metric in summary.metrics.values()} == {"not_measured"}
    assert summary.metrics["step_ms"].reason == "no GPU work inside a step"


def test_no_pipeline_is_a_measured_zero_and_no_experts_is_not() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 100, launch=0)
    metrics = summarise([measure_rank(b.build(), builtin()).partial], {}).metrics
    assert metrics["pp_p2p_ms"].value == 0.0
    assert metrics["a2a_to_expert_gemm"].status == "not_measured"


rows = st.lists(
    st.tuples(
        st.integers(0, 90),
        st.integers(1, 20),
        st.sampled_from(["kernel", "ep", "copy", "expert"]),
        st.integers(0, 30),
        st.sampled_from([7, 9]),
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda row: (row[0], row[4]),  # a stream starts one thing at a time
)


def built(chosen: list[tuple[int, int, str, int, int]]) -> TraceBuilder:
    b = TraceBuilder()
    b.range(0, 120, "iteration 1")
    for start, length, what, early, stream in chosen:
        launch = max(start - early, 0)
        end = start + length
        if what == "ep":
            b.collective(
                start, end, CollectiveKind.ALL_TO_ALL, "1", EP, launch=launch, stream=stream
            )
        elif what == "copy":
            b.kernel(start, end, "copy", kind=ActivityKind.MEMCPY, launch=launch, stream=stream)
        else:
            b.kernel(start, end, GROUPED if what == "expert" else ADD, launch=launch, stream=stream)
    return b


@settings(max_examples=60, deadline=None)
@given(rows)
def test_every_division_of_a_step_is_exact(chosen: list[tuple[int, int, str, int, int]]) -> None:
    partial = measure_rank(built(chosen).build(), builtin()).partial
    t = {name: int(values.sum()) for name, values in partial.times_ns.items()}
    assert t["host_gap"] + t["dependency_idle"] == t["gpu_idle"]
    causes = ("sync", "alloc", "data", "launch")
    assert sum(t[f"host_gap_{cause}"] for cause in causes) == t["host_gap"]
    absent = ("launch_starved", "blocked_by_comm", "blocked_by_copy", "compute_absent_unresolved")
    assert sum(t[name] for name in absent) == t["compute_absent"]
    assert sum(partial.absent_ns.values()) == t["compute_absent"]
    assert sum(int(values.sum()) for values in partial.parts_ns.values()) == t["step"]
    assert t["ep_a2a_blocking"] <= t["ep_a2a_exposed"] <= t["ep_a2a"] <= t["comm"]


def test_of_kernels_that_start_together_their_order_does_not_say_which_was_blocked() -> None:
    found = []
    for second in ([(2, 1, "kernel", 1, 9), (2, 1, "kernel", 0, 7)],
                   [(2, 1, "kernel", 0, 7), (2, 1, "kernel", 1, 9)]):  # fmt: skip
        chosen = [(0, 1, "kernel", 0, 7), (0, 2, "ep", 0, 7), *second]
        found.append(measure_rank(built(chosen).build(), builtin()).partial)
    one, other = (partial.times_ns["ep_a2a_blocking"].tolist() for partial in found)
    assert one == other


@settings(max_examples=30, deadline=None)
@given(rows, st.randoms())
def test_the_order_of_rows_does_not_matter(chosen: list, random: object) -> None:
    shuffled = chosen.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = measure_rank(built(chosen).build(), builtin()).partial
    other = measure_rank(built(shuffled).build(), builtin()).partial
    for name, values in one.times_ns.items():
        assert np.array_equal(values, other.times_ns[name]), name


@pytest.mark.parametrize("kind", ["sync", "free"])
def test_calls_are_counted_inside_the_steps_host_range(kind: str) -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.range(110, 200, "iteration 2")
    b.kernel(0, 90, launch=0)
    b.kernel(112, 190, launch=111)
    name = "cudaStreamSynchronize" if kind == "sync" else "cudaFree"
    for at in (10, 50, 105, 150):
        b.call(at, at + 1, name)
    b.call(195, 196, "cudaMalloc")
    partial = measure_rank(b.build(), builtin()).partial
    counted = partial.counts["syncs_per_step" if kind == "sync" else "alloc_retries"]
    assert counted.tolist() == [2.0, 1.0]


def test_memory_that_is_given_back_and_not_asked_for_again_is_no_retry() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 90, launch=0)
    for at, name in ((10, "cudaFree"), (20, "cudaMalloc"), (30, "cudaFree"), (40, "cudaFree")):
        b.call(at, at + 1, name)
    partial = measure_rank(b.build(), builtin()).partial
    assert partial.counts["alloc_retries"].tolist() == [1.0]
