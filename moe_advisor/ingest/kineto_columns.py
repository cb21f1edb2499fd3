"""Columns from decoded Kineto events: one batch at a time, one table per kind of event."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from moe_advisor import allocator
from moe_advisor.ingest.kineto_events import (
    TIME_LIMIT_MICROSECONDS,
    Args,
    Event,
    FullArgs,
    integer,
    integers,
)
from moe_advisor.ingest.kineto_shapes import PRODUCTS, product
from moe_advisor.model import NONE

TRIM_ROWS = 1_000_000
"""The pieces of so many rows leave 50 MB of holes in the heap, which take 10 ms to give back."""

Ints = NDArray[np.int64]


def nanoseconds(microseconds: NDArray[np.float64]) -> Ints:
    """Exact whole nanoseconds of finite times in µs that have at most three decimals."""
    whole = np.floor(microseconds)
    fraction = np.rint((microseconds - whole) * 1000.0)
    return whole.astype(np.int64) * 1000 + fraction.astype(np.int64)


class Numbering(dict[Any, int]):
    """Numbers for values in order of first appearance: `numbering[value]`."""

    def __missing__(self, value: Any) -> int:
        number = self[value] = len(self)
        return number

    def of(self, values: list[Any]) -> NDArray[np.uint32]:
        """The number of each of `values`."""
        return np.fromiter(map(self.__getitem__, values), np.uint32, len(values))


class ThreadNumbers(dict[Any, int]):
    """Process and thread identifiers as whole numbers; text that is no number gets one above all.

    Negative numbers stay apart from NONE's meaning because torch itself never writes them for
    threads.
    """

    FIRST_TEXT = 1 << 40  # above every operating system's thread identifier

    def __init__(self) -> None:
        super().__init__()
        self._texts = 0

    def __missing__(self, value: int | str) -> int:
        if isinstance(value, int):
            number = integer(value, 0)
        else:
            number = integer(value, NONE)
            if number == NONE:
                number = self.FIRST_TEXT + self._texts
                self._texts += 1
        self[value] = number
        return number


@dataclass(slots=True)
class Counts:
    """Rows that could not be used, by reason, and how many were seen."""

    seen: int = 0
    kept: int = 0
    no_duration: int = 0
    negative: int = 0
    bad_time: int = 0


@dataclass(slots=True)
class Table:
    """Columns of one kind of event, collected piece by piece."""

    pieces: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def add(self, **columns: NDArray[Any]) -> None:
        """Appends rows; all pieces have the same columns."""
        self.pieces.append(columns)

    def column(self, name: str, dtype: Any = np.int64) -> NDArray[Any]:
        """All rows of one column, which is not the caller's to change."""
        if not self.pieces:
            return np.zeros(0, dtype)
        if len(self.pieces) > 1:  # column by column, so that only one is in memory twice
            pieces, self.pieces = self.pieces, [{}]
            for key in list(pieces[0]):
                self.pieces[0][key] = np.concatenate([piece.pop(key) for piece in pieces])
            if len(self) >= TRIM_ROWS:
                allocator.trim()
        return self.pieces[0][name]

    def keep(self, name: str) -> None:
        """Gives up all columns but one, to save memory."""
        self.pieces = [{name: piece[name]} for piece in self.pieces]

    def __len__(self) -> int:
        return sum(len(next(iter(piece.values()))) for piece in self.pieces)


HOST_OPERATOR, HOST_ANNOTATION, HOST_PYTHON, HOST_OVERHEAD = range(4)
GPU_KERNEL, GPU_MEMCPY, GPU_MEMSET = range(3)

_ACTIVITIES = {
    "kernel": GPU_KERNEL,
    "Kernel": GPU_KERNEL,
    "gpu_memcpy": GPU_MEMCPY,
    "Memcpy": GPU_MEMCPY,
    "memcpy": GPU_MEMCPY,
    "gpu_memset": GPU_MEMSET,
    "Memset": GPU_MEMSET,
    "memset": GPU_MEMSET,
}
_CALLS = dict.fromkeys(("cuda_runtime", "cuda_driver", "Runtime", "runtime", "Driver"), 0)
_RANGES = {
    "cpu_op": HOST_OPERATOR,
    "Operator": HOST_OPERATOR,
    "user_annotation": HOST_ANNOTATION,
    "python_function": HOST_PYTHON,
    "overhead": HOST_OVERHEAD,
}
_MODULE_PREFIX = "nn.Module:"
_INSTANTS = frozenset({"cpu_instant_event", "CPU instant event"})
KNOWN_CATEGORIES = frozenset({*_ACTIVITIES, *_CALLS, *_RANGES, *_INSTANTS})
"""Kinds of events that are read; all others are passed over."""


