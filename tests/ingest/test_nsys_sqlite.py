"""Reading Nsight Systems SQLite exports of every generation, whole and damaged."""

import hashlib
import lzma
import os
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from moe_advisor.errors import InputError
from moe_advisor.ingest import nsys_sqlite
from moe_advisor.ingest.nsys_build import bare_call_name
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
    Severity,
)
from tests.nsys_builder import GENERATIONS, NsysExport, process, thread, two_steps

FIXTURES = Path(__file__).parents[1] / "fixtures" / "nsys"


def load(export: NsysExport, folder: Path) -> LoadedInput:
    return nsys_sqlite.load(export.write(folder / "run.sqlite"))


def only_rank(export: NsysExport, folder: Path) -> RankTrace:
    (rank,) = load(export, folder).ranks
    return rank


def names(rank: RankTrace, table: pl.DataFrame) -> list[str]:
    return [rank.names[code] for code in table["name"]]


def issues(loaded: LoadedInput) -> dict[str, int]:
    return {issue.id: issue.count for issue in loaded.issues}


# --- the plain case, in every generation ------------------------------------------------------


@pytest.mark.parametrize("schema", GENERATIONS)
def test_every_schema_generation_gives_the_same_trace(schema: str, tmp_path: Path) -> None:
    loaded = load(two_steps(schema), tmp_path)
    (rank,) = loaded.ranks
    assert loaded.info.producer == "Nsight Systems 2025.3.2"
    assert loaded.info.ranks == (0,)
    assert rank.rank_source == "process-order"
    assert rank.activities["start_ns"].to_list() == [500, 2_000, 5_200, 12_000, 15_200]
    assert rank.activities["end_ns"].to_list() == [600, 5_000, 5_500, 15_000, 15_500]
    assert rank.activities["call"].to_list() == [NONE, 0, 1, 2, 3]
    assert rank.activities["blocks"].to_list() == [NONE, 6, NONE, 6, NONE]
    assert names(rank, rank.activities) == ["Memset", "gemm", "Memcpy HtoD", "gemm", "Memcpy HtoD"]
    assert names(rank, rank.calls) == ["cuLaunchKernelEx", "cudaMemcpyAsync"] * 2
    assert names(rank, rank.ranges) == ["iteration 0", "iteration 1"]


def test_tables_have_the_promised_columns_and_types(tmp_path: Path) -> None:
    rank = only_rank(two_steps(), tmp_path)
    for table, schema in (
        (rank.activities, ACTIVITY_SCHEMA),
        (rank.calls, CALL_SCHEMA),
        (rank.ranges, RANGE_SCHEMA),
        (rank.collectives, COLLECTIVE_SCHEMA),
        (rank.memory, MEMORY_SCHEMA),
    ):
        assert dict(table.schema) == {
            name: pl.Schema({name: kind})[name] for name, kind in schema.items()
        }
        assert sum(table.null_count().row(0)) == 0


def test_activities_calls_and_ranges_are_sorted_whatever_the_row_order(tmp_path: Path) -> None:
    export = NsysExport()
    export.launched(9_000, 9_500, "late", 3)
    export.launched(1_000, 3_000, "long", 1)
    export.launched(1_000, 2_000, "short", 2, called=700)
    export.range(500, 600, "inner")
    export.range(500, 900, "outer")
    rank = only_rank(export, tmp_path)
    assert names(rank, rank.activities) == ["short", "long", "late"]
    assert rank.activities["call"].to_list() == [0, 1, 2]
    assert rank.calls["start_ns"].to_list() == [700, 850, 8_850]
    assert names(rank, rank.ranges) == ["outer", "inner"]


# --- identity ---------------------------------------------------------------------------------


def test_two_processes_that_reuse_correlation_ids_join_their_own_calls(tmp_path: Path) -> None:
    export = NsysExport()
    for pid, at in ((20, 5_000), (10, 1_000)):
        export.launched(at, at + 100, f"kernel of {pid}", 1, pid)
    first, second = load(export, tmp_path).ranks
    assert (first.rank, second.rank) == (0, 1)
    assert names(first, first.activities) == ["kernel of 10"]
    assert first.calls["start_ns"].to_list() == [850]
    assert second.calls["start_ns"].to_list() == [4_850]
    assert first.activities["call"].to_list() == second.activities["call"].to_list() == [0]


