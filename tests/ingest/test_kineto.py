"""What a Kineto trace becomes: times, links, kinds, ranks and what is left out."""

import gc
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from moe_advisor.errors import InputError
from moe_advisor.ingest import kineto
from moe_advisor.ingest.json_stream import StreamLimits
from moe_advisor.ingest.kineto_ranks import rank_in_name
from moe_advisor.model import (
    ACTIVITY_SCHEMA,
    CALL_SCHEMA,
    COLLECTIVE_SCHEMA,
    MEMORY_SCHEMA,
    NONE,
    RANGE_SCHEMA,
    ActivityKind,
    CopyKind,
    LoadedInput,
    RangeKind,
    RankTrace,
)
from tests.kineto_builder import (
    LAUNCHED,
    METADATA,
    annotation,
    call,
    copy,
    kernel,
    memset,
    operator,
    trace,
    write,
)


def load(tmp_path: Path, *events: dict[str, Any], name: str = "t.json", **meta: Any) -> LoadedInput:
    return kineto.load(write(tmp_path, trace(*events, **meta), name))


def only(loaded: LoadedInput) -> RankTrace:
    assert len(loaded.ranks) == 1
    return loaded.ranks[0]


def issue_ids(loaded: LoadedInput) -> set[str]:
    return {i.id for i in loaded.issues} | {i.id for rank in loaded.ranks for i in rank.issues}


def names(rank: RankTrace, table: pl.DataFrame) -> list[str]:
    return [rank.names[number] for number in table["name"]]


def test_tables_have_the_schemas_of_the_model(tmp_path: Path) -> None:
    rank = only(load(tmp_path, *LAUNCHED))
    assert rank.activities.schema == pl.Schema(ACTIVITY_SCHEMA)
    assert rank.calls.schema == pl.Schema(CALL_SCHEMA)
    assert rank.ranges.schema == pl.Schema(RANGE_SCHEMA)
    assert rank.collectives.schema == pl.Schema(COLLECTIVE_SCHEMA)
    assert rank.memory.schema == pl.Schema(MEMORY_SCHEMA)


def test_a_kernel_is_linked_to_its_launch_call(tmp_path: Path) -> None:
    rank = only(load(tmp_path, call(1.0, 2.0, 9, "cudaFree"), *LAUNCHED))
    row = rank.activities.row(0, named=True)
    assert (row["start_ns"], row["end_ns"], row["stream"]) == (20_000, 50_500, 7)
    assert row["kind"] == ActivityKind.KERNEL
    assert row["blocks"] == 8
    assert row["call"] == 1
    assert names(rank, rank.calls) == ["cudaFree", "cudaLaunchKernel"]
    assert rank.calls["tid"].to_list() == [101, 101]


def test_a_fractional_time_keeps_its_nanoseconds(tmp_path: Path) -> None:
    loaded = load(tmp_path, kernel("k", 4444404012843.702, 0.001))
    row = only(loaded).activities.row(0, named=True)
    assert (row["start_ns"], row["end_ns"]) == (4444404012843702, 4444404012843703)


def test_every_nanosecond_below_the_exactness_limit_is_told_apart(tmp_path: Path) -> None:
    base = 2**43 - 2
    times = [f"{base}.{ns:03d}" for ns in range(1000)]
    body = ",".join(f'{{"ph":"X","cat":"kernel","name":"k","ts":{t},"dur":1}}' for t in times)
    rank = only(kineto.load(write(tmp_path, f"[{body}]".encode())))
    assert rank.activities["start_ns"].to_list() == [base * 1000 + ns for ns in range(1000)]


def test_fractional_microseconds_since_1970_keep_their_nanoseconds(tmp_path: Path) -> None:
    times = ("1710000000123456.789", "1710000000123456.790", "1710000000123999.001")
    body = ",".join(f'{{"ph":"X","cat":"kernel","name":"k","ts":{t},"dur":0.002}}' for t in times)
    rank = only(kineto.load(write(tmp_path, f'{{"traceEvents":[{body}]}}'.encode())))
    assert rank.activities["start_ns"].to_list() == [
        1710000000123456789,
        1710000000123456790,
        1710000000123999001,
    ]
    assert (rank.activities["end_ns"] - rank.activities["start_ns"]).to_list() == [2, 2, 2]
    assert rank.epoch_ns == 0


