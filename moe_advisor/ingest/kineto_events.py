"""Decodes Kineto events into columns: one batch of events at a time, one table per kind of event.

Only the fields used are decoded. What a strict decode refuses is tried leniently: numbers given as
text, then, event by event, the damage that known writers do.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from moe_advisor.ingest.json_stream import lenient_object
from moe_advisor.ingest.kineto_shapes import PRODUCTS, product
from moe_advisor.model import NONE

EXACT_MICROSECONDS = float(2**43)
"""Below this a double holds a time in µs closely enough to tell its nanoseconds apart."""

TIME_LIMIT_MICROSECONDS = 4.0e15
"""The year 2096; later times are damage, and their nanoseconds would overflow 64 bits soon."""

Ints = NDArray[np.int64]


def _key(name: str, default: Any = None) -> Any:
    return msgspec.field(name=name, default=default)


class Args(msgspec.Struct, gc=False, frozen=True):
    """The arguments that are used, of all kinds of events."""

    correlation: int = NONE
    stream: int | None = None
    device: int | None = None
    bytes: int = NONE
    grid: Any = None
    sequence: int = _key("Sequence number", NONE)
    forward: int = _key("Fwd thread id", 0)
    graph_node: int = _key("graph node id", 0)
    collective: Any = _key("Collective name")
    dtype: Any = None
    sent_elements: Any = _key("In msg nelems")
    received_elements: Any = _key("Out msg nelems")
    sent_size: Any = _key("In msg size")  # the name of the element counts before December 2023
    received_size: Any = _key("Out msg size")
    sent_splits: Any = _key("In split size")
    received_splits: Any = _key("Out split size")
    group_size: Any = _key("Group size")
    group: Any = _key("Process Group Name")
    group_description: Any = _key("Process Group Description")
    group_ranks: Any = _key("Process Group Ranks")
    group_rank: Any = _key("Rank")  # the rank within the group, not the global one
    first_rank: Any = _key("Global rank start")
    rank_stride: Any = _key("Global rank stride")
    collective_sequence: Any = _key("Seq")
    sends_to: Any = _key("Dst Rank")  # ranks within the group
    receives_from: Any = _key("Src Rank")
    allocated: Any = _key("Total Allocated")
    reserved: Any = _key("Total Reserved")
    device_id: Any = _key("Device Id")
    device_type: Any = _key("Device Type")
    dims: msgspec.Raw = _key("Input Dims", msgspec.Raw())


NO_ARGS = Args()
NAN = math.nan


class Event(msgspec.Struct, gc=False):
    """One event; `dur` is NaN where missing, which tells complete events from all others."""

    cat: str = ""
    name: str = ""
    ts: float = NAN
    dur: float = NAN
    pid: int | str = 0
    tid: int | str = 0
    args: Args = NO_ARGS


class _ExactEvent(msgspec.Struct, gc=False):
    cat: str = ""
    name: str = ""
    ts: Decimal = Decimal("NaN")
    dur: Decimal = Decimal("NaN")
    pid: int | str = 0
    tid: int | str = 0
    args: Args = NO_ARGS


_STRICT = msgspec.json.Decoder(list[Event])
_LAX = msgspec.json.Decoder(list[Event], strict=False)
_EXACT = msgspec.json.Decoder(list[_ExactEvent], strict=False)
_RAW = msgspec.json.Decoder(list[msgspec.Raw])
_ONE = msgspec.json.Decoder(Event, strict=False)


class EventDecoder:
    """Turns JSON into events; times become relative to `offset_us`, which the first batch sets.

    The offset is 0 unless a double would lose nanoseconds: some versions of torch wrote fractional
    µs since 1970.
    """

    def __init__(self) -> None:
        self.offset_us = 0
        self._first = True

    def decode(self, text: bytes) -> list[Event]:
        """The events of the JSON list `text`. Raises msgspec's DecodeError if it is malformed."""
        try:
            return self._decode_any(text)
        except (UnicodeError, RecursionError) as error:
            raise msgspec.DecodeError(type(error).__name__) from error

    def _decode_any(self, text: bytes) -> list[Event]:
        if self.offset_us:
            return self._decode_exactly(text)
        events = self._decode(text)
        if self._first and events:
            self._first = False
            far = next((e.ts for e in events if e.ts >= EXACT_MICROSECONDS and e.ts % 1), None)
            if far is not None and far < TIME_LIMIT_MICROSECONDS:
                self.offset_us = int(far)
                return self._decode_exactly(text)
        return events

    def _decode(self, text: bytes) -> list[Event]:
        try:
            return _STRICT.decode(text)
        except msgspec.ValidationError:
            pass
        try:
            return _LAX.decode(text)
        except msgspec.ValidationError:
            pass
        events = []
        for raw in _RAW.decode(text):
            try:
                events.append(_ONE.decode(raw))
            except msgspec.DecodeError:
                found = rescue(bytes(raw))
                events.append(Event() if found is None else found)
        return events

    def _decode_exactly(self, text: bytes) -> list[Event]:
        offset = Decimal(self.offset_us)
        try:
            found = _EXACT.decode(text)
        except msgspec.ValidationError:
            events = self._decode(text)
            for event in events:
                event.ts -= self.offset_us
            return events
        return [
            Event(
                cat=event.cat,
                name=event.name,
                ts=float(event.ts - offset),
                dur=float(event.dur),
                pid=event.pid,
                tid=event.tid,
                args=event.args,
            )
            for event in found
        ]

    def rescue(self, piece: bytes, may_drop_args: bool) -> Event | None:
        """The event in the damaged JSON object `piece`, as far as it can be read, or None."""
        event = rescue(piece, may_drop_args)
        if event is not None:
            event.ts -= self.offset_us
        return event


