"""From the tables of a Nsight Systems export to one trace per rank, whatever file holds them.

A rank is a process on a device. Everything is integer columns and vectorised: the largest tables
hold millions of rows, and only names, communicators and processes are few.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import distinct as distinct_codes
from moe_advisor.codes import few
from moe_advisor.ingest import nccl_nvtx
from moe_advisor.ingest.nsys_events import stream_waits
from moe_advisor.model import (
    ACTIVITY_SCHEMA,
    CALL_SCHEMA,
    MEMORY_SCHEMA,
    NONE,
    RANGE_SCHEMA,
    STREAM_WAIT_SCHEMA,
    ActivityKind,
    CaptureIssue,
    CopyKind,
    InputInfo,
    LoadedInput,
    RangeKind,
    RankTrace,
    Severity,
)
from moe_advisor.privacy import NsysMetadata, nsys_devices, nsys_metadata, safe_text
from moe_advisor.spill import SPILL_ROWS, Spool, Spooled, spilled
from moe_advisor.table_source import Among, Column, TableSource

Int64s = NDArray[np.int64]
Codes = NDArray[np.uint32]

KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
COPIES = "CUPTI_ACTIVITY_KIND_MEMCPY"
MEMSETS = "CUPTI_ACTIVITY_KIND_MEMSET"
GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
CALLS = "CUPTI_ACTIVITY_KIND_RUNTIME"
RANGES = "NVTX_EVENTS"
STRINGS = "StringIds"
MEMORY = "CUDA_GPU_MEMORY_USAGE_EVENTS"
DIAGNOSTICS = "DIAGNOSTIC_EVENT"
KNOWN_TABLES = frozenset(
    {
        KERNELS,
        COPIES,
        MEMSETS,
        GRAPHS,
        CALLS,
        RANGES,
        STRINGS,
        "META_DATA_EXPORT",
        "EXPORT_META_DATA",
        "TARGET_INFO_SESSION_START_TIME",
    }
)

NAME_LIMIT = 8_192
"""Longest kernel or range name kept, in characters: the longest CUTLASS names fit."""

NO_TIME = -(2**62)
"""Stands for a NULL time while tables are read: no clock comes near it."""

TIME_LIMIT_NS = 2**61
"""Times beyond it (73 years from the capture's zero, 42 after the UNIX epoch) are garbage."""

PROCESS_MASK = ~0xFFFFFF
"""globalTid & PROCESS_MASK is the process: the low 24 bits are the thread's."""

NO_PROCESS = 0
"""The process of rows that name none."""

STRAY_DEVICE_SHARE = 0.01
"""A process with less of its GPU work than this on a device does not train there: a context and
a copy on device 0 are a common accident of multi-GPU launchers."""

UNJOINED_SHARE = 0.02
"""Share of GPU work without its launch call above which the capture lost calls. A capture range
leaves a few launches before its start; 2 % is far beyond the launch queue's 1,024 entries."""

# NVTX event types: push-pop and start-end ranges, the same imported from text, domain creation.
_RANGE_TYPES = (59, 60, 70, 71)
_DOMAIN_CREATED = 75
# What the Python package nvtx calls the domain of ranges that name none: the user's own.
_USER_DOMAINS = frozenset({"NVTX"})

_OPERATOR = r"^(.+?), (?:seq|op_id) = "  # torch.autograd.profiler.emit_nvtx
_SEQUENCE = r", seq = (\d{1,18})"
_BACKWARD = r"Backward\d*$|^autograd::engine::evaluate_function"

_COPY_KINDS = {
    1: CopyKind.HOST_TO_DEVICE,
    2: CopyKind.DEVICE_TO_HOST,
    8: CopyKind.DEVICE_TO_DEVICE,
    9: CopyKind.HOST_TO_HOST,
    10: CopyKind.PEER_TO_PEER,
    11: CopyKind.HOST_TO_DEVICE,  # 11 to 13: managed memory
    12: CopyKind.DEVICE_TO_HOST,
    13: CopyKind.DEVICE_TO_DEVICE,
}
_COPY_KIND_SUFFIXES = {
    "_HTOD": CopyKind.HOST_TO_DEVICE,
    "_DTOH": CopyKind.DEVICE_TO_HOST,
    "_DTOD": CopyKind.DEVICE_TO_DEVICE,
    "_HTOH": CopyKind.HOST_TO_HOST,
    "_PTOP": CopyKind.PEER_TO_PEER,
}
_COPY_NAMES = {
    CopyKind.HOST_TO_DEVICE: "Memcpy HtoD",
    CopyKind.DEVICE_TO_HOST: "Memcpy DtoH",
    CopyKind.DEVICE_TO_DEVICE: "Memcpy DtoD",
    CopyKind.HOST_TO_HOST: "Memcpy HtoH",
    CopyKind.PEER_TO_PEER: "Memcpy PtoP",
    CopyKind.OTHER: "Memcpy",
}
_PAGEABLE = 0
_DEVICE_MEMORY = 2


class Names:
    """The names in use, each once; a name's code is its place."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The code of `text`, which is made safe to show."""
        cleaned = safe_text(text, NAME_LIMIT)
        return self._codes.setdefault(cleaned, len(self._codes))

    def codes(self, texts: Iterable[str]) -> Codes:
        """The codes of `texts`, in their order."""
        return np.array([self.code(text) for text in texts], dtype=np.uint32)

    def all(self) -> tuple[str, ...]:
        """The names, by code."""
        return tuple(self._codes)


class Strings:
    """The export's table of strings by id; only those that are used become names."""

    def __init__(self, source: TableSource) -> None:
        table = source.fetch(STRINGS, (Column("id", NO_TIME), Column("value", "")))
        table = table.unique("id", keep="first", maintain_order=True).sort("id")
        self._ids = table["id"].to_numpy()
        self._values = table["value"]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, ids: Int64s) -> list[str | None]:
        """The string of each id; None for an id that the table lacks."""
        places = np.searchsorted(self._ids, ids)
        places[places == len(self._ids)] = 0
        known = self._ids[places] == ids if len(self._ids) else np.zeros(len(ids), dtype=bool)
        texts = self._values.gather(places[known].tolist()).to_list()
        result: list[str | None] = [None] * len(ids)
        for place, text in zip(np.flatnonzero(known).tolist(), texts, strict=True):
            result[place] = text
        return result