def test_one_process_with_two_devices_is_two_ranks_that_share_their_calls(tmp_path: Path) -> None:
    export = NsysExport()
    export.launched(1_000, 1_100, "on one", 1, device=1)
    export.launched(2_000, 2_100, "on zero", 2, device=0)
    first, second = load(export, tmp_path).ranks
    assert names(first, first.activities) == ["on zero"]
    assert names(second, second.activities) == ["on one"]
    assert first.activities["call"].to_list() == [1]
    assert first.calls.equals(second.calls)


def test_a_device_hardly_used_is_left_out_and_reported(tmp_path: Path) -> None:
    export = NsysExport()
    for i in range(150):
        export.kernel(1_000 + i * 10, 1_005 + i * 10, device=1)
    export.copy(10, 20, deviceId=0)
    loaded = load(export, tmp_path)
    assert [rank.activities.height for rank in loaded.ranks] == [150]
    assert issues(loaded)["stray-device-work"] == 1


def test_process_numbers_above_63_bits_are_kept(tmp_path: Path) -> None:
    export = NsysExport()
    export.kernel(1_000, 1_100, correlation=5, hardware=0xC1)
    export.call(900, 950, correlation=5, hardware=0xC1)
    rank = only_rank(export, tmp_path)
    assert process(10, 0xC1) < 0
    assert rank.activities["call"].to_list() == [0]
    assert rank.calls["tid"].to_list() == [thread(10, 1, 0xC1)]


def test_machines_of_one_report_become_numbers(tmp_path: Path) -> None:
    export = NsysExport()
    export.kernel(1_000, 1_100, hardware=7)
    export.kernel(1_000, 1_100, hardware=9)
    assert [rank.host for rank in load(export, tmp_path).ranks] == [1, 2]


def test_an_export_without_process_numbers_is_one_rank(tmp_path: Path) -> None:
    export = two_steps()
    export.skip = frozenset(
        f"{table}.globalPid"
        for table in (
            "CUPTI_ACTIVITY_KIND_KERNEL",
            "CUPTI_ACTIVITY_KIND_MEMCPY",
            "CUPTI_ACTIVITY_KIND_MEMSET",
        )
    )
    rank = only_rank(export, tmp_path)
    assert rank.activities["call"].to_list() == [NONE, 0, 1, 2, 3]
    assert names(rank, rank.ranges) == ["iteration 0", "iteration 1"]


def test_a_gpu_is_found_through_its_process_and_ordinal(tmp_path: Path) -> None:
    export = two_steps()
    for gpu, name in ((0, "NVIDIA A100-SXM4-80GB"), (1, "NVIDIA H100 80GB HBM3")):
        export.add(
            "TARGET_INFO_GPU", id=gpu, name=name, totalMemory=80 << 30, memoryBandwidth=3_350,
            smCount=132, computeMajor=9, computeMinor=0, cuDevice=gpu,
        )  # fmt: skip
    export.add("TARGET_INFO_CUDA_DEVICE", gpuId=1, cudaId=0, pid=10)
    export.add("TARGET_INFO_CUDA_DEVICE", gpuId=0, cudaId=0, pid=11)
    device = only_rank(export, tmp_path).device
    assert device.name == "NVIDIA H100 80GB HBM3"
    assert (device.memory_bytes, device.sm_count) == (80 << 30, 132)
    assert device.compute_capability == "9.0"


def test_the_clock_of_the_report_is_its_session_start(tmp_path: Path) -> None:
    export = two_steps()
    export.add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=1_700_000_000_000_000_000)
    export.add("META_DATA_EXPORT", name="EXPORT_PARAM_TIME_SHIFT", value="500")
    assert only_rank(export, tmp_path).epoch_ns == 1_700_000_000_000_000_000 - 500


def test_times_that_the_exporter_made_utc_need_no_offset(tmp_path: Path) -> None:
    export = two_steps()
    export.add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=1_700_000_000_000_000_000)
    export.add("META_DATA_EXPORT", name="EXPORT_PARAM_TIME_NORMALIZE", value="true")
    assert only_rank(export, tmp_path).epoch_ns == 0


