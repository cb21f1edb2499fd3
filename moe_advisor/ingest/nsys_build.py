"""From the tables of a Nsight Systems export to one trace per rank, whatever file holds them.

A rank is a process on a device. Everything is integer columns and vectorised: the largest tables
hold millions of rows, and only names, communicators and processes are few.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor import allocator
from moe_advisor.ingest import nccl_nvtx, nsys_tables
from moe_advisor.ingest.nsys_events import stream_waits
from moe_advisor.ingest.nsys_rows import by_time, joined, runs_by_start
from moe_advisor.ingest.nsys_tables import (
    DIAGNOSTICS,
    DOMAIN_CREATED,
    MEMORY,
    NO_PROCESS,
    NO_TIME,
    PROCESS_MASK,
    RANGES,
    TIME_LIMIT_NS,
    Build,
    Names,
    Parts,
    Reader,
    Strings,
    sane_interval,
)
from moe_advisor.model import (
    ACTIVITY_SCHEMA,
    CALL_SCHEMA,
    MEMORY_SCHEMA,
    NONE,
    RANGE_SCHEMA,
    STREAM_WAIT_SCHEMA,
    ActivityKind,
    CopyKind,
    InputInfo,
    LoadedInput,
    RangeKind,
    RankTrace,
    Severity,
)
from moe_advisor.privacy import NsysMetadata, nsys_devices, nsys_metadata
from moe_advisor.spill import SPILL_ROWS, spilled
from moe_advisor.table_source import Among, Column, TableSource

Int64s = NDArray[np.int64]
Codes = NDArray[np.uint32]

STRAY_DEVICE_SHARE = 0.01
"""A process with less of its GPU work than this on a device does not train there: a context and
a copy on device 0 are a common accident of multi-GPU launchers."""

UNJOINED_SHARE = 0.02
"""Share of GPU work without its launch call above which the capture lost calls. A capture range
leaves a few launches before its start; 2 % is far beyond the launch queue's 1,024 entries."""

# What the Python package nvtx calls the domain of ranges that name none: the user's own.
_USER_DOMAINS = frozenset({"NVTX"})

_OPERATOR = r"^(.+?), (?:seq|op_id) = "  # torch.autograd.profiler.emit_nvtx
_SEQUENCE = r", seq = (\d{1,18})"
_BACKWARD = r"Backward\d*$|^autograd::engine::evaluate_function"


def build(source: TableSource, name: str, format_name: str) -> LoadedInput:
    """Everything the export says, as one trace per rank; see `LoadedInput`."""
    metadata = nsys_metadata(source)
    work = Build(source, Names(), Strings(source))
    activities = nsys_tables.activities(work)
    counts = {number: sum(map(len, parts)) for number, parts in activities.items()}
    keys = _rank_keys(work, counts)
    ranks: tuple[RankTrace, ...] = ()
    if keys:
        work.large = sum(counts.values()) >= SPILL_ROWS
        with Reader() as reader:
            ranks = _ranks(work, metadata, keys, activities, reader)
        if work.large:
            allocator.trim()  # or measuring adds its peak to what building has freed
    else:
        work.issue(
            "no-gpu-activity",
            Severity.ERROR,
            "the capture holds no GPU work; profile with nsys profile -t cuda,nvtx and make sure"
            " that the captured range covers training steps",
            0,
        )
    _report_damage(work)
    return LoadedInput(
        info=InputInfo(
            name=name,
            format=format_name,
            producer=metadata.producer,
            ranks=tuple(rank.rank for rank in ranks),
        ),
        ranks=ranks,
        issues=tuple(work.issues),
    )