def test_whole_microseconds_since_1970_are_utc(tmp_path: Path) -> None:
    event = kernel("k", 1650000000123456, 12)
    rank = only(kineto.load(write(tmp_path, json.dumps([event]).encode())))
    assert rank.activities["start_ns"].to_list() == [1650000000123456000]
    assert rank.epoch_ns == 0


def test_relative_times_without_a_base_have_no_epoch(tmp_path: Path) -> None:
    assert only(load(tmp_path, *LAUNCHED, baseTimeNanoseconds=None)).epoch_ns is None


def test_the_base_time_is_the_epoch_and_is_not_added(tmp_path: Path) -> None:
    rank = only(load(tmp_path, *LAUNCHED))
    assert rank.epoch_ns == 1759276800000000000
    assert rank.activities["start_ns"].to_list() == [20_000]


@pytest.mark.parametrize("form", ["before", "after", "list"])
def test_metadata_may_stand_before_or_after_the_events_or_be_absent(
    tmp_path: Path, form: str
) -> None:
    events = list(LAUNCHED)
    documents = {
        "before": {**METADATA, "traceEvents": events},
        "after": {"traceEvents": events, **METADATA},
        "list": events,
    }
    loaded = kineto.load(write(tmp_path, json.dumps(documents[form]).encode(), "plain.json"))
    rank = only(loaded)
    assert rank.activities["call"].to_list() == [0]
    if form == "list":
        assert (rank.rank, rank.rank_source) == (0, "process-order")
        assert loaded.info.producer == "PyTorch profiler"
    else:
        assert (rank.rank, rank.rank_source, rank.world_size) == (1, "metadata", 2)
        assert loaded.info.producer == "PyTorch profiler (CUDA 13.0, CUPTI 130001)"
        assert rank.device.name == "NVIDIA H200"
        assert rank.device.sm_count == 132
        assert rank.device.compute_capability == "9.0"
        assert [group.ranks for group in rank.groups] == [(0, 1), (0, 1)]


def test_gzip_is_read_whatever_the_name(tmp_path: Path) -> None:
    packed = load(tmp_path, *LAUNCHED, name="t.json.gz")
    renamed = tmp_path / "no-suffix"
    (tmp_path / "t.json.gz").rename(renamed)
    assert only(packed).activities.equals(only(kineto.load(renamed)).activities)


def test_categories_of_old_traces_mean_the_same(tmp_path: Path) -> None:
    old = {
        "Kernel": kernel("k", 20, 5, 1),
        "Memcpy": copy("Memcpy HtoD (Pinned -> Device)", 30, 5, 2, 4096),
        "Memset": memset(40, 1, 3),
        "Runtime": call(1, 2, 1),
        "Operator": operator("aten::mm", 0, 9),
    }
    events = [{**event, "cat": cat} for cat, event in old.items()]
    for event in events:
        event["args"]["external id"] = event["args"].pop("External id", 0)
    rank = only(kineto.load(write(tmp_path, json.dumps(events).encode())))
    assert rank.activities["kind"].to_list() == [
        ActivityKind.KERNEL,
        ActivityKind.MEMCPY,
        ActivityKind.MEMSET,
    ]
    assert rank.activities["call"].to_list() == [0, NONE, NONE]
    assert rank.ranges["kind"].to_list() == [RangeKind.OPERATOR]