@dataclass
class Build:
    """What is shared while one input is built: names, strings, and what was found wrong."""

    source: TableSource
    names: Names
    strings: Strings
    issues: list[CaptureIssue] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    missing_names: int = 0
    large: bool = False
    """Whether tables go to temporary files while they wait for their turn."""

    def issue(
        self,
        identifier: str,
        severity: Severity,
        message: str,
        count: int = 1,
        rank: int | None = None,
    ) -> None:
        """Note something a reader of the numbers must know."""
        self.issues.append(CaptureIssue(identifier, severity, message, count, rank))

    def drop(self, table: str, frame: pl.DataFrame, keep: pl.Expr) -> pl.DataFrame:
        """`frame` without the rows that break `keep`, which are counted."""
        if frame.select(keep.all()).item():
            return frame  # a filter would copy it
        kept = frame.filter(keep)
        if kept.height < frame.height:
            self.dropped[table] = self.dropped.get(table, 0) + frame.height - kept.height
        return kept

    def split(
        self,
        table: str,
        columns: Sequence[Column],
        slim: Sequence[pl.Expr | str],
        by: pl.Expr,
        *,
        allow_empty: bool,
    ) -> dict[int, list[pl.DataFrame]]:
        """`slim` of the rows of `table` in parts, apart for each value of `by`.

        Rows with impossible times are dropped and counted.
        """
        sane = _sane_interval(allow_empty=allow_empty)
        # Parts wait in a file where all of them together would be the most that memory ever holds.
        spool = Spool(in_memory=not self.large)

        def shrink(part: pl.DataFrame) -> tuple[dict[int, pl.DataFrame | Spooled], int]:
            kept = part if part.select(sane.all()).item() else part.filter(sane)
            kept = kept.select(*slim, by.alias("_by"))
            owner = kept.drop_in_place("_by").to_numpy()
            split: dict[int, pl.DataFrame | Spooled] = {}
            for value in (values := few(owner)):
                mine = kept if len(values) == 1 else kept.filter(pl.Series(owner == value))
                split[value] = spool.put(mine)
            return split, part.height - kept.height

        result: dict[int, list[pl.DataFrame]] = {}
        lost = 0
        for split, bad in self.source.parts(table, columns, shrink):
            lost += bad
            for value, rows in split.items():
                result.setdefault(value, []).append(spool.table(rows))
        if lost:
            self.dropped[table] = lost
        return result

    def name_codes(
        self, ids: Sequence[pl.Series], unknown: str, strip: Callable[[str], str] | None = None
    ) -> Callable[[pl.Series], Codes]:
        """A function from string ids to name codes, for all of `ids`.

        `unknown` is the name where the string is missing; `strip` shortens the others.
        """
        # Not polars' own unique, which sorts: here are few values among millions.
        parts = [_distinct(part.to_numpy()) for part in ids]
        distinct = (
            np.unique(np.concatenate(parts)).astype(np.int64)
            if parts
            else np.zeros(0, dtype=np.int64)
        )
        texts: list[str] = []
        for text in self.strings.find(distinct):
            if text is None:
                self.missing_names += 1
            known = unknown if text is None else text
            texts.append(strip(known) if strip else known)
        codes = self.names.codes(texts)
        return lambda series: lookup(series.to_numpy(), distinct, codes)