# --- one damaged event ----------------------------------------------------------------------

_FIELDS = rb"(?:ph|cat|name|pid|tid|ts|dur|id|bp|s|args)"
_TEXT = re.compile(
    rb'("(?:name|cat)"\s*:\s*")(.{0,2000}?)("(?=\s*(?:,\s*"' + _FIELDS + rb'"\s*:|\}?\s*$)))',
    re.DOTALL,
)
_LINE = re.compile(rb'^([ \t]*"[^"\n]{1,80}"[ \t]*:[ \t]*")(.*)("[ \t]*,?[ \t\r]*)$', re.MULTILINE)
_ARGS = re.compile(rb',?\s*"args"\s*:\s*\{.*\Z', re.DOTALL)
_FIELD_START = re.compile(rb'","?' + _FIELDS + rb'"\s*:|"\s*,\s*"' + _FIELDS + rb'"\s*:')
_LOOSE_QUOTE = re.compile(rb'(?<!\\)"')
_LOOSE_BACKSLASH = re.compile(rb'\\(?!["\\/bfnrtu])')


def rescue(piece: bytes, may_drop_args: bool = True) -> Event | None:
    """The event in the damaged JSON object `piece`, as far as it can be read; None if it can't."""
    found = repaired(piece, may_drop_args)
    return None if found is None else _event_of(found)


def repaired(piece: bytes, may_drop_args: bool = True) -> dict[str, Any] | None:
    """The damaged JSON object `piece` as far as it can be read; None if it can't."""
    for attempt in _REPAIRS if may_drop_args else _REPAIRS[:-1]:
        found = lenient_object(attempt(piece))
        if found is not None:
            return found
    return None


def _escape(match: re.Match[bytes]) -> bytes:
    inner = _LOOSE_QUOTE.sub(rb"\"", _LOOSE_BACKSLASH.sub(rb"\\\\", match[2]))
    return match[1] + inner + match[3]


def _escape_names(piece: bytes) -> bytes:
    """Quotes inside `name`: torch up to 2.11 writes file and function names as they are."""
    return _TEXT.sub(_escape, piece)


def _escape_lines(piece: bytes) -> bytes:
    """Quotes inside any text that stands on a line of its own, as torch writes arguments."""

    def line(match: re.Match[bytes]) -> bytes:
        return match[0] if _FIELD_START.search(match[2]) else _escape(match)

    return _LINE.sub(line, _escape_names(piece))


def _without_args(piece: bytes) -> bytes:
    return _ARGS.sub(b"}", _escape_names(piece))


_REPAIRS: tuple[Callable[[bytes], bytes], ...] = (
    lambda piece: piece,
    _escape_names,
    _escape_lines,
    _without_args,
)


def integer(value: Any, default: int = NONE) -> int:
    """`value` as a 64-bit whole number, also from text; `default` where it is none."""
    if isinstance(value, bool):
        return default
    if isinstance(value, str):
        try:
            value = int(value) if len(value) < 24 else math.nan
        except ValueError:
            return default
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) else default
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return default


def integers(value: Any) -> tuple[int, ...]:
    """The list of whole numbers in `value`, a list or the text of one; empty if any is missing.

    c10d shortens the text of a long list with dots: what is left is of no use.
    """
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")) or "..." in text:
            return ()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return ()
    if not isinstance(value, list):
        return ()
    found = tuple(integer(item, NONE) for item in value)
    return () if any(item < 0 for item in found) else found