@pytest.mark.parametrize(
    ("name", "direction", "pageable"),
    [
        ("Memcpy DtoH (Device -> Pageable)", CopyKind.DEVICE_TO_HOST, True),
        ("Memcpy DtoH (Device -> Pinned)", CopyKind.DEVICE_TO_HOST, False),
        ("Memcpy HtoD (Pageable -> Device)", CopyKind.HOST_TO_DEVICE, True),
        ("Memcpy DtoD (Device -> Device)", CopyKind.DEVICE_TO_DEVICE, False),
        ("Memcpy HtoH (Pinned -> Pinned)", CopyKind.HOST_TO_HOST, False),
        ("Memcpy PtoP (Device -> Device)", CopyKind.PEER_TO_PEER, False),
        ("Memcpy AtoD (Array -> Device)", CopyKind.OTHER, False),
        ("CopyDeviceToHost", CopyKind.DEVICE_TO_HOST, False),
        ("something else", CopyKind.OTHER, False),
    ],
)
def test_the_name_of_a_copy_tells_direction_and_pageable_memory(
    tmp_path: Path, name: str, direction: CopyKind, pageable: bool
) -> None:
    row = only(load(tmp_path, copy(name, 5, 1, size=4096))).activities.row(0, named=True)
    assert (row["copy_kind"], row["pageable"], row["bytes"]) == (direction, pageable, 4096)


def test_gpu_copies_of_annotations_are_not_gpu_work(tmp_path: Path) -> None:
    shadow = {**kernel("step", 0, 90), "cat": "gpu_user_annotation"}
    rank = only(load(tmp_path, shadow, *LAUNCHED))
    assert names(rank, rank.activities) == ["first_kernel"]


def test_kernels_of_a_graph_launch_share_its_call(tmp_path: Path) -> None:
    rank = only(
        load(
            tmp_path,
            call(1, 2, 5, "cudaGraphLaunch_v10000"),
            kernel("a", 10, 1, 5),
            kernel("b", 12, 1, 5),
            call(20, 1, 6),
            kernel("c", 30, 1, 6),
            kernel("d", 40, 1, 7, **{"graph node id": 3}),
        )
    )
    assert rank.activities["call"].to_list() == [0, 0, 1, NONE]
    assert rank.activities["in_graph"].to_list() == [True, True, False, True]
    assert names(rank, rank.calls) == ["cudaGraphLaunch", "cudaLaunchKernel"]


def test_an_abi_generation_is_part_of_a_call_name(tmp_path: Path) -> None:
    rank = only(load(tmp_path, call(1, 1, 1, "cuMemFree_v2"), call(3, 1, 2, "cudaFree_v3020")))
    assert names(rank, rank.calls) == ["cuMemFree_v2", "cudaFree"]


def test_ranges_have_their_kinds_and_sequence_numbers(tmp_path: Path) -> None:
    forward = {"Sequence number": 12, "Fwd thread id": 0}
    backward = {"Sequence number": 12, "Fwd thread id": 1}
    module = {**operator("nn.Module: Linear_0", 2, 50), "cat": "python_function"}
    frame = {**operator("train.py(12): step", 1, 60), "cat": "python_function"}
    flush = {**operator("Buffer Flush", 70, 1), "cat": "overhead", "pid": -1, "tid": 0}
    rank = only(
        load(
            tmp_path,
            annotation("ProfilerStep#3", 0, 100),
            frame,
            module,
            operator("aten::mm", 5, 2, **forward),
            annotation("nccl:all_to_all", 8, 1),
            operator("MmBackward0", 30, 5, tid=205, **backward),
            flush,
        )
    )
    got = list(
        zip(
            names(rank, rank.ranges),
            rank.ranges["kind"],
            rank.ranges["sequence"],
            rank.ranges["forward_tid"],
            rank.ranges["tid"],
            strict=True,
        )
    )
    assert got == [
        ("ProfilerStep#3", RangeKind.ANNOTATION, NONE, NONE, 101),
        ("nn.Module: Linear_0", RangeKind.PYTHON, NONE, NONE, 101),
        ("aten::mm", RangeKind.OPERATOR, 12, NONE, 101),
        ("nccl:all_to_all", RangeKind.LIBRARY, NONE, NONE, 101),
        ("MmBackward0", RangeKind.OPERATOR, 12, 1, 205),
        ("profiler: Buffer Flush", RangeKind.LIBRARY, NONE, NONE, NONE),
    ]


