"""Reads the tables of a Nsight Systems export into few and small columns, whatever file holds them.

The largest tables hold millions of rows: they are read in parts, and of each part only what the
building of traces needs stays, apart for each process or rank.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor import interrupts
from moe_advisor.codes import distinct as distinct_codes
from moe_advisor.codes import few
from moe_advisor.ingest.nsys_rows import Columns, Gathered
from moe_advisor.model import NONE, ActivityKind, CaptureIssue, CopyKind, Severity
from moe_advisor.privacy import safe_text
from moe_advisor.spill import Spool, Spooled
from moe_advisor.table_source import Among, Column, Numbers, TableSource

Int64s = NDArray[np.int64]
Codes = NDArray[np.uint32]
T = TypeVar("T")

Parts = dict[int, list[pl.DataFrame]]
"""The rows of a table in parts, apart for each owner: a process, or a device of a process."""

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

# NVTX event types: push-pop and start-end ranges, the same imported from text, domain creation.
_RANGE_TYPES = (59, 60, 70, 71)
DOMAIN_CREATED = 75

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


class Pending(Generic[T]):
    """What a `Reader` reads; whoever takes it holds it alone."""

    def __init__(self, read: Callable[[], "Future[T]"], *, begin: bool) -> None:
        self._read = read
        self._future = read() if begin else None

    def take(self) -> T:
        """What was read, once."""
        future, self._future = self._future or self._read(), None
        while not wait((future,), interrupts.WAIT_S).done:
            pass
        return future.result()


class Reader:
    """Reads tables one after the other, beside what is made of those that are read already."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tables")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, work: Callable[[], T], *, ahead: bool = True) -> Pending[T]:
        """The result of `work`, which begins when its turn comes; else when it is taken."""
        return Pending(lambda: self._pool.submit(work), begin=ahead)


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
        slim: Callable[[Numbers], Columns],
        by: Callable[[Numbers], Int64s],
        *,
        allow_empty: bool,
    ) -> Parts:
        """What `slim` makes of the rows of `table`, in parts, apart for each value of `by`.

        Rows with impossible times are dropped and counted.
        """
        # Parts wait in a file where all of them together would be the most that memory ever holds.
        spool = Spool(in_memory=not self.large)

        def gather(
            parts: Iterator[Numbers],
        ) -> tuple[dict[int, list[pl.DataFrame | Spooled]], int]:
            found: dict[int, Gathered] = {}
            lost = 0
            for part in parts:
                before = len(part["start"])
                kept = _sane(part, allow_empty=allow_empty)
                if not (rows := len(kept["start"])):
                    lost += before
                    continue
                lost += before - rows
                slimmed, owner = slim(kept), by(kept)
                for value, at in _owners(owner):
                    one = found.setdefault(value, Gathered(spool.put))
                    one.add(slimmed, at, rows if at is None else len(at))
            return {value: one.close() for value, one in found.items()}, lost

        result: Parts = {}
        lost = 0
        for split, bad in self.source.stretches(table, columns, gather):
            lost += bad
            for value, blocks in split.items():
                result.setdefault(value, []).extend(map(spool.table, blocks))
        if lost:
            self.dropped[table] = lost
        return result

    def name_codes(
        self, ids: Sequence[pl.Series], unknown: str, strip: Callable[[str], str] | None = None
    ) -> Callable[[NDArray[np.integer[Any]]], Codes]:
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
        return lambda values: lookup(values, distinct, codes)


def _sane(part: Numbers, *, allow_empty: bool) -> Numbers:
    """The rows of which `sane_interval` is true."""
    start, end = part["start"], part["end"]
    if not len(start):
        return part
    ordered = end >= start if allow_empty else end > start
    if int(start.min()) > -TIME_LIMIT_NS and int(end.max()) < TIME_LIMIT_NS and ordered.all():
        return part
    ordered &= (start > -TIME_LIMIT_NS) & (end < TIME_LIMIT_NS)
    return {name: column[ordered] for name, column in part.items()}


def _owners(owner: Int64s) -> Iterator[tuple[int, Int64s | None]]:
    """The rows of each of the few owners; None for all rows."""
    values = few(owner)
    if len(values) == 1:
        yield values[0], None
        return
    for value in values:
        yield value, np.flatnonzero(owner == value)


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
        return np.asarray(table.take(values), dtype=np.uint32)
    return np.asarray(results[np.searchsorted(keys, values)], dtype=np.uint32)


def sane_interval(*, allow_empty: bool) -> pl.Expr:
    """Whether start and end are times that a capture can hold, in their order."""
    length = pl.col("end") >= pl.col("start") if allow_empty else pl.col("end") > pl.col("start")
    return (pl.col("start") > -TIME_LIMIT_NS) & (pl.col("end") < TIME_LIMIT_NS) & length


# --- GPU activities -------------------------------------------------------------------------

_COMMON = (
    Column("start", NO_TIME),
    Column("end", NO_TIME),
    Column("deviceId", 0),
    Column("streamId"),
    Column("correlationId"),
    Column("globalPid", 0),
)
_NAME_COLUMNS = ("demangledName", "shortName", "mangledName")
_MOST_BLOCKS = 2**20
_IN_GRAPH = ~pl.col("graphNodeId").is_in([0, NONE])


def _rank(part: Numbers) -> Int64s:
    """Process numbers end in 24 zero bits, where the device fits."""
    return (part["globalPid"] & PROCESS_MASK) | (part["deviceId"] & 0xFFFFFF)


