"""Each cause of device idle on the smallest timeline that shows it, and that they add up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.measure.causes import GROUP_OF
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import IDLE_LABELS, summarise
from moe_advisor.model import ActivityKind, CollectiveKind, CopyKind, RangeKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, GEMM, TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"
NOTIFY = "void deep_ep::intranode::notify_dispatch<2>(x)"


def causes_us(b: TraceBuilder) -> dict[str, float]:
    """Idle time by cause in µs; causes without any are left out."""
    partial = measure_rank(b.build(), builtin()).partial
    assert sum(partial.cause_ns.values()) == int(partial.times_ns["gpu_idle"].sum())
    return {cause: ns / 1e3 for cause, ns in partial.cause_ns.items()}


def late() -> TraceBuilder:
    """A kernel until 10 and one from 90 on, launched at 85: 80 µs are the host's."""
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.kernel(90, 100, launch=85)
    return b


def test_a_synchronising_call_is_named_with_the_range_around_it() -> None:
    b = late()
    b.range(15, 60, "layer0.router")
    b.call(20, 50, "cudaStreamSynchronize")
    b.range(19, 51, "aten::item", kind=RangeKind.OPERATOR)
    partial = measure_rank(b.build(), builtin()).partial
    assert partial.cause_ns["sync"] == 30_000
    name = "cudaStreamSynchronize in layer0.router > aten::item"
    assert partial.idle_detail["sync"] == {name: (1, 30_000)}


def test_the_range_of_the_step_itself_names_nothing() -> None:
    b = late()
    b.call(20, 50, "cudaStreamSynchronize")
    partial = measure_rank(b.build(), builtin()).partial
    assert partial.idle_detail["sync"] == {"cudaStreamSynchronize": (1, 30_000)}


def test_a_wait_for_a_copy_just_before_the_all_to_all_is_the_dispatchers() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.kernel(10, 12, "copy", kind=ActivityKind.MEMCPY, copy=CopyKind.DEVICE_TO_HOST, launch=2)
    b.call(5, 40, "cudaStreamSynchronize")
    b.collective(50, 100, CollectiveKind.ALL_TO_ALL, "1", EP, launch=45)
    found = causes_us(b)
    assert found["dispatcher_split_sync"] == 28
    assert "sync" not in found


def test_the_same_wait_before_a_gemm_is_an_ordinary_one() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.kernel(10, 12, "copy", kind=ActivityKind.MEMCPY, copy=CopyKind.DEVICE_TO_HOST, launch=2)
    b.call(5, 40, "cudaStreamSynchronize")
    b.kernel(50, 60, GEMM, launch=45)
    b.collective(60, 100, CollectiveKind.ALL_TO_ALL, "1", EP, launch=46)
    found = causes_us(b)
    assert found["sync"] == 28
    assert "dispatcher_split_sync" not in found


def test_a_copy_to_pageable_memory_blocks() -> None:
    b = late()
    call = b.call(5, 30, "cudaMemcpyAsync")
    b.kernel(
        10,
        12,
        "copy",
        kind=ActivityKind.MEMCPY,
        copy=CopyKind.DEVICE_TO_HOST,
        pageable=True,
        via=call,
    )
    assert causes_us(b)["blocking_copy"] == 18


def test_polling_for_token_counts_is_a_hidden_synchronisation() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.kernel(10, 30, NOTIFY, launch=5)
    b.kernel(60, 100, launch=50)  # no call between 5.5 and 50: the thread polled
    found = causes_us(b)
    assert found["dispatcher_count_wait"] == 20
    assert found["cuda_call"] == 0.5


def test_with_calls_before_the_notify_kernel_ends_nobody_polled() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.kernel(10, 30, NOTIFY, launch=5)
    b.call(8, 9, "cudaEventRecord")
    b.kernel(60, 100, launch=50)
    assert "dispatcher_count_wait" not in causes_us(b)


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        ("profiler", "profiler: Activity Buffer Request"),
        ("module_load", "profiler: Lazy Function Loading"),
        ("data", "data_loading"),
        ("python", "forward"),
    ],
)
def test_a_range_on_the_host_is_what_held_it(cause: str, name: str) -> None:
    b = late()
    b.range(20, 70, name, tid=2)
    found = causes_us(b)
    assert found[cause] == 50
    assert found["host_unknown"] == 29.5
    assert found["cuda_call"] == 0.5


def test_loading_a_module_and_allocating_are_causes_of_their_own() -> None:
    b = late()
    b.call(20, 30, "cuModuleLoadData")
    b.call(40, 60, "cudaMalloc")
    found = causes_us(b)
    assert (found["module_load"], found["alloc"]) == (10, 20)