def test_tables_are_sorted_with_enclosing_ranges_first(tmp_path: Path) -> None:
    rank = only(
        load(
            tmp_path,
            kernel("late", 50, 1),
            kernel("long", 20, 9),
            kernel("short", 20, 3),
            operator("inner", 5, 1),
            operator("outer", 5, 9),
            call(9, 1, 1),
            call(2, 1, 2),
        )
    )
    assert names(rank, rank.activities) == ["short", "long", "late"]
    assert names(rank, rank.ranges) == ["outer", "inner"]
    assert rank.calls["start_ns"].to_list() == [2000, 9000]


def test_text_process_and_thread_identifiers_become_stable_numbers(tmp_path: Path) -> None:
    events = [
        call(1, 1, 1, pid="100", tid="101"),
        call(3, 1, 2, pid="100", tid="main"),
        call(5, 1, 3, pid="100", tid="other"),
        call(7, 1, 4, pid="100", tid="main"),
        {**kernel("k", 9, 1, 2), "pid": "0", "tid": "stream 7"},
    ]
    rank = only(load(tmp_path, *events))
    first, main, other, again = rank.calls["tid"].to_list()
    assert first == 101
    assert main == again != other
    assert rank.activities["call"].to_list() == [1]


def test_threads_of_two_processes_are_kept_apart(tmp_path: Path) -> None:
    helper = {**operator("load", 2, 1), "pid": 555}
    rank = only(load(tmp_path, *LAUNCHED, operator("a", 1, 1), helper))
    assert rank.ranges["tid"].n_unique() == 2
    assert rank.calls["tid"].to_list() == [101]


def test_memory_levels_of_the_gpu_are_kept(tmp_path: Path) -> None:
    def memory(ts: float, kind: int, device: int, allocated: int) -> dict[str, Any]:
        return {
            "ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 100,
            "tid": 101, "ts": ts,
            "args": {"Total Reserved": 900, "Total Allocated": allocated, "Bytes": -5,
                     "Device Id": device, "Device Type": kind, "Addr": 1},
        }  # fmt: skip

    document = {
        **METADATA,
        "traceEvents": [
            *LAUNCHED, memory(9, 1, 0, 700), memory(5, 1, 0, 500),
            memory(6, 0, 0, 1), memory(7, 1, 1, 2),
        ],
    }  # fmt: skip
    rank = only(kineto.load(write(tmp_path, json.dumps(document).encode())))
    assert rank.memory.rows() == [(5000, 500, 900), (9000, 700, 900)]


# --- ranks ----------------------------------------------------------------------------------


def test_the_rank_comes_from_metadata_before_the_file_name(tmp_path: Path) -> None:
    rank = only(load(tmp_path, *LAUNCHED, name="rank7.json"))
    assert (rank.rank, rank.rank_source) == (1, "metadata")


def test_the_rank_in_a_collective_is_one_of_its_group(tmp_path: Path) -> None:
    args = {
        "Collective name": "allreduce",
        "Rank": 1,
        "Group size": 2,
        "Process Group Ranks": "[4, 6]",
        "Process Group Name": "3",
    }
    comms = operator("record_param_comms", 1, 1, **args)
    rank = only(load(tmp_path, comms, *LAUNCHED, name="rank7.json", distributedInfo=None))
    assert (rank.rank, rank.rank_source) == (6, "metadata")


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rank3.json", 3),
        ("trace_rank_12.json.gz", 12),
        ("base.rank-5.json", 5),
        ("run_r2.pt.trace.json", 2),
        ("trace_3.json", 3),
        ("prof-4.json.gz", 4),
        ("host_4711.1759276800000000000.pt.trace.json", None),
        ("trace.json", None),
        ("h200.json", None),
    ],
)
def test_the_rank_in_a_file_name(name: str, rank: int | None) -> None:
    assert rank_in_name(name) == rank


def test_the_file_name_tells_the_rank_where_nothing_else_does(tmp_path: Path) -> None:
    rank = only(load(tmp_path, *LAUNCHED, name="rank3.json", distributedInfo=None))
    assert (rank.rank, rank.rank_source) == (3, "file-name")