# --- names and calls --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "bare"),
    [
        ("cudaLaunchKernel_v7000", "cudaLaunchKernel"),
        ("cudaLaunchKernelExC_v11060", "cudaLaunchKernelExC"),
        ("cuMemcpyDtoH_v2", "cuMemcpyDtoH_v2"),
        ("cuMemAlloc_v2_v3020", "cuMemAlloc_v2"),
        ("cuLaunchKernelEx", "cuLaunchKernelEx"),
    ],
)
def test_the_api_version_is_stripped_but_not_the_abi_generation(recorded: str, bare: str) -> None:
    assert bare_call_name(recorded) == bare


def test_only_names_in_use_get_in(tmp_path: Path) -> None:
    export = two_steps()
    export.string("/home/somebody/secret.py")
    assert "/home/somebody/secret.py" not in only_rank(export, tmp_path).names


def test_kernels_without_a_demangled_name_column_use_the_short_name(tmp_path: Path) -> None:
    export = two_steps()
    export.skip = frozenset({"CUPTI_ACTIVITY_KIND_KERNEL.demangledName"})
    assert "gemm" in only_rank(export, tmp_path).names


def test_missing_strings_are_counted_and_do_not_hide_the_work(tmp_path: Path) -> None:
    export = two_steps()
    export.skip = frozenset({"StringIds"})
    loaded = load(export, tmp_path)
    (rank,) = loaded.ranks
    assert rank.activities.height == 5
    assert "unknown kernel" in rank.names
    assert issues(loaded)["names-missing"] == 3


def test_replayed_kernels_share_their_graph_launch(tmp_path: Path) -> None:
    export = NsysExport()
    export.call(900, 950, "cudaGraphLaunch_v10000", 4)
    export.kernel(1_000, 1_100, "a", 4, graph_node=11)
    export.kernel(1_200, 1_300, "b", 4, graph_node=12)
    export.kernel(1_400, 1_500, "c", 5, graph_node=0)
    rank = only_rank(export, tmp_path)
    assert rank.activities["call"].to_list() == [0, 0, NONE]
    assert rank.activities["in_graph"].to_list() == [True, True, False]


def test_an_opaque_graph_launch_is_busy_and_reported(tmp_path: Path) -> None:
    export = two_steps()
    export.add(
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", start=6_000, end=8_000, deviceId=0, contextId=1,
        streamId=7, correlationId=1, globalPid=process(10), graphId=1, graphExecId=1,
    )  # fmt: skip
    loaded = load(export, tmp_path)
    graphs = loaded.ranks[0].activities.filter(pl.col("kind") == ActivityKind.GRAPH)
    assert graphs.select("start_ns", "end_ns", "call").rows() == [(6_000, 8_000, 0)]
    (issue,) = [issue for issue in loaded.issues if issue.id == "graph-kernels-hidden"]
    assert issue.severity is Severity.WARNING
    assert "--cuda-graph-trace=node" in issue.message


@pytest.mark.parametrize(
    ("number", "source", "target", "kind", "pageable"),
    [
        (1, 0, 2, CopyKind.HOST_TO_DEVICE, True),
        (1, 1, 2, CopyKind.HOST_TO_DEVICE, False),
        (2, 2, 0, CopyKind.DEVICE_TO_HOST, True),
        (8, 2, 2, CopyKind.DEVICE_TO_DEVICE, False),
        (10, 2, 2, CopyKind.PEER_TO_PEER, False),
        (12, 4, 4, CopyKind.DEVICE_TO_HOST, False),
        (3, 0, 3, CopyKind.OTHER, False),
    ],
)
def test_copy_directions_and_pageable_memory(
    number: int, source: int, target: int, kind: CopyKind, pageable: bool, tmp_path: Path
) -> None:
    export = NsysExport()
    export.copy(1, 2, bytes=4_096, copyKind=number, srcKind=source, dstKind=target)
    (row,) = only_rank(export, tmp_path).activities.iter_rows(named=True)
    assert (row["copy_kind"], row["pageable"], row["bytes"]) == (kind, pageable, 4_096)