def _distinct(ids: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    small = len(ids) and int(ids.min()) >= 0 and int(ids.max()) < len(ids)
    return np.asarray(distinct_codes(ids), ids.dtype) if small else np.unique(ids)


def lookup(
    values: NDArray[np.integer[Any]], keys: Int64s, results: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """The result of each value, where `keys` are sorted and hold every value."""
    if len(keys) == 0:
        return np.zeros(len(values), dtype=np.uint32)
    low, high = int(keys[0]), int(keys[-1])
    if low >= 0 and high < 1 << 24:  # string ids are small: a table beats a search by far
        table = np.zeros(high + 1, dtype=np.uint32)
        table[keys] = results
        return np.asarray(table[values], dtype=np.uint32)
    return np.asarray(results[np.searchsorted(keys, values)], dtype=np.uint32)


def _sane_interval(*, allow_empty: bool) -> pl.Expr:
    length = pl.col("end") >= pl.col("start") if allow_empty else pl.col("end") > pl.col("start")
    return (pl.col("start") > -TIME_LIMIT_NS) & (pl.col("end") < TIME_LIMIT_NS) & length


def build(source: TableSource, name: str, format_name: str) -> LoadedInput:
    """Everything the export says, as one trace per rank; see `LoadedInput`."""
    metadata = nsys_metadata(source)
    work = Build(source, Names(), Strings(source))
    keys, per_rank = _ranks_of(work, _activities(work))
    ranks: tuple[RankTrace, ...] = ()
    if keys:
        ranks = _build_ranks(work, metadata, keys, per_rank)
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


# --- GPU activities -------------------------------------------------------------------------

_COMMON = (
    Column("start", NO_TIME),
    Column("end", NO_TIME),
    Column("deviceId", 0),
    Column("streamId"),
    Column("correlationId"),
    Column("globalPid", 0),
)
# Process numbers end in 24 zero bits, where the device fits.
_RANK = (pl.col("globalPid") & PROCESS_MASK) | (pl.col("deviceId") & 0xFFFFFF)
_NAME_COLUMNS = ("demangledName", "shortName", "mangledName")
_IN_GRAPH = ~pl.col("graphNodeId").is_in([0, NONE])


def _slim(
    kind: ActivityKind,
    *,
    name: pl.Expr | int = 0,
    blocks: pl.Expr | None = None,
    bytes_: pl.Expr | None = None,
    copy_kind: pl.Expr | None = None,
    pageable: pl.Expr | None = None,
    in_graph: pl.Expr | None = None,
) -> tuple[pl.Expr | str, ...]:
    """What the rest of this module needs of an activity, in few bytes."""
    nothing, no = pl.lit(NONE, dtype=pl.Int64), pl.lit(value=False)
    return (
        "start",
        "end",
        _number32("correlationId").alias("correlation"),
        pl.lit(int(kind), dtype=pl.UInt8).alias("kind"),
        (pl.lit(name) if isinstance(name, int) else name).cast(pl.UInt32).alias("name"),
        pl.col("streamId").alias("stream"),
        (nothing if blocks is None else blocks).alias("blocks"),
        (nothing if bytes_ is None else bytes_).alias("bytes"),
        (pl.lit(0) if copy_kind is None else copy_kind).cast(pl.UInt8).alias("copy_kind"),
        (no if pageable is None else pageable).alias("pageable"),
        (no if in_graph is None else in_graph).alias("in_graph"),
    )


def _number32(column: str) -> pl.Expr:
    """An id as 32 bits, which is what CUPTI and the string table have; 0 if it is none."""
    return pl.col(column).cast(pl.UInt32, strict=False).fill_null(0)


def _activities(work: Build) -> dict[int, list[pl.DataFrame]]:
    """All GPU work of the report for each rank number of `_RANK`."""
    result: dict[int, list[pl.DataFrame]] = {}
    for table in (_kernels(work), _copies(work), _memsets(work), _graphs(work)):
        for rank, parts in table.items():
            result.setdefault(rank, []).extend(parts)
    return result


def _kernels(work: Build) -> dict[int, list[pl.DataFrame]]:
    present = work.source.columns(KERNELS)
    naming = next((column for column in _NAME_COLUMNS if column in present), _NAME_COLUMNS[0])
    # Grids are 31 and 16 bits by definition; what is beyond is damage and must not overflow.
    sizes = [pl.col(column).clip(0, 2**20) for column in ("gridX", "gridY", "gridZ")]
    blocks = sizes[0] * sizes[1] * sizes[2]
    split = work.split(
        KERNELS,
        (
            *_COMMON,
            *(Column(column) for column in (naming, "gridX", "gridY", "gridZ")),
            Column("graphNodeId", 0),
        ),
        _slim(
            ActivityKind.KERNEL,
            name=_number32(naming),
            blocks=pl.when(blocks > 0).then(blocks).otherwise(NONE),
            in_graph=_IN_GRAPH,
        ),
        _RANK,
        allow_empty=False,
    )
    ids = [part["name"] for parts in split.values() for part in parts]
    code_of = work.name_codes(ids, "unknown kernel")
    return {
        rank: [part.with_columns(name=pl.Series(code_of(part["name"]))) for part in parts]
        for rank, parts in split.items()
    }


def _copies(work: Build) -> dict[int, list[pl.DataFrame]]:
    kinds = _copy_kinds(work.source)
    pageable = _pageable_kinds(work.source)
    copy_kind = pl.col("copyKind").replace_strict(
        {number: int(kind) for number, kind in kinds.items()},
        default=int(CopyKind.OTHER),
        return_dtype=pl.UInt8,
    )
    codes = {int(kind): work.names.code(name) for kind, name in _COPY_NAMES.items()}
    return work.split(
        COPIES,
        (
            *_COMMON,
            Column("bytes"),
            Column("copyKind"),
            Column("srcKind"),
            Column("dstKind"),
            Column("graphNodeId", 0),
        ),
        _slim(
            ActivityKind.MEMCPY,
            name=copy_kind.replace_strict(codes, return_dtype=pl.UInt32),
            bytes_=pl.col("bytes"),
            copy_kind=copy_kind,
            pageable=(
                (pl.col("srcKind").is_in(pageable) & (copy_kind == CopyKind.HOST_TO_DEVICE))
                | (pl.col("dstKind").is_in(pageable) & (copy_kind == CopyKind.DEVICE_TO_HOST))
            ),
            in_graph=_IN_GRAPH,
        ),
        _RANK,
        allow_empty=False,
    )


def _memsets(work: Build) -> dict[int, list[pl.DataFrame]]:
    return work.split(
        MEMSETS,
        (*_COMMON, Column("bytes"), Column("graphNodeId", 0)),
        _slim(
            ActivityKind.MEMSET,
            name=work.names.code("Memset"),
            bytes_=pl.col("bytes"),
            in_graph=_IN_GRAPH,
        ),
        _RANK,
        allow_empty=False,
    )


def _graphs(work: Build) -> dict[int, list[pl.DataFrame]]:
    split = work.split(
        GRAPHS,
        _COMMON,
        _slim(ActivityKind.GRAPH, name=work.names.code("CUDA graph")),
        _RANK,
        allow_empty=False,
    )
    count = sum(part.height for parts in split.values() for part in parts)
    if count:
        work.issue(
            "graph-kernels-hidden",
            Severity.WARNING,
            f"{count} CUDA graph launches were recorded as a whole: what ran inside is"
            " unknown; capture again with --cuda-graph-trace=node",
            count,
        )
    return split


def _enum(source: TableSource, table: str) -> list[tuple[int, str]]:
    rows = source.fetch(table, (Column("id"), Column("name", "")))
    return [(int(number), str(name).upper()) for number, name in rows.iter_rows()]


def _copy_kinds(source: TableSource) -> dict[int, CopyKind]:
    """The export's own numbers for copy directions, else those of every version seen so far."""
    named = {
        number: kind
        for number, name in _enum(source, "ENUM_CUDA_MEMCPY_OPER")
        for suffix, kind in _COPY_KIND_SUFFIXES.items()
        if name.endswith(suffix)
    }
    return named or dict(_COPY_KINDS)


def _pageable_kinds(source: TableSource) -> list[int]:
    named = _enum(source, "ENUM_CUDA_MEM_KIND")
    return [number for number, name in named if name.endswith("_PAGEABLE")] or [_PAGEABLE]


def _device_memory_kinds(source: TableSource) -> list[int]:
    named = _enum(source, "ENUM_CUDA_MEM_KIND")
    return [number for number, name in named if name.endswith("_DEVICE")] or [_DEVICE_MEMORY]


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


def _ranks_of(
    work: Build, activities: dict[int, list[pl.DataFrame]]
) -> tuple[list[RankKey], list[pl.DataFrame]]:
    """The ranks in order, and the activities of each by time. Empties `activities`."""
    counts = {number: sum(map(len, parts)) for number, parts in activities.items()}
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
    work.large = sum(counts.values()) >= SPILL_ROWS
    tables = []
    for key in keys:
        table = _sorted_by_time(pl.concat(activities.pop(key.process | key.device)))
        tables.append(spilled(table) if work.large else table)
    return keys, tables


@dataclass(frozen=True, slots=True)
class ProcessCalls:
    """The API calls of one process, sorted by start, and how to find one by correlation id."""

    table: pl.DataFrame
    correlation: Codes

    def rows_of(self, wanted: Codes) -> Int64s:
        """The row of the first call with each correlation id; NONE where there is none."""
        result = np.full(len(wanted), NONE, dtype=np.int64)
        if not len(self.correlation) or not len(wanted):
            return result
        low, high = int(self.correlation.min()), int(self.correlation.max())
        inside = (wanted >= max(low, 1)) & (wanted <= high)
        if high - low < 4 * len(self.correlation) + 1_000_000:
            # Correlation ids count up, so a table by id is small, and much faster than a search.
            places = np.full(high - low + 1, NONE, dtype=np.int32)
            places[self.correlation[::-1] - np.uint32(low)] = np.arange(
                len(self.correlation) - 1, -1, -1, dtype=np.int32
            )
            result[inside] = places[wanted[inside] - np.uint32(low)]
            return result
        order = np.argsort(self.correlation, kind="stable")
        ordered = self.correlation[order]
        found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        match = (ordered[found] == wanted) & inside
        result[match] = order[found[match]]
        return result


_NO_CALLS = ProcessCalls(pl.Schema(CALL_SCHEMA).to_frame(), np.zeros(0, dtype=np.uint32))


def bare_call_name(name: str) -> str:
    """An API name without the API version that nsys appends; `_v2` belongs to the name."""
    head, separator, tail = name.rpartition("_v")
    return head if separator and len(tail) >= 4 and tail.isdigit() else name


def _calls(work: Build, processes: Sequence[int]) -> dict[int, ProcessCalls]:
    split = work.split(
        CALLS,
        (
            Column("start", NO_TIME),
            Column("end", NO_TIME),
            Column("globalTid", 0),
            Column("correlationId"),
            Column("nameId"),
        ),
        (
            pl.col("start").alias("start_ns"),
            pl.col("end").alias("end_ns"),
            pl.col("globalTid").alias("tid"),
            _number32("nameId").alias("name"),
            _number32("correlationId").alias("correlation"),
        ),
        pl.col("globalTid") & PROCESS_MASK,
        allow_empty=True,
    )
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
        mine = _joined(parts)
        if not mine["start_ns"].is_sorted():
            mine = mine.sort("start_ns", maintain_order=True)
        mine = mine.with_columns(name=pl.Series(code_of(mine["name"])))
        if work.large:
            mine = spilled(mine)
        result[process] = ProcessCalls(mine.drop("correlation"), mine["correlation"].to_numpy())
    return result


def _joined(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows of `parts`, which are emptied column by column: two copies of one column at most."""
    return pl.DataFrame(
        [
            pl.concat([part.drop_in_place(name) for part in parts], rechunk=True)
            for name in list(parts[0].columns)
        ]
    )


def _build_ranks(
    work: Build, metadata: NsysMetadata, keys: list[RankKey], per_rank: list[pl.DataFrame]
) -> tuple[RankTrace, ...]:
    processes = sorted({key.process for key in keys})
    calls = _calls(work, processes)
    # From here on the work is joins on one core each: what is read next is read beside them.
    with ThreadPoolExecutor(1) as beside:
        fetched = beside.submit(_fetch_ranges, work.source)
        waiting = beside.submit(
            stream_waits,
            work.source,
            {(key.process, key.device): calls.get(key.process, _NO_CALLS) for key in keys},
        )
        tables: list[pl.DataFrame] = []
        while per_rank:
            one = calls.get(keys[len(tables)].process, _NO_CALLS)
            tables.append(_with_calls(per_rank.pop(0), one))
        _report_joins(work, tables, calls)
        ends = [int(table["end_ns"].max()) for table in tables]  # type: ignore[arg-type]
        ends += [int(one.table["end_ns"].max()) for one in calls.values()]  # type: ignore[arg-type]
        rows = [fetched.result()]
        del fetched  # it holds them too, and they are reshaped several times
        ranges, nccl = _ranges(work, processes, max(ends), rows.pop())
        waits = waiting.result()
    found = nccl_nvtx.collectives(
        [
            nccl_nvtx.RankLaunches(
                process=key.process,
                nccl=nccl.get(key.process),
                activities=table,
                calls=calls.get(key.process, _NO_CALLS).table,
            )
            for key, table in zip(keys, tables, strict=True)
        ],
        nccl_nvtx.payload_layouts(work.source),
        work.names.code,
    )
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


def _sorted_by_time(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` by (start, end), stable."""
    frame = frame.sort("start", maintain_order=True)  # one key sorts several times faster than two
    tied = (pl.col("start") == pl.col("start").shift()) & (pl.col("end") < pl.col("end").shift())
    if frame.select(tied.any()).item():
        frame = frame.sort("start", "end", maintain_order=True)
    return frame


def _with_calls(frame: pl.DataFrame, calls: ProcessCalls) -> pl.DataFrame:
    rows = calls.rows_of(frame["correlation"].to_numpy())
    return frame.select(
        pl.col("start").alias("start_ns"),
        pl.col("end").alias("end_ns"),
        "kind",
        "name",
        "stream",
        pl.Series("call", rows),
        "blocks",
        "bytes",
        "copy_kind",
        "pageable",
        "in_graph",
    ).cast(pl.Schema(ACTIVITY_SCHEMA))


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


def _fetch_ranges(source: TableSource) -> pl.DataFrame:
    return source.fetch(
        RANGES,
        (
            Column("start", NO_TIME),
            Column("end", NO_TIME),
            Column("eventType"),
            Column("globalTid", 0),
            Column("domainId", 0),
            Column("textId"),
            Column("text", ""),
            Column("binaryData", b""),
        ),
        Among("eventType", (*_RANGE_TYPES, _DOMAIN_CREATED)),
    )


def _ranges(
    work: Build, processes: Sequence[int], capture_end: int, frame: pl.DataFrame
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
    domains = frame.filter(pl.col("eventType") == _DOMAIN_CREATED)
    if domains.height:
        frame = frame.filter(pl.col("eventType") != _DOMAIN_CREATED)
    frame = frame.drop("eventType").with_columns(
        end=pl.when(pl.col("end") == NO_TIME)
        .then(pl.max_horizontal("start", pl.lit(capture_end, dtype=pl.Int64)))
        .otherwise("end")
    )
    frame = work.drop(RANGES, frame, _sane_interval(allow_empty=True))
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
    missing = frame.filter(pl.col("text") == "")["textId"].unique()
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
        Among("memKind", tuple(_device_memory_kinds(work.source))),
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