def text_of(value: Any) -> str:
    """`value` as text; empty where there is none."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _number(value: Any) -> float:
    if isinstance(value, bool):
        return NAN
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return NAN


def _label(value: Any) -> int | str:
    if isinstance(value, str):
        return value
    return integer(value, 0)


_ARG_KEYS = {
    encoded: name
    for name, encoded in zip(Args.__struct_fields__, Args.__struct_encode_fields__, strict=True)
}
_INTEGER_ARGS = {
    "correlation": NONE,
    "bytes": NONE,
    "sequence": NONE,
    "forward": 0,
    "graph_node": 0,
}


def _event_of(found: dict[str, Any]) -> Event:
    args = found.get("args")
    chosen: dict[str, Any] = {}
    for key, value in args.items() if isinstance(args, dict) else ():
        name = _ARG_KEYS.get(key)
        if name in _INTEGER_ARGS:
            chosen[name] = integer(value, _INTEGER_ARGS[name])
        elif name in ("stream", "device"):
            number = integer(value, NONE)
            chosen[name] = None if number == NONE else number
        elif name == "dims":
            chosen[name] = msgspec.Raw(json.dumps(value).encode())
        elif name is not None:
            chosen[name] = value
    duration = found.get("dur")
    cat = found.get("cat")
    return Event(
        cat=cat if isinstance(cat, str) else "",
        name=text_of(found.get("name")),
        ts=_number(found.get("ts")),
        dur=NAN if duration is None else _number(duration),
        pid=_label(found.get("pid")),
        tid=_label(found.get("tid")),
        args=Args(**chosen),
    )


# --- columns --------------------------------------------------------------------------------


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
_CALLS = frozenset({"cuda_runtime", "cuda_driver", "Runtime", "runtime", "Driver"})
_RANGES = {
    "cpu_op": HOST_OPERATOR,
    "Operator": HOST_OPERATOR,
    "user_annotation": HOST_ANNOTATION,
    "python_function": HOST_PYTHON,
    "overhead": HOST_OVERHEAD,
}
_MODULE_PREFIX = "nn.Module:"
_INSTANTS = frozenset({"cpu_instant_event", "CPU instant event"})
_COMMS_OPERATOR = "record_param_comms"
KNOWN_CATEGORIES = frozenset({*_ACTIVITIES, *_CALLS, *_RANGES, *_INSTANTS})
"""Kinds of events that are read; all others are passed over."""


@dataclass(frozen=True, slots=True)
class CommsCall:
    """A host-side `record_param_comms`: one collective as the framework asked for it."""

    start_ns: int
    end_ns: int
    pid: int
    tid: int
    args: Args


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
        self.collectives: dict[int, Args] = {}  # number of the activity in file order -> args
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
        for cat, bucket in buckets.items():
            self.categories.add(cat)
            if (kind := _RANGES.get(cat)) is not None:
                self._add_ranges(kind, bucket)
            elif cat in _CALLS:
                self._add_calls(bucket)
            elif (kind := _ACTIVITIES.get(cat)) is not None:
                self._add_activities(kind, bucket)
            elif cat in _INSTANTS:
                self._add_instants(bucket)

    def _times(self, bucket: list[Event]) -> tuple[list[Event], Ints, Ints]:
        """The complete events of `bucket` with sane times, their starts and ends in ns."""
        counts = self.counts
        counts.seen += len(bucket)
        start = np.array([event.ts for event in bucket], np.float64)
        length = np.array([event.dur for event in bucket], np.float64)
        sane = (np.abs(start + self.offset_us) < TIME_LIMIT_MICROSECONDS) & (length >= 0)
        sane &= length < TIME_LIMIT_MICROSECONDS
        if not sane.all():
            missing, negative, bad = np.isnan(length), length < 0, ~sane
            insane = bad & ~missing & ~negative
            counts.no_duration += int(missing.sum())
            counts.negative += int(negative.sum())
            counts.bad_time += int(insane.sum())
            bucket = [event for event, drop in zip(bucket, bad.tolist(), strict=True) if not drop]
            start, length = start[~bad], length[~bad]
        counts.kept += len(bucket)
        begin = nanoseconds(start) + self.offset_us * 1000
        return bucket, begin, begin + nanoseconds(length)

    def _integers(self, values: list[int]) -> Ints:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            return np.array([integer(value) for value in values], np.int64)

    def _ids(self, values: list[int | str]) -> Ints:
        try:
            return np.array(values, np.int64)  # also reads numbers given as text
        except (ValueError, OverflowError):
            threads = self.threads
            return np.array([threads[value] for value in values], np.int64)

    def _add_ranges(self, kind: int, bucket: list[Event]) -> None:
        if kind == HOST_PYTHON:
            bucket = [event for event in bucket if event.name.startswith(_MODULE_PREFIX)]
            if not bucket:
                return
        bucket, start, end = self._times(bucket)
        count = len(bucket)
        names, threads = self.range_names, self.threads
        sequence = forward = np.full(count, NONE, np.int64)
        if kind == HOST_OPERATOR:
            args = [event.args for event in bucket]
            sequence = self._integers([arg.sequence for arg in args])
            forward = self._integers([arg.forward for arg in args])
            forward[forward <= 0] = NONE
            for row in [row for row, arg in enumerate(args) if arg.collective is not None]:
                event = bucket[row]
                pid, tid = threads[event.pid], threads[event.tid]
                kept = _kept_args(args[row])
                self.comms.append(CommsCall(int(start[row]), int(end[row]), pid, tid, kept))
            self._add_matmuls(bucket, start, end)
        self.ranges.add(
            start=start,
            end=end,
            name=np.array([names[event.name] for event in bucket], np.uint32),
            pid=self._ids([event.pid for event in bucket]),
            tid=self._ids([event.tid for event in bucket]),
            kind=np.full(count, kind, np.uint8),
            sequence=sequence,
            forward=forward,
        )

    def _add_matmuls(self, bucket: list[Event], start: Ints, end: Ints) -> None:
        """Matrix products among the operators whose shapes were recorded."""
        found = [
            (row, *size)
            for row, event in enumerate(bucket)
            if event.name in PRODUCTS and (size := product(event.name, bytes(event.args.dims)))
        ]
        if not found:
            return
        rows, flops, tokens, groups = np.array(found, np.int64).T
        owners = [bucket[row] for row in rows.tolist()]
        self.matmuls.add(
            start=start[rows],
            end=end[rows],
            pid=self._ids([event.pid for event in owners]),
            tid=self._ids([event.tid for event in owners]),
            flops=flops,
            rows=tokens,
            groups=groups,
        )

    def _add_calls(self, bucket: list[Event]) -> None:
        bucket, start, end = self._times(bucket)
        names = self.call_names
        self.calls.add(
            start=start,
            end=end,
            name=np.array([names[event.name] for event in bucket], np.uint32),
            pid=self._ids([event.pid for event in bucket]),
            tid=self._ids([event.tid for event in bucket]),
            correlation=self._integers([event.args.correlation for event in bucket]),
        )

    def _add_activities(self, kind: int, bucket: list[Event]) -> None:
        bucket, start, end = self._times(bucket)
        names, threads = self.activity_names, self.threads
        args = [event.args for event in bucket]
        for row in [row for row, arg in enumerate(args) if arg.collective is not None]:
            self.collectives[self._activity_count + row] = _kept_args(args[row])
        self._activity_count += len(bucket)
        self.activities.add(
            start=start,
            end=end,
            name=np.array([names[event.name] for event in bucket], np.uint32),
            kind=np.full(len(bucket), kind, np.uint8),
            pid=self._ids([event.pid for event in bucket]),
            device=self._integers(
                [
                    threads[event.pid] if event.args.device is None else event.args.device
                    for event in bucket
                ]
            ),
            stream=self._integers(
                [
                    threads[event.tid] if event.args.stream is None else event.args.stream
                    for event in bucket
                ]
            ),
            correlation=self._integers([arg.correlation for arg in args]),
            bytes=self._integers([arg.bytes for arg in args]),
            blocks=self._integers([_blocks(arg.grid) for arg in args]),
            graph_node=np.array([arg.graph_node != 0 for arg in args], np.bool_),
        )

    def _add_instants(self, bucket: list[Event]) -> None:
        self.out_of_memory += sum(event.name == "[OutOfMemory]" for event in bucket)
        rows = [
            event
            for event in bucket
            if event.name == "[memory]"
            and integer(event.args.device_type) == 1
            and abs(event.ts + self.offset_us) < TIME_LIMIT_MICROSECONDS
        ]
        if not rows:
            return
        self.memory.add(
            time=nanoseconds(np.array([event.ts for event in rows], np.float64))
            + self.offset_us * 1000,
            pid=self._ids([event.pid for event in rows]),
            device=self._integers([integer(event.args.device_id) for event in rows]),
            allocated=self._integers([integer(event.args.allocated) for event in rows]),
            reserved=self._integers([integer(event.args.reserved) for event in rows]),
        )


def _kept_args(args: Args) -> Args:
    """`args` for keeping: raw JSON is a view that holds its whole chunk of the file in memory."""
    return msgspec.structs.replace(args, dims=msgspec.Raw()) if args.dims else args


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