def test_the_exports_own_enumerations_win_over_the_known_numbers(tmp_path: Path) -> None:
    export = NsysExport()
    export.copy(1, 2, copyKind=41, srcKind=2, dstKind=70)
    export.add("ENUM_CUDA_MEMCPY_OPER", id=41, name="CUDA_MEMCPY_KIND_DTOH")
    export.add("ENUM_CUDA_MEM_KIND", id=70, name="CUDA_MEMOPR_MEMORY_KIND_PAGEABLE")
    (row,) = only_rank(export, tmp_path).activities.iter_rows(named=True)
    assert (row["copy_kind"], row["pageable"]) == (CopyKind.DEVICE_TO_HOST, True)


# --- ranges -----------------------------------------------------------------------------------


def test_a_range_still_open_ends_with_the_capture(tmp_path: Path) -> None:
    export = two_steps()
    export.range(3_000, None, "open")
    rank = only_rank(export, tmp_path)
    rows = {rank.names[row["name"]]: row["end_ns"] for row in rank.ranges.iter_rows(named=True)}
    assert rows["open"] == 15_500


def test_marks_and_domain_rows_are_no_ranges(tmp_path: Path) -> None:
    export = two_steps()
    export.range(3_000, None, "mark", kind=34)
    export.range(1, None, "NCCL", kind=75, domain=1)
    assert only_rank(export, tmp_path).ranges.height == 2


def test_a_library_domain_is_told_from_the_users(tmp_path: Path) -> None:
    export = two_steps()
    export.range(0, None, "CCCL", kind=75, domain=2)
    export.range(0, None, "NVTX", kind=75, domain=3)
    export.range(100, 200, "cub", domain=2)
    export.range(300, 400, "phase", domain=3)
    export.range(500, 600, "nvte_fwd")
    rank = only_rank(export, tmp_path)
    kinds = {rank.names[row["name"]]: row["kind"] for row in rank.ranges.iter_rows(named=True)}
    assert kinds["cub"] == RangeKind.LIBRARY
    assert kinds["phase"] == kinds["nvte_fwd"] == kinds["iteration 0"] == RangeKind.ANNOTATION


def test_operators_of_emit_nvtx_link_backward_to_forward(tmp_path: Path) -> None:
    export = two_steps()
    export.range(100, 200, "aten::mm, seq = 41, op_id = 7", tid=1)
    export.range(300, 500, "MmBackward0, seq = 41, op_id = 9", tid=2)
    export.range(310, 400, "aten::mm, op_id = 10", tid=2)
    export.range(600, 700, "aten::relu", tid=1)
    rank = only_rank(export, tmp_path)
    rows = [
        (rank.names[row["name"]], row["sequence"], row["forward_tid"])
        for row in rank.ranges.iter_rows(named=True)
        if row["kind"] == RangeKind.OPERATOR
    ]
    assert rows == [
        ("aten::mm", 41, NONE),
        ("MmBackward0", 41, thread(10, 1)),
        ("aten::mm", NONE, NONE),
        ("aten::relu", NONE, NONE),
    ]


def test_ranges_of_processes_without_gpu_work_are_left_out(tmp_path: Path) -> None:
    export = two_steps()
    export.range(100, 200, "launcher", pid=99)
    assert "launcher" not in only_rank(export, tmp_path).names


# --- memory -----------------------------------------------------------------------------------


def test_reserved_memory_is_the_running_sum_of_device_allocations(tmp_path: Path) -> None:
    export = two_steps()
    for start, size, kind, operation in (
        (0, 1_000, 2, 0),
        (0, 500, 2, 0),
        (0, 9_999, 5, 0),  # module globals
        (4_000, 200, 2, 0),
        (6_000, 500, 2, 1),
    ):
        export.add(
            "CUDA_GPU_MEMORY_USAGE_EVENTS", start=start, globalPid=process(10), deviceId=0,
            bytes=size, memKind=kind, memoryOperationType=operation,
        )  # fmt: skip
    memory = only_rank(export, tmp_path).memory
    assert memory.rows() == [(0, NONE, 1_500), (4_000, NONE, 1_700), (6_000, NONE, 1_200)]


# --- what may be missing or broken --------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        "NVTX_EVENTS",
        "CUPTI_ACTIVITY_KIND_RUNTIME",
        "CUPTI_ACTIVITY_KIND_MEMCPY",
        "META_DATA_EXPORT",
    ],
)
def test_every_table_is_optional(table: str, tmp_path: Path) -> None:
    export = two_steps()
    export.skip = frozenset({table})
    loaded = load(export, tmp_path)
    assert loaded.ranks[0].activities.filter(pl.col("kind") == ActivityKind.KERNEL).height == 2
    expected = {"NVTX_EVENTS": "no-ranges", "CUPTI_ACTIVITY_KIND_RUNTIME": "no-api-calls"}
    assert set(issues(loaded)) >= ({expected[table]} if table in expected else set())