# --- ranks ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankKey:
    """The process and the device of a rank."""

    process: int
    device: int

    @property
    def pid(self) -> int:
        """The process id that the operating system gave."""
        return (self.process >> 24) & 0xFFFFFF

    @property
    def machine(self) -> int:
        """The upper bits of the process: machine and virtual machine."""
        return self.process >> 48

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts ranks by machine, process id and device."""
        return (self.machine & 0xFFFF, self.pid, self.device)


MAX_RANKS = 256
"""Ranks taken from one export: nsys captures one node, and the largest has 72 GPUs."""


def _rank_keys(work: Build, counts: Mapping[int, int]) -> list[RankKey]:
    """The ranks in order, by how much GPU work each rank number has."""
    totals: dict[int, int] = {}
    for number, count in counts.items():
        process = number & PROCESS_MASK
        totals[process] = totals.get(process, 0) + count
    keys: list[RankKey] = []
    strays = 0
    for number, count in counts.items():
        process = number & PROCESS_MASK
        if count < STRAY_DEVICE_SHARE * totals[process]:
            strays += count
        elif count:
            keys.append(RankKey(process, number & ~PROCESS_MASK))
    if strays:
        work.issue(
            "stray-device-work",
            Severity.INFO,
            f"{strays} GPU activities ran on a device that their process hardly uses (below"
            f" {100 * STRAY_DEVICE_SHARE:.0f} % of its work) and are left out",
            strays,
        )
    if len(keys) > MAX_RANKS:
        work.issue(
            "too-many-ranks",
            Severity.WARNING,
            f"{len(keys)} processes used a GPU; the {MAX_RANKS} with the most GPU work are read",
            len(keys) - MAX_RANKS,
        )
        keys.sort(key=lambda key: (-counts[key.process | key.device], key.order))
        del keys[MAX_RANKS:]
    keys.sort(key=lambda key: key.order)
    return keys


_ABSENT: Mapping[str, int | bool] = {
    "kind": int(ActivityKind.KERNEL),
    "blocks": NONE,
    "bytes": NONE,
    "copy_kind": int(CopyKind.NONE),
    "pageable": False,
    "in_graph": False,
}
"""What stands for the columns that a kind of activity does not have."""


def _by_time(work: Build, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """The activities of a rank by (start, end), stable. Empties `parts`."""
    heights = [part.height for part in parts]
    start, end = joined(parts, "start"), joined(parts, "end")
    order = by_time(start, end)
    if order is not None:
        start, end = start.take(order), end.take(order)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        found: list[NDArray[Any]] = [
            part.drop_in_place(name).to_numpy()
            if name in part.columns
            else np.full(height, _ABSENT[name], dtype)
            for part, height in zip(parts, heights, strict=True)
        ]
        values = found[0] if len(found) == 1 else np.concatenate(found)
        return values if order is None else values.take(order)

    frame = pl.DataFrame(
        {"start_ns": start, "end_ns": end}
        | {name: column(name, dtype) for name, dtype in _DTYPES.items()}
    )
    return spilled(frame) if work.large else frame


_PIECE_ROWS = 1 << 15


@dataclass(frozen=True)
class ProcessCalls:
    """The API calls of one process, sorted by start, and how to find one by correlation id."""

    table: pl.DataFrame
    correlation: Codes

    def rows_of(self, wanted: Codes) -> Int64s:
        """The row of the first call with each correlation id; NONE where there is none."""
        result = np.full(len(wanted), NONE, dtype=np.int64)
        if not len(self.correlation) or not len(wanted):
            return result
        low, high = self._span
        inside = (wanted >= max(low, 1)) & (wanted <= high)
        if self._rows is not None:
            if inside.all():
                return self._rows.take(wanted - np.uint32(low)).astype(np.int64)
            result[inside] = self._rows.take(wanted[inside] - np.uint32(low))
            return result
        order = np.argsort(self.correlation, kind="stable")
        ordered = self.correlation[order]
        found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        match = (ordered[found] == wanted) & inside
        result[match] = order[found[match]]
        return result

    @cached_property
    def _span(self) -> tuple[int, int]:
        return int(self.correlation.min()), int(self.correlation.max())

    @cached_property
    def _rows(self) -> NDArray[np.int32] | None:
        """The first row of each id of the span; None where that would be mostly gaps."""
        low, high = self._span
        # Correlation ids count up, so a table by id is small, and much faster than a search.
        if high - low >= 4 * len(self.correlation) + 1_000_000:
            return None
        rows = np.full(high - low + 1, NONE, dtype=np.int32)
        # From the end, so that of equal ids the first one stays; in pieces that fit a cache.
        for end in range(len(self.correlation), 0, -_PIECE_ROWS):
            begin = max(end - _PIECE_ROWS, 0)
            ids = self.correlation[begin:end][::-1] - np.uint32(low)
            rows[ids] = np.arange(end - 1, begin - 1, -1, dtype=np.int32)
        return rows


_DTYPES: Mapping[str, type[np.generic]] = {
    "kind": np.uint8,
    "name": np.uint32,
    "stream": np.int64,
    "correlation": np.uint32,
    "blocks": np.int64,
    "bytes": np.int64,
    "copy_kind": np.uint8,
    "pageable": np.bool_,
    "in_graph": np.bool_,
}

_NO_CALLS = ProcessCalls(pl.Schema(CALL_SCHEMA).to_frame(), np.zeros(0, dtype=np.uint32))


def bare_call_name(name: str) -> str:
    """An API name without the API version that nsys appends; `_v2` belongs to the name."""
    head, separator, tail = name.rpartition("_v")
    return head if separator and len(tail) >= 4 and tail.isdigit() else name


def _calls(work: Build, processes: Sequence[int], split: Parts) -> dict[int, ProcessCalls]:
    if list(processes) == [NO_PROCESS]:  # old or reduced exports: one process, whatever its number
        split = {NO_PROCESS: [part for _, parts in sorted(split.items()) for part in parts]}
    split = {process: parts for process, parts in split.items() if process in processes}
    ids = [part["name"] for parts in split.values() for part in parts]
    code_of = work.name_codes(ids, "unknown call", bare_call_name)
    result: dict[int, ProcessCalls] = {}
    for process in processes:
        parts = split.pop(process, [])
        if not sum(map(len, parts)):
            continue
        pieces = runs_by_start(parts, "start_ns")
        columns = {name: joined(parts, name, pieces) for name in list(parts[0].columns)}
        if pieces is None:
            order = np.argsort(columns["start_ns"], kind="stable")
            columns = {name: column.take(order) for name, column in columns.items()}
        columns["name"] = code_of(columns["name"])
        mine = pl.DataFrame(columns)
        if work.large:
            mine = spilled(mine)
        result[process] = ProcessCalls(mine.drop("correlation"), mine["correlation"].to_numpy())
    return result


def _ranks(
    work: Build,
    metadata: NsysMetadata,
    keys: Sequence[RankKey],
    activities: Parts,
    reader: Reader,
) -> tuple[RankTrace, ...]:
    """The traces of the ranks `keys`. Empties `activities`."""
    processes = sorted({key.process for key in keys})
    # All tables at once would be the most that memory ever holds of a large input.
    ahead = not work.large
    read_ranges = reader.read(lambda: nsys_tables.ranges(work.source), ahead=ahead)
    read_layouts = reader.read(lambda: nccl_nvtx.payload_layouts(work.source), ahead=ahead)
    read_calls = reader.read(lambda: nsys_tables.calls(work), ahead=ahead)
    per_rank = [_by_time(work, activities.pop(key.process | key.device)) for key in keys]
    activities.clear()
    calls_of = cache(lambda: _calls(work, processes, read_calls.take()))

    def capture_end() -> int:
        ends = [table["end_ns"].max() for table in per_rank]
        ends += [one.table["end_ns"].max() for one in calls_of().values()]
        return max(int(end) for end in ends)  # type: ignore[arg-type]

    ranges, nccl = _ranges(work, processes, capture_end, read_ranges.take())
    launches = nccl_nvtx.launches(
        {key.process: nccl[key.process] for key in keys if key.process in nccl}, read_layouts.take()
    )
    del nccl
    calls = calls_of()
    waiting = reader.read(
        lambda: stream_waits(
            work.source,
            {(key.process, key.device): calls.get(key.process, _NO_CALLS) for key in keys},
        )
    )
    tables: list[pl.DataFrame] = []
    while per_rank:
        one = calls.get(keys[len(tables)].process, _NO_CALLS)
        tables.append(_with_calls(per_rank.pop(0), one))
    _report_joins(work, tables, calls)
    found = nccl_nvtx.collectives(
        [
            nccl_nvtx.RankWork(key.process, table, calls.get(key.process, _NO_CALLS).table)
            for key, table in zip(keys, tables, strict=True)
        ],
        launches,
        work.names.code,
    )
    waits = waiting.take()
    work.issues.extend(found.issues)
    numbers = found.ranks or tuple(range(len(keys)))
    memory = _memory(work, keys)
    device_of = nsys_devices(work.source)
    hosts = {machine: i + 1 for i, machine in enumerate(sorted({key.machine for key in keys}))}
    names = work.names.all()
    traces = [
        RankTrace(
            rank=number,
            rank_source="communicator" if found.ranks else "process-order",
            names=names,
            activities=table,
            calls=calls.get(key.process, _NO_CALLS).table,
            ranges=ranges.get(key.process, pl.Schema(RANGE_SCHEMA).to_frame()),
            collectives=collectives,
            memory=memory.get(key, pl.Schema(MEMORY_SCHEMA).to_frame()),
            waits=waits.get((key.process, key.device), pl.Schema(STREAM_WAIT_SCHEMA).to_frame()),
            device=device_of(key.pid, key.device),
            world_size=found.world_size,
            host=hosts[key.machine],
            epoch_ns=metadata.session_start_epoch_ns,
            environment=dict(metadata.environment),
        )
        for number, key, table, collectives in zip(numbers, keys, tables, found.tables, strict=True)
    ]
    return tuple(sorted(traces, key=lambda trace: trace.rank))


def _with_calls(frame: pl.DataFrame, calls: ProcessCalls) -> pl.DataFrame:
    rows = pl.Series("call", calls.rows_of(frame["correlation"].to_numpy()))
    return frame.with_columns(rows).select(
        pl.col(name).cast(kind) for name, kind in ACTIVITY_SCHEMA.items()
    )


def _report_joins(
    work: Build, tables: Sequence[pl.DataFrame], calls: dict[int, ProcessCalls]
) -> None:
    total = sum(table.height for table in tables)
    lost = sum(int((table["call"] == NONE).sum()) for table in tables)
    if not calls:
        work.issue(
            "no-api-calls",
            Severity.WARNING,
            "the capture holds no CUDA API calls, so launches, host gaps and synchronisations"
            " can't be seen; capture with -t cuda,nvtx",
        )
    elif lost > UNJOINED_SHARE * total:
        work.issue(
            "launches-missing",
            Severity.WARNING,
            f"{lost} of {total} GPU activities ({100 * lost / total:.1f} %) have no launch call in "
            "the capture: profiler data was lost or the capture range is very short",
            lost,
        )


# --- host ranges ----------------------------------------------------------------------------


def _ranges(
    work: Build, processes: Sequence[int], capture_end: Callable[[], int], frame: pl.DataFrame
) -> tuple[dict[int, pl.DataFrame], dict[int, pl.DataFrame]]:
    """The ranges of each process, and its NCCL ranges with their payloads."""
    owner = frame["globalTid"].to_numpy() & PROCESS_MASK
    if list(processes) == [NO_PROCESS]:
        owner = np.zeros(frame.height, dtype=np.int64)
    frame = frame.with_columns(pl.Series("process", owner))
    known = pl.col("process").is_in(list(processes))
    if not frame.select(known.all()).item():
        frame = frame.filter(known)
    frame = _named(work, frame).drop("textId")
    domains = frame.filter(pl.col("eventType") == DOMAIN_CREATED)
    if domains.height:
        frame = frame.filter(pl.col("eventType") != DOMAIN_CREATED)
    frame = frame.drop("eventType")
    is_open = pl.col("end") == NO_TIME
    if frame.select(is_open.any()).item():
        latest = pl.max_horizontal("start", pl.lit(capture_end(), dtype=pl.Int64))
        frame = frame.with_columns(end=pl.when(is_open).then(latest).otherwise("end"))
    frame = work.drop(RANGES, frame, sane_interval(allow_empty=True))
    if not frame.height:
        work.issue(
            "no-ranges",
            Severity.WARNING,
            "the capture holds no NVTX ranges, so steps and phases have to be guessed from the GPU"
            " work; capture with -t cuda,nvtx and annotate the steps",
        )
    frame = _sorted_outer_first(frame)
    users = {
        (process, domain)
        for process, domain, text in domains.select("process", "domainId", "text").iter_rows()
        if text in _USER_DOMAINS
    }
    per_process: dict[int, pl.DataFrame] = {}
    nccl: dict[int, pl.DataFrame] = {}
    for process in processes:
        mine = frame.filter(pl.col("process") == process)
        own = [domain for owner_process, domain in users if owner_process == process]
        table = _range_table(work, mine, own)
        per_process[process] = spilled(table) if work.large else table
        is_nccl = (pl.col("domainId") != 0) & pl.col("text").str.starts_with("nccl")
        calls = mine.filter(is_nccl)
        if calls.height:
            nccl[process] = calls.select(
                start_ns="start", end_ns="end", tid="globalTid", name="text", payload="binaryData"
            )
    return per_process, nccl


def _sorted_outer_first(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` by start, of equal ones the longest first; stable."""
    frame = frame.sort("start", maintain_order=True)  # one key sorts several times faster than two
    tied = (pl.col("start") == pl.col("start").shift()) & (pl.col("end") > pl.col("end").shift())
    if frame.select(tied.any()).item():
        frame = frame.sort("start", "end", descending=[False, True], maintain_order=True)
    return frame