@dataclass(frozen=True, slots=True)
class CommsCall:
    """A host-side `record_param_comms`: one collective as the framework asked for it."""

    start_ns: int
    end_ns: int
    pid: int
    tid: int
    args: FullArgs


@dataclass(frozen=True, slots=True)
class _Rows:
    """Complete events of one table with sane times, kind after kind."""

    events: list[Event]
    kind: NDArray[np.uint8]
    start: Ints
    end: Ints

    def __len__(self) -> int:
        return len(self.events)


def _array(values: list[Any], dtype: DTypeLike) -> NDArray[Any]:
    return np.fromiter(values, dtype, len(values))  # three times as fast as np.array


def _integers(values: list[int]) -> Ints:
    try:
        return _array(values, np.int64)
    except OverflowError:
        return _array([integer(value) for value in values], np.int64)


class Columns:
    """All events that are used, as columns. Feed batches with `add`."""

    def __init__(self) -> None:
        self.offset_us = 0  # add to the times of the events to come
        self.counts = Counts()
        self.activity_names = Numbering()
        self.call_names = Numbering()
        self.range_names = Numbering()
        self.threads = ThreadNumbers()
        self.activities = Table()
        self.calls = Table()
        self.ranges = Table()
        self.memory = Table()
        self.matmuls = Table()
        self.collectives: dict[int, FullArgs] = {}  # number of the activity in file order -> args
        self.comms: list[CommsCall] = []
        self.out_of_memory = 0
        self.categories: set[str] = set()
        self._activity_count = 0

    def add(self, events: Sequence[Event]) -> None:
        """Takes over one batch of events."""
        buckets: dict[str, list[Event]] = {}
        for event in events:
            try:
                buckets[event.cat].append(event)
            except KeyError:
                buckets[event.cat] = [event]
        self.categories.update(buckets)
        if python := buckets.get("python_function"):
            modules = [event for event in python if event.name.startswith(_MODULE_PREFIX)]
            buckets["python_function"] = modules
        if rows := self._rows(buckets, _RANGES):
            self._add_ranges(rows)
        if rows := self._rows(buckets, _CALLS):
            self._add_calls(rows)
        if rows := self._rows(buckets, _ACTIVITIES):
            self._add_activities(rows)
        for cat in _INSTANTS & buckets.keys():
            self._add_instants(buckets[cat])

    def _rows(self, buckets: dict[str, list[Event]], kinds: dict[str, int]) -> _Rows:
        """The events of those `buckets` that `kinds` names."""
        chosen = [(kinds[cat], bucket) for cat, bucket in buckets.items() if cat in kinds]
        events = [event for _, bucket in chosen for event in bucket]
        kind = np.repeat(
            np.array([kind for kind, _ in chosen], np.uint8), [len(bucket) for _, bucket in chosen]
        )
        start = _array([event.ts for event in events], np.float64)
        length = _array([event.dur for event in events], np.float64)
        sane = (np.abs(start + self.offset_us) < TIME_LIMIT_MICROSECONDS) & (length >= 0)
        sane &= length < TIME_LIMIT_MICROSECONDS
        counts = self.counts
        counts.seen += len(events)
        if not sane.all():
            missing, negative = np.isnan(length), length < 0
            counts.no_duration += int(missing.sum())
            counts.negative += int(negative.sum())
            counts.bad_time += int((~sane & ~missing & ~negative).sum())
            events = [event for event, keep in zip(events, sane.tolist(), strict=True) if keep]
            kind, start, length = kind[sane], start[sane], length[sane]
        counts.kept += len(events)
        begin = nanoseconds(start) + self.offset_us * 1000
        return _Rows(events, kind, begin, begin + nanoseconds(length))

    def _ids(self, values: list[int | str]) -> Ints:
        try:
            return _array(values, np.int64)  # also reads numbers given as text
        except (ValueError, OverflowError):
            threads = self.threads
            return _array([threads[value] for value in values], np.int64)

    def _or_ids(self, values: list[int | None], labels: list[int | str]) -> Ints:
        """`values`, with the number of the process or thread where there is none."""
        threads = self.threads
        return _integers(
            [
                threads[label] if value is None else value
                for value, label in zip(values, labels, strict=True)
            ]
        )

    def _add_ranges(self, rows: _Rows) -> None:
        events, names = rows.events, self.range_names
        args = [event.args for event in events]
        name = names.of([event.name for event in events])
        pid = self._ids([event.pid for event in events])
        tid = self._ids([event.tid for event in events])
        operator = rows.kind == HOST_OPERATOR
        sequence = _integers([arg.sequence for arg in args])
        forward = _integers([arg.forward for arg in args])
        sequence[~operator] = NONE
        forward[~operator | (forward <= 0)] = NONE
        for row, kept in _collectives(args):
            if operator[row]:
                start, end = int(rows.start[row]), int(rows.end[row])
                self.comms.append(CommsCall(start, end, int(pid[row]), int(tid[row]), kept))
        known = [names[text] for text in PRODUCTS & names.keys()]
        products = np.flatnonzero(np.isin(name, known) & operator).tolist()
        sizes = [product(events[row].name, bytes(args[row].dims)) for row in products]
        table = [(row, *size) for row, size in zip(products, sizes, strict=True) if size]
        if table:
            places, flops, tokens, groups = np.array(table, np.int64).T
            self.matmuls.add(
                start=rows.start[places],
                end=rows.end[places],
                pid=pid[places],
                tid=tid[places],
                flops=flops,
                rows=tokens,
                groups=groups,
            )
        self.ranges.add(
            start=rows.start,
            end=rows.end,
            name=name,
            pid=pid,
            tid=tid,
            kind=rows.kind,
            sequence=sequence,
            forward=forward,
        )

    def _add_calls(self, rows: _Rows) -> None:
        events, names = rows.events, self.call_names
        self.calls.add(
            start=rows.start,
            end=rows.end,
            name=names.of([event.name for event in events]),
            pid=self._ids([event.pid for event in events]),
            tid=self._ids([event.tid for event in events]),
            correlation=_integers([event.args.correlation for event in events]),
        )

    def _add_activities(self, rows: _Rows) -> None:
        events, names = rows.events, self.activity_names
        args = [event.args for event in events]
        pids = [event.pid for event in events]
        for row, kept in _collectives(args):
            self.collectives[self._activity_count + row] = kept
        self._activity_count += len(events)
        self.activities.add(
            start=rows.start,
            end=rows.end,
            name=names.of([event.name for event in events]),
            kind=rows.kind,
            pid=self._ids(pids),
            device=self._or_ids([arg.device for arg in args], pids),
            stream=self._or_ids([arg.stream for arg in args], [event.tid for event in events]),
            correlation=_integers([arg.correlation for arg in args]),
            bytes=_integers([arg.bytes for arg in args]),
            blocks=_integers([_blocks(arg.grid) for arg in args]),
            graph_node=_array([arg.graph_node != 0 for arg in args], np.bool_),
        )

    def _add_instants(self, bucket: list[Event]) -> None:
        self.out_of_memory += sum(event.name == "[OutOfMemory]" for event in bucket)
        rows = [
            (event, args)
            for event in bucket
            if event.name == "[memory]"
            and isinstance(args := event.args, FullArgs)
            and integer(args.device_type) == 1
            and abs(event.ts + self.offset_us) < TIME_LIMIT_MICROSECONDS
        ]
        if not rows:
            return
        self.memory.add(
            time=nanoseconds(_array([event.ts for event, _ in rows], np.float64))
            + self.offset_us * 1000,
            pid=self._ids([event.pid for event, _ in rows]),
            device=_integers([integer(args.device_id) for _, args in rows]),
            allocated=_integers([integer(args.allocated) for _, args in rows]),
            reserved=_integers([integer(args.reserved) for _, args in rows]),
        )


def _collectives(args: list[Args]) -> list[tuple[int, FullArgs]]:
    """Row and arguments of the collectives, for keeping.

    Raw JSON is a view that would hold its whole chunk of the file in memory.
    """
    rows = [row for row, arg in enumerate(args) if arg.collective is not None]
    return [
        (row, msgspec.structs.replace(arg, dims=msgspec.Raw()) if arg.dims else arg)
        for row in rows
        if isinstance(arg := args[row], FullArgs)
    ]


def _blocks(grid: Any) -> int:
    """Thread blocks of a launch with `grid`."""
    try:
        x, y, z = grid
        count = x * y * z
    except (TypeError, ValueError):
        sizes = integers(grid)
        count = math.prod(sizes) if sizes else NONE
    if isinstance(count, int) and 0 < count < 2**63:
        return count
    return NONE