def test_a_capture_without_gpu_work_says_so(tmp_path: Path) -> None:
    export = NsysExport()
    export.call(1, 2)
    loaded = load(export, tmp_path)
    assert loaded.ranks == ()
    assert "no-gpu-activity" in issues(loaded)


def test_impossible_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    export = two_steps()
    for start, end in ((50, 40), (0, 0), (None, 10), (10, None), (-(2**63), 2**63 - 1), (5, 2**62)):
        export.kernel(start, end, "broken")
    export.call(90, 80)
    loaded = load(export, tmp_path)
    assert "broken" not in names(loaded.ranks[0], loaded.ranks[0].activities)
    assert issues(loaded)["rows-dropped"] == 7


def test_columns_of_other_types_do_not_crash(tmp_path: Path) -> None:
    export = two_steps()
    export.kernel("1700", 1800.0, "text and float", "12", grid=("x", None, 2**62), stream="eight")
    export.kernel(b"\xff\x00", "", "nonsense", None)
    rank = only_rank(export, tmp_path)
    (row,) = [
        row
        for row in rank.activities.iter_rows(named=True)
        if rank.names[row["name"]] == "text and float"
    ]
    seen = (row["start_ns"], row["end_ns"], row["blocks"], row["stream"])
    assert seen == (1_700, 1_800, NONE, NONE)


def test_names_that_are_not_utf8_or_hold_control_characters_become_safe(tmp_path: Path) -> None:
    export = two_steps()
    path = export.write(tmp_path / "run.sqlite")
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE StringIds SET value = CAST(? AS TEXT) WHERE value = 'gemm'",
            (b"ge\xff\x1b[31mmm\xe2\x80\xae\n",),
        )
    database.close()
    (rank,) = nsys_sqlite.load(path).ranks
    assert "ge\ufffdmm " in rank.names


def test_kernels_without_launch_calls_are_reported_from_a_share_on(tmp_path: Path) -> None:
    export = NsysExport()
    for i in range(100):
        export.call(1_000 * i, 1_000 * i + 10, correlation=i + 1)
        export.kernel(1_000 * i + 20, 1_000 * i + 30, correlation=i + 1 if i >= 3 else 5_000 + i)
    assert issues(load(export, tmp_path))["launches-missing"] == 3


def test_profiler_warnings_stay_quiet_but_errors_are_counted(tmp_path: Path) -> None:
    export = two_steps()
    for severity in (2, 2, 3):
        export.add(
            "DIAGNOSTIC_EVENT", severity=severity, text="Not all CUDA events might have been"
        )
    assert issues(load(export, tmp_path))["profiler-errors"] == 1


def test_a_view_or_virtual_table_is_not_read(tmp_path: Path) -> None:
    export = two_steps()
    export.skip = frozenset({"CUPTI_ACTIVITY_KIND_MEMCPY"})
    path = export.write(
        tmp_path / "run.sqlite",
        indexes=[
            "CREATE VIEW CUPTI_ACTIVITY_KIND_MEMCPY AS SELECT * FROM CUPTI_ACTIVITY_KIND_KERNEL"
        ],
    )
    (rank,) = nsys_sqlite.load(path).ranks
    assert rank.activities.filter(pl.col("kind") == ActivityKind.MEMCPY).height == 0


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.sqlite"
    text.write_text("hello")
    other = tmp_path / "b.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE t (a)")
    database.close()
    for path in (text, other):
        assert not nsys_sqlite.sniff(path)
        with pytest.raises(InputError, match=path.name):
            nsys_sqlite.load(path)


def test_recognised_by_content_whatever_the_name(tmp_path: Path) -> None:
    assert nsys_sqlite.sniff(two_steps().write(tmp_path / "photo.jpg"))
    assert not nsys_sqlite.sniff(tmp_path / "missing")
    assert not nsys_sqlite.sniff(tmp_path)


# --- the input stays as it is -------------------------------------------------------------------


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in folder.iterdir()
    }