def test_two_devices_of_one_process_are_two_ranks(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        call(1, 1, 1),
        kernel("on0", 10, 1, 1),
        call(3, 1, 2),
        kernel("on1", 12, 1, 2, device=1),
    )
    assert [(r.rank, r.rank_source) for r in loaded.ranks] == [
        (0, "process-order"),
        (1, "process-order"),
    ]
    assert [names(r, r.activities) for r in loaded.ranks] == [["on0"], ["on1"]]
    assert [r.activities["call"].to_list() for r in loaded.ranks] == [[0], [1]]
    assert [r.calls.height for r in loaded.ranks] == [2, 2]


def test_processes_of_a_merged_file_are_ranks_though_their_correlations_collide(
    tmp_path: Path,
) -> None:
    loaded = load(
        tmp_path,
        call(10, 1, 1, pid=100),
        {**kernel("of100", 20, 5, 1), "pid": 0},
        call(1000, 1, 1, pid=200),
        {**kernel("of200", 1010, 5, 1), "pid": 0},
    )
    assert [names(r, r.activities) for r in loaded.ranks] == [["of100"], ["of200"]]
    assert [r.activities["call"].to_list() for r in loaded.ranks] == [[0], [0]]
    assert [r.calls["start_ns"].to_list() for r in loaded.ranks] == [[10_000], [1_000_000]]


def test_a_device_with_a_few_helper_kernels_is_no_rank(tmp_path: Path) -> None:
    many = [kernel("main", 10 + n, 0.5) for n in range(200)]
    loaded = load(tmp_path, *many, kernel("stray", 5, 1, device=1))
    assert len(loaded.ranks) == 1
    assert loaded.ranks[0].activities.height == 200
    assert "minor-device-skipped" in issue_ids(loaded)


# --- issues ---------------------------------------------------------------------------------


def test_a_sound_trace_has_no_issues(tmp_path: Path) -> None:
    assert issue_ids(load(tmp_path, *LAUNCHED)) == set()


@pytest.mark.parametrize(
    ("key", "issue"),
    [
        ("with_stack", "profiler-stacks-on"),
        ("record_shapes", "profiler-shapes-on"),
        ("profile_memory", "profiler-memory-on"),
    ],
)
def test_costly_profiler_settings_are_told(tmp_path: Path, key: str, issue: str) -> None:
    assert issue_ids(load(tmp_path, *LAUNCHED, **{key: 1})) == {issue}


def test_a_trace_without_gpu_work_says_so(tmp_path: Path) -> None:
    loaded = load(tmp_path, operator("aten::mm", 1, 2))
    assert issue_ids(loaded) == {"no-gpu-activity"}
    assert only(loaded).ranges.height == 1
    assert only(loaded).rank == 1


def test_gpu_work_without_launches_is_told(tmp_path: Path) -> None:
    loaded = load(tmp_path, *LAUNCHED, kernel("lost", 90, 1, 77))
    assert issue_ids(loaded) == {"gpu-work-without-launch"}


def test_negative_missing_and_impossible_times_are_dropped_and_counted(tmp_path: Path) -> None:
    missing = kernel("no dur", 1, 1)
    del missing["dur"]
    events = [*LAUNCHED, kernel("negative", 3, -4), missing, kernel("far", 1e300, 1)]
    loaded = kineto.load(write(tmp_path, json.dumps(events).encode()))
    assert only(loaded).activities.height == 1
    assert {i.id: i.count for i in loaded.issues} == {
        "negative-durations": 1,
        "events-without-duration": 1,
        "impossible-times": 1,
    }


def test_rows_a_day_from_all_others_are_a_clock_jump(tmp_path: Path) -> None:
    later = 4e12
    events = [call(later + n, 0.5, n + 1) for n in range(9)]
    loaded = load(tmp_path, kernel("k0", 1, 1, 1), kernel("k1", later + 20, 1, 2), *events)
    rank = only(loaded)
    assert names(rank, rank.activities) == ["k1"]
    assert issue_ids(loaded) == {"clock-jump"}


def test_kernels_long_before_their_launch_show_clock_skew(tmp_path: Path) -> None:
    loaded = load(tmp_path, call(5000, 1, 1), kernel("k", 10, 1, 1))
    assert issue_ids(loaded) == {"clock-skew"}