def paused(steps: int, long_ones: int) -> TraceBuilder:
    b = TraceBuilder()
    for number in range(steps):
        at = number * 20_000
        b.range(at, at + 20_000, f"iteration {number}")
        b.kernel(at, at + 1_000, launch=at)
        pause = 8_000 if number < long_ones else 100
        b.kernel(at + 1_000 + pause, at + 19_999, launch=at + 900 + pause)
    return b


def test_garbage_collection_is_suspected_only_where_long_pauses_recur() -> None:
    assert causes_us(paused(3, 3))["gc_suspected"] == 3 * 7_900
    assert "gc_suspected" not in causes_us(paused(3, 1))


@pytest.mark.parametrize(
    ("cause", "stream", "kind"),
    [
        ("dependency_queue", 7, "kernel"),
        ("dependency_stream", 9, "kernel"),
        ("dependency_copy", 9, "copy"),
        ("dependency_peer", 9, "ep"),
    ],
)
def test_an_issued_activity_stood_behind_what_ended_last(
    cause: str, stream: int, kind: str
) -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    if kind == "ep":
        b.collective(0, 40, CollectiveKind.ALL_TO_ALL, "1", EP, launch=0, stream=stream)
    elif kind == "copy":
        b.kernel(0, 40, "copy", kind=ActivityKind.MEMCPY, launch=0, stream=stream)
    else:
        b.kernel(0, 40, launch=0, stream=stream)
    b.kernel(60, 100, launch=20)
    assert causes_us(b) == {cause: 20}


def test_gaps_inside_a_cuda_graph_are_no_launch_gaps() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    graph = b.call(0, 5, "cudaGraphLaunch")
    for start, end in ((5, 40), (50, 100)):
        b.kernel(start, end, via=graph)["in_graph"] = True
    assert causes_us(b)["dependency_graph"] == 10


def test_every_cause_has_a_label_and_the_result_lists_those_that_occur() -> None:
    assert set(IDLE_LABELS) == set(GROUP_OF)
    b = late()
    b.call(20, 50, "cudaStreamSynchronize")
    summary = summarise([measure_rank(b.build(), builtin()).partial], {})
    assert {one.cause: one.ms for one in summary.idle_causes} == {
        "sync": 0.03,
        "cuda_call": 0.0005,
        "host_unknown": 0.0495,
    }


events = st.lists(
    st.tuples(
        st.integers(0, 90),
        st.integers(1, 20),
        st.sampled_from(
            [
                *("kernel", "ep", "copy", "graph", "notify", "cudaStreamSynchronize", "cudaMalloc"),
                *("cuModuleLoadData", "profiler: Buffer Flush", "data_loading", "forward", "gone"),
            ]
        ),
        st.integers(0, 30),
        st.sampled_from([7, 9]),
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=100, deadline=None)
@given(events, st.integers(1, 3))
def test_the_causes_divide_the_idle_time_exactly_and_keep_their_groups(
    chosen: list[tuple[int, int, str, int, int]], steps: int
) -> None:
    b = TraceBuilder()
    for number in range(steps):
        b.range(number * 40, number * 40 + 40, f"iteration {number}")
    for start, length, what, early, stream in chosen:
        launch, end = max(start - early, 0), start + length
        if what == "ep":
            b.collective(
                start, end, CollectiveKind.ALL_TO_ALL, "1", EP, launch=launch, stream=stream
            )
        elif what == "copy":
            b.kernel(
                start,
                end,
                "copy",
                kind=ActivityKind.MEMCPY,
                copy=CopyKind.DEVICE_TO_HOST,
                pageable=early % 2 == 0,
                launch=launch,
                stream=stream,
            )
        elif what in ("kernel", "notify", "gone"):
            name = NOTIFY if what == "notify" else ADD
            b.kernel(start, end, name, launch=None if what == "gone" else launch, stream=stream)
        elif what == "graph":
            b.kernel(start, end, launch=launch, stream=stream)["in_graph"] = True
        elif what.startswith("cu"):
            b.call(start, end, what)
        else:
            b.range(start, end, what, tid=2)
    partial = measure_rank(b.build(), builtin()).partial
    total = sum(partial.cause_ns.values())
    assert total == int(partial.times_ns["gpu_idle"].sum())
    for group, ns in partial.idle_ns.items():
        assert ns == sum(partial.cause_ns.get(c, 0) for c, g in GROUP_OF.items() if g == group)