def test_the_input_and_its_folder_are_untouched(tmp_path: Path) -> None:
    path = two_steps().write(tmp_path / "with space?and#marks%.sqlite")
    os.utime(path, ns=(10**18, 10**18))
    before = state(tmp_path)
    assert nsys_sqlite.sniff(path)
    assert len(nsys_sqlite.load(path).ranks) == 1
    assert state(tmp_path) == before


def test_rows_in_a_write_ahead_log_are_read_without_touching_it(tmp_path: Path) -> None:
    writer_folder, copy_folder = tmp_path / "writer", tmp_path / "copy"
    writer_folder.mkdir()
    copy_folder.mkdir()
    path = two_steps().write(writer_folder / "run.sqlite")
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("DELETE FROM CUPTI_ACTIVITY_KIND_MEMSET")
    writer.commit()
    for file in ("run.sqlite", "run.sqlite-wal"):
        (copy_folder / file).write_bytes((writer_folder / file).read_bytes())
    writer.close()
    before = state(copy_folder)
    (rank,) = nsys_sqlite.load(copy_folder / "run.sqlite").ranks
    assert rank.activities.height == 4
    assert state(copy_folder) == before


# --- damage -------------------------------------------------------------------------------------


def many_rows(folder: Path) -> Path:
    export = NsysExport()
    export.metadata()
    for i in range(4_000):
        export.launched(10_000 + 100 * i, 10_050 + 100 * i, "gemm", i + 1)
    return export.write(folder / "run.sqlite")


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_database_gives_what_it_still_holds_or_one_line(
    share: float, tmp_path: Path
) -> None:
    whole = many_rows(tmp_path).read_bytes()
    path = tmp_path / "cut.sqlite"
    path.write_bytes(whole[: int(len(whole) * share)])
    said = ""
    try:
        found = set(issues(nsys_sqlite.load(path)))
    except InputError as error:
        found, said = set(), str(error)
    assert "truncated-file" in found or said.startswith("cut.sqlite: ")
    assert "\n" not in said


def test_rows_before_the_damage_are_kept(tmp_path: Path) -> None:
    path = many_rows(tmp_path)
    with sqlite3.connect(path) as database:
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'CUPTI_ACTIVITY_KIND_KERNEL'"
        ).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    # The root page of a table with one interior level ends with its first children's numbers.
    cell = int.from_bytes(data[(root - 1) * size + 12 + 40 : (root - 1) * size + 12 + 42], "big")
    child = int.from_bytes(data[(root - 1) * size + cell : (root - 1) * size + cell + 4], "big")
    data[(child - 1) * size : child * size] = b"\xff" * size
    path.write_bytes(data)
    loaded = nsys_sqlite.load(path)
    (issue,) = [issue for issue in loaded.issues if issue.id == "damaged-table"]
    assert issue.severity is Severity.ERROR
    assert "CUPTI_ACTIVITY_KIND_KERNEL" in issue.message
    assert 0 < loaded.ranks[0].activities.height == issue.count < 4_000


# --- real captures ------------------------------------------------------------------------------


CUT_TO_ONE_RANK = {"mcore_te_fp8.sqlite.xz"}


@pytest.mark.parametrize(
    "packed", sorted(FIXTURES.glob("**/*.sqlite.xz")), ids=lambda path: path.name
)
def test_real_captures_join_every_activity_and_leak_nothing(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / packed.stem
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    loaded = nsys_sqlite.load(path)
    assert loaded.info.producer == "Nsight Systems 2025.3.2"
    assert [rank.rank for rank in loaded.ranks] == [0, 1][
        : 1 if packed.name in CUT_TO_ONE_RANK else 2
    ]
    for rank in loaded.ranks:
        assert (rank.activities["call"] != NONE).all()
        nccl = [code for code, name in enumerate(rank.names) if name.startswith("ncclDevKernel")]
        kernels = rank.activities.with_row_index("row").filter(pl.col("name").is_in(nccl))
        assert rank.collectives["activity"].to_list() == kernels["row"].to_list()
        assert rank.device.name == "NVIDIA H200"
        assert rank.epoch_ns is not None
        assert "canary" not in repr((rank.names, rank.environment, rank.device)).lower()
    assert "canary" not in repr(loaded.issues).lower()