def _named(work: Build, frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with `text` filled from the registered strings."""
    missing = frame["textId"].filter(frame["text"] == "").unique()
    ids = missing.filter(missing != NONE).to_numpy()
    texts = [text if text is not None else "unknown range" for text in work.strings.find(ids)]
    registered = pl.col("textId").replace_strict(
        ids.tolist(), texts, default="", return_dtype=pl.String
    )
    return frame.with_columns(text=pl.when(pl.col("text") == "").then(registered).otherwise("text"))


def _range_table(work: Build, frame: pl.DataFrame, user_domains: list[int]) -> pl.DataFrame:
    text = pl.col("text")
    own = (pl.col("domainId") == 0) | pl.col("domainId").is_in(user_domains)
    operator = text.str.extract(_OPERATOR)
    frame = frame.select(
        start_ns="start",
        end_ns="end",
        tid="globalTid",
        operator=pl.when(own).then(
            pl.when(operator.is_not_null())
            .then(operator)
            .when(text.str.starts_with("aten::"))
            .then(text)
        ),
        sequence=pl.when(own & operator.is_not_null())
        .then(text.str.extract(_SEQUENCE).cast(pl.Int64, strict=False))
        .fill_null(NONE),
        text=text,
        own=own,
    ).with_columns(
        kind=pl.when(pl.col("operator").is_not_null())
        .then(int(RangeKind.OPERATOR))
        .when("own")
        .then(int(RangeKind.ANNOTATION))
        .otherwise(int(RangeKind.LIBRARY)),
        text=pl.coalesce("operator", "text"),
    )
    distinct = frame["text"].unique().sort()
    codes = pl.Series(work.names.codes(distinct), dtype=pl.UInt32)
    frame = frame.with_columns(
        name=pl.col("text").replace_strict(distinct, codes, return_dtype=pl.UInt32)
    )
    return _with_forward_threads(frame).select(
        [pl.col(column).cast(dtype) for column, dtype in RANGE_SCHEMA.items()]
    )


def _with_forward_threads(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds `forward_tid`: a backward operator ran for the forward one with its sequence number."""
    backward = pl.col("text").str.contains(_BACKWARD)
    numbered = frame.filter((pl.col("kind") == RangeKind.OPERATOR) & (pl.col("sequence") != NONE))
    forward = (
        numbered.filter(~backward)
        .group_by("sequence")
        .agg(forward_tid=pl.col("tid").first(), threads=pl.col("tid").n_unique())
        .filter(pl.col("threads") == 1)
        .select("sequence", "forward_tid")
    )
    return frame.join(forward, on="sequence", how="left", maintain_order="left").with_columns(
        forward_tid=pl.when(backward & (pl.col("kind") == RangeKind.OPERATOR))
        .then("forward_tid")
        .fill_null(NONE)
    )


# --- memory ---------------------------------------------------------------------------------


def _memory(work: Build, keys: Sequence[RankKey]) -> dict[RankKey, pl.DataFrame]:
    """Reserved device memory after each driver allocation. Rows at time 0 were already there."""
    frame = work.source.fetch(
        MEMORY,
        (
            Column("start", NO_TIME),
            Column("globalPid"),
            Column("deviceId", 0),
            Column("bytes", 0),
            Column("memKind"),
            Column("memoryOperationType"),
        ),
        Among("memKind", tuple(nsys_tables.device_memory_kinds(work.source))),
    )
    frame = work.drop(
        MEMORY,
        frame,
        (pl.col("start").abs() < TIME_LIMIT_NS) & pl.col("bytes").is_between(0, 2**50),
    )
    frame = frame.filter(pl.col("memoryOperationType").is_in([0, 1])).sort(
        "start", maintain_order=True
    )
    change = pl.col("bytes") * (1 - 2 * pl.col("memoryOperationType"))
    result: dict[RankKey, pl.DataFrame] = {}
    for key in keys:
        mine = frame.filter(
            (pl.col("globalPid") == key.process) & (pl.col("deviceId") == key.device)
        )
        if mine.height:
            levels = mine.select(
                time_ns="start",
                allocated_bytes=pl.lit(NONE, dtype=pl.Int64),
                reserved_bytes=change.cum_sum(),
            )
            # One level per moment: the block at time 0 is one state, not hundreds of steps.
            result[key] = levels.unique("time_ns", keep="last", maintain_order=True)
    return result


# --- what went wrong ------------------------------------------------------------------------


def _report_damage(work: Build) -> None:
    for table, rows in sorted(work.source.damaged.items()):
        work.issue(
            "damaged-table",
            Severity.ERROR,
            f"the table {table} is damaged; {rows} rows could be read; export the report again",
            rows,
        )
    total = sum(work.dropped.values())
    if total:
        where = ", ".join(f"{table} {count}" for table, count in sorted(work.dropped.items()))
        work.issue(
            "rows-dropped",
            Severity.WARNING,
            f"{total} rows with impossible times or sizes were left out ({where})",
            total,
        )
    if work.missing_names:
        work.issue(
            "names-missing",
            Severity.WARNING,
            f"{work.missing_names} names are not in the export's string table, so what they name"
            " can't be recognised; export the report again",
            work.missing_names,
        )
    errors = work.source.fetch(DIAGNOSTICS, (Column("severity"),), Among("severity", (3,))).height
    if errors:
        work.issue(
            "profiler-errors",
            Severity.WARNING,
            f"the profiler noted {errors} errors while capturing; data may be missing (open the"
            " report in Nsight Systems to read them)",
            errors,
        )
