"""Decodes Kineto events, one batch at a time.

Only the fields used are decoded. What a strict decode refuses is tried leniently: numbers given as
text, then, event by event, the damage that known writers do.
"""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from moe_advisor.ingest.json_stream import lenient_object
from moe_advisor.model import NONE

EXACT_MICROSECONDS = float(2**43)
"""Below this a double holds a time in µs closely enough to tell its nanoseconds apart."""

TIME_LIMIT_MICROSECONDS = 4.0e15
"""The year 2096; later times are damage, and their nanoseconds would overflow 64 bits soon."""

FEW_SHARE = 0.05
"""Up to this share of events may have more arguments than most: each costs a decode of its own."""


if TYPE_CHECKING:
    _View = msgspec.Raw | None
else:
    _View = msgspec.Raw  # msgspec knows no union with it; a default of None passes unchecked


def _key(name: str, default: Any = None) -> Any:
    return msgspec.field(name=name, default=default)


class Args(msgspec.Struct, gc=False, frozen=True):
    """The arguments that most events have; filling in an absent one takes 15 ns.

    `collective` and `device_type` are set, to views of the text, where there are more of them:
    those of `FullArgs`, which stand in for these before anyone else sees the event.
    """

    correlation: int = NONE
    stream: int | None = None
    device: int | None = None
    bytes: int = NONE
    grid: Any = None
    sequence: int = _key("Sequence number", NONE)
    forward: int = _key("Fwd thread id", 0)
    graph_node: int = _key("graph node id", 0)
    dims: msgspec.Raw = _key("Input Dims", msgspec.Raw())
    collective: _View = _key("Collective name")
    device_type: _View = _key("Device Type")


class FullArgs(Args, gc=False, frozen=True):
    """All arguments that are used, of all kinds of events."""

    collective: Any = _key("Collective name")
    device_type: Any = _key("Device Type")
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


NO_ARGS = FullArgs()
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


class _FullEvent(Event, gc=False):
    args: FullArgs = NO_ARGS


class _ExactEvent(msgspec.Struct, gc=False):
    cat: str = ""
    name: str = ""
    ts: Decimal = Decimal("NaN")
    dur: Decimal = Decimal("NaN")
    pid: int | str = 0
    tid: int | str = 0
    args: FullArgs = NO_ARGS


_FULL: Any = _FullEvent  # is an Event, but a list of them no list of Events to a type checker
_SHORT = msgspec.json.Decoder(list[Event])
_ARGUMENTS = msgspec.json.Decoder(FullArgs)
_STRICT = msgspec.json.Decoder(list[_FULL])
_LAX = msgspec.json.Decoder(list[_FULL], strict=False)
_EXACT = msgspec.json.Decoder(list[_ExactEvent], strict=False)
_RAW = msgspec.json.Decoder(list[msgspec.Raw])
_ONE = msgspec.json.Decoder(_FullEvent, strict=False)


def _address(view: Any) -> int:
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address


def _fill(events: list[Event], text: bytes) -> bool:
    """Gives `events`, decoded from `text`, all their arguments; False where that can't be done."""
    origin = _address(text)
    for event in events:
        args = event.args
        mark = args.device_type if args.collective is None else args.collective
        place = _address(mark) - origin  # inside the arguments, so the braces around it are theirs
        begin, end = text.rfind(b"{", 0, place), text.find(b"}", place) + 1
        try:
            event.args = _ARGUMENTS.decode(text[begin:end])
        except msgspec.DecodeError:  # the brace was one of a text or of a value
            return False
    return True


class EventDecoder:
    """Turns JSON into events; times become relative to `offset_us`, which the first batch sets.

    The offset is 0 unless a double would lose nanoseconds: some versions of torch wrote fractional
    µs since 1970.
    """

    def __init__(self) -> None:
        self.offset_us = 0
        self._first = True
        self._in_short = True

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
        if self._in_short:
            try:
                events = _SHORT.decode(text)
            except msgspec.ValidationError:
                pass
            else:
                more = [
                    event
                    for event in events
                    if event.args.collective is not None or event.args.device_type is not None
                ]
                self._in_short = len(more) <= FEW_SHARE * len(events) + 1
                if self._in_short and _fill(more, text):
                    return events
        for decoder in (_STRICT, _LAX):
            try:
                return decoder.decode(text)
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
    for name, encoded in zip(
        FullArgs.__struct_fields__, FullArgs.__struct_encode_fields__, strict=True
    )
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
        args=FullArgs(**chosen),
    )