def _slim(
    kind: ActivityKind,
    *,
    name: pl.Expr | int,
    bytes_: pl.Expr | None = None,
    copy_kind: pl.Expr | None = None,
    pageable: pl.Expr | None = None,
    in_graph: pl.Expr | None = None,
) -> Callable[[Numbers], Columns]:
    """What the rest of this module needs of an activity, in few bytes, without what it lacks."""
    more = {
        "kind": pl.lit(int(kind), dtype=pl.UInt8),
        "name": (pl.lit(name) if isinstance(name, int) else name).cast(pl.UInt32),
        "bytes": bytes_,
        "copy_kind": copy_kind,
        "pageable": pageable,
        "in_graph": in_graph,
    }
    chosen = {column: one for column, one in more.items() if one is not None}

    def slim(part: Numbers) -> Columns:
        found = pl.DataFrame(part).with_columns(**chosen)
        return _common(part) | {column: found[column].to_numpy() for column in chosen}

    return slim


def _common(part: Numbers) -> dict[str, NDArray[Any]]:
    return {
        "start": part["start"],
        "end": part["end"],
        "correlation": _number32(part["correlationId"]),
        "stream": part["streamId"],
    }


def _number32(ids: Int64s) -> Codes:
    """Ids as 32 bits, which is what CUPTI and the string table have; 0 for what is none."""
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= 1 << 32):
        ids = np.where((ids >= 0) & (ids < 1 << 32), ids, 0)
    return ids.astype(np.uint32)


def activities(work: Build) -> Parts:
    """All GPU work of the report by rank number: process and device, see `PROCESS_MASK`."""
    result: Parts = {}
    for table in (_kernels(work), _copies(work), _memsets(work), _graphs(work)):
        for rank, parts in table.items():
            result.setdefault(rank, []).extend(parts)
    return result


def _kernels(work: Build) -> Parts:
    present = work.source.columns(KERNELS)
    naming = next((column for column in _NAME_COLUMNS if column in present), _NAME_COLUMNS[0])

    def slim(part: Numbers) -> Columns:
        return _common(part) | {
            "name": _number32(part[naming]),
            "blocks": _blocks(part),
            "in_graph": (part["graphNodeId"] != 0) & (part["graphNodeId"] != NONE),
        }

    split = work.split(
        KERNELS,
        (
            *_COMMON,
            *(Column(column) for column in (naming, "gridX", "gridY", "gridZ")),
            Column("graphNodeId", 0),
        ),
        slim,
        _rank,
        allow_empty=False,
    )
    ids = [part["name"] for parts in split.values() for part in parts]
    code_of = work.name_codes(ids, "unknown kernel")
    return {
        rank: [
            part.with_columns(name=pl.Series(code_of(part["name"].to_numpy()))) for part in parts
        ]
        for rank, parts in split.items()
    }


def _blocks(part: Numbers) -> Int64s:
    """Thread blocks of each kernel; NONE where the export does not say."""
    blocks = np.ones(len(part["start"]), dtype=np.int64)
    for column in ("gridX", "gridY", "gridZ"):
        size = part[column]
        # Grids are 31 and 16 bits by definition; what is beyond is damage and must not overflow.
        if len(size) and (int(size.min()) < 0 or int(size.max()) > _MOST_BLOCKS):
            size = np.clip(size, 0, _MOST_BLOCKS)
        blocks *= size
    return np.where(blocks > 0, blocks, NONE) if not blocks.all() else blocks


def _copies(work: Build) -> Parts:
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
        _rank,
        allow_empty=False,
    )


def _memsets(work: Build) -> Parts:
    return work.split(
        MEMSETS,
        (*_COMMON, Column("bytes"), Column("graphNodeId", 0)),
        _slim(
            ActivityKind.MEMSET,
            name=work.names.code("Memset"),
            bytes_=pl.col("bytes"),
            in_graph=_IN_GRAPH,
        ),
        _rank,
        allow_empty=False,
    )


def _graphs(work: Build) -> Parts:
    split = work.split(
        GRAPHS,
        _COMMON,
        _slim(ActivityKind.GRAPH, name=work.names.code("CUDA graph")),
        _rank,
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


def device_memory_kinds(source: TableSource) -> list[int]:
    """The export's numbers for memory on a device."""
    named = _enum(source, "ENUM_CUDA_MEM_KIND")
    return [number for number, name in named if name.endswith("_DEVICE")] or [_DEVICE_MEMORY]


# --- API calls, ranges ----------------------------------------------------------------------


def calls(work: Build) -> Parts:
    """The API calls of each process; `name` is the id of a string still."""
    return work.split(
        CALLS,
        (
            Column("start", NO_TIME),
            Column("end", NO_TIME),
            Column("globalTid", 0),
            Column("correlationId"),
            Column("nameId"),
        ),
        lambda part: {
            "start_ns": part["start"],
            "end_ns": part["end"],
            "tid": part["globalTid"],
            "name": _number32(part["nameId"]),
            "correlation": _number32(part["correlationId"]),
        },
        lambda part: part["globalTid"] & PROCESS_MASK,
        allow_empty=True,
    )


def ranges(source: TableSource) -> pl.DataFrame:
    """The NVTX ranges of all processes, and the creations of domains."""
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
        Among("eventType", (*_RANGE_TYPES, DOMAIN_CREATED)),
    )