def test_a_shared_correlation_links_to_the_latest_call_before(tmp_path: Path) -> None:
    loaded = load(tmp_path, call(10, 1, 1), call(20, 1, 1), call(30, 1, 1), kernel("k", 25, 1, 1))
    assert only(loaded).activities["call"].to_list() == [1]
    assert issue_ids(loaded) == {"duplicate-correlation-ids"}


def test_failed_allocations_are_counted(tmp_path: Path) -> None:
    failed = {"ph": "i", "cat": "cpu_instant_event", "name": "[OutOfMemory]", "ts": 5, "args": {}}
    loaded = kineto.load(write(tmp_path, json.dumps([*LAUNCHED, failed, failed]).encode()))
    assert {i.id: i.count for i in loaded.issues} == {"out-of-memory-events": 2}


# --- bounds and discretion ------------------------------------------------------------------


def test_a_decompression_bomb_is_refused_with_the_option_that_allows_it(tmp_path: Path) -> None:
    path = write(tmp_path, trace(*LAUNCHED) + b" " * (3 << 20), "bomb.json.gz")
    limits = StreamLimits(max_ratio=50, ratio_free_bytes=1 << 20)
    with pytest.raises(InputError, match=r"50 times its size.*--max-expansion"):
        kineto.load(path, limits=limits)
    assert only(kineto.load(path)).activities.height == 1


def test_an_event_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"traceEvents":[{"name":"' + b"x" * (4 << 20) + b'"}]}')
    with pytest.raises(InputError, match="one event is larger than 1 MiB"):
        kineto.load(path, limits=StreamLimits(max_event_bytes=1 << 20))


def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, trace(*LAUNCHED))
    assert gc.isenabled()
    kineto.load(path)
    assert gc.isenabled()
    gc.disable()
    try:
        kineto.load(path)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_events_across_many_chunks_are_all_read_once(tmp_path: Path) -> None:
    count = 30_000  # several chunks of 1 MiB
    events = [kernel(f"kernel number {n % 7}", n, 0.5, n + 1) for n in range(count)]
    for name in ("many.json", "many.json.gz"):
        rank = only(load(tmp_path, *events, name=name))
        assert rank.activities["start_ns"].to_list() == [n * 1000 for n in range(count)]


CANARY = "CANARY"


def test_only_names_of_gpu_work_and_ranges_survive(tmp_path: Path) -> None:
    secret = {
        "traceName": f"/home/{CANARY}/trace.json",
        "host_name": CANARY,
        "username": CANARY,
        "hostname": CANARY,
        "worker_name": CANARY,
        "trace_id": CANARY,
        "cupti_version": CANARY,
        "cuda_runtime_version": CANARY,
        CANARY: CANARY,
        "deviceProperties": [{"id": 0, "name": CANARY, "uuid": CANARY}],
        "distributedInfo": {
            "rank": 0, "world_size": 1, "backend": CANARY, "nccl_version": CANARY, "host": CANARY,
            "pg_config": [{"pg_name": "0", "pg_desc": "default_pg", "ranks": CANARY,
                           "backend_config": CANARY}],
        },
    }  # fmt: skip
    extra = dict.fromkeys(("Call stack", "Concrete Inputs", "Input type", CANARY, "dtype"), CANARY)
    frame = {**operator(f"/home/{CANARY}/train.py(3): step", 1, 1), "cat": "python_function"}
    process = {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": CANARY}}
    label = {"ph": "X", "cat": CANARY, "name": CANARY, "pid": 1, "tid": 1, "ts": 1, "dur": 1}
    events = [
        call(1, 1, 1),
        kernel("visible_kernel", 5, 1, 1, **extra),
        operator("visible_op", 1, 1, **extra),
        frame,
        process,
        label,
    ]
    document = {**secret, "traceEvents": events}
    folder = tmp_path / CANARY
    folder.mkdir()
    loaded = kineto.load(write(folder, json.dumps(document).encode(), "trace.json"))
    rank = only(loaded)
    assert CANARY not in repr(loaded)
    assert set(rank.names) >= {"visible_kernel", "visible_op", "cudaLaunchKernel"}
    assert not [name for name in rank.names if CANARY in name]
    assert loaded.info.name == "trace.json"
    assert loaded.info.producer == "PyTorch profiler"
