"""Reads a long JSON list of events in pieces, so that memory does not grow with the file.

The bytes come in chunks of about 1 MiB, gunzipped where needed. A chunk is cut where one event
ends and the next begins, and the decode of the part before the cut proves the cut. What can't be
decoded is handed piece by piece to a rescue function, so that one bad event costs one event.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec
from isal import isal_zlib

from moe_advisor.errors import InputError
from moe_advisor.privacy import display_name

CHUNK_BYTES = 1 << 20  # larger chunks gain no speed, smaller ones lose it at the cuts
READ_BYTES = 1 << 17  # compressed bytes per read: about one chunk once unpacked
TAIL_LIMIT_BYTES = 64 << 20  # metadata after the events: 16k ranks' groups stay far below
CUT_TRIES = 12  # cuts tried per chunk before reading on; a cut fails only inside nested objects
HEAD_TRIES = 8  # places tried as the list of events; other keys of that name are rare
RESCUE_LIMIT_BYTES = 1 << 18  # a larger damaged event is left out: repairs are slower than linear
SEARCH_BYTES = 1 << 14  # where a cut is looked for first: a few events' worth

GZIP_MAGIC = b"\x1f\x8b"

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one input may cost before reading stops with a message that names the option."""

    max_ratio: int = 200  # unpacked : packed; real traces measure 13 to 29, a bomb 1,029
    ratio_free_bytes: int = 64 << 20  # the ratio counts only past this much output
    max_event_bytes: int = 64 << 20  # one event; the largest seen hold a few kilobytes


DEFAULT_LIMITS = StreamLimits()


# isal's stub declares the class as an instance
_UNPACK_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]


class _CutError(Exception):
    """The packed data ends early or is damaged; what came before is good."""


class _Packed:
    """The packed bytes of a stream, with a look ahead."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.pending = b""
        self.total = 0

    def fill(self) -> bool:
        """Reads on if nothing is pending; False at the end of the stream."""
        if not self.pending:
            self.pending = self._stream.read(READ_BYTES)
            self.total += len(self.pending)
        return bool(self.pending)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises `_CutError` if there are fewer."""
        taken = b""
        while len(taken) < count:
            if not self.fill():
                raise _CutError
            part = self.pending[: count - len(taken)]
            self.pending = self.pending[len(part) :]
            taken += part
        return taken

    def skip_header(self) -> None:
        """Skips the header of a gzip member."""
        fixed = self.take(10)
        flags = fixed[3]
        if not fixed.startswith(GZIP_MAGIC) or fixed[2] != 8:
            raise _CutError
        if flags & 4:
            self.take(int.from_bytes(self.take(2), "little"))
        for flag in (8, 16):  # file name, comment: each ends with a zero byte
            while flags & flag and self.take(1) != b"\0":
                pass
        if flags & 2:
            self.take(2)


def _gunzip(stream: BinaryIO, name: str, limits: StreamLimits) -> Iterator[bytes]:
    """The unpacked bytes of one or several gzip members, in chunks of at most `CHUNK_BYTES`.

    Raises `_CutError` where the data ends early or fails its check, `InputError` past the limit.
    The data is unpacked without its frame, because isal drops the last chunk of a damaged one.
    """
    packed = _Packed(stream)
    unpacked_total = 0
    while True:
        packed.skip_header()
        member = isal_zlib.decompressobj(wbits=-15)
        checksum = 0
        while True:
            if not packed.fill():
                raise _CutError
            try:
                data = member.decompress(packed.pending, CHUNK_BYTES)
            except (_UNPACK_ERROR, EOFError, ValueError) as error:
                raise _CutError from error
            packed.pending = member.unused_data if member.eof else member.unconsumed_tail
            unpacked_total += len(data)
            if unpacked_total > max(limits.ratio_free_bytes, limits.max_ratio * packed.total):
                raise InputError(
                    f"{name}: unpacks to more than {limits.max_ratio} times its size; if you "
                    f"trust the file, raise the limit with --max-expansion"
                )
            if data:
                checksum = isal_zlib.crc32(data, checksum)
                yield data
            if member.eof:
                break
        if int.from_bytes(packed.take(8)[:4], "little") != checksum:
            raise _CutError
        # padding or other bytes behind the last member are ignored, as gzip does
        if not packed.fill() or not packed.pending.startswith(GZIP_MAGIC[:1]):
            return


def _plain(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _as_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks` as UTF-8 without a byte order mark, whatever Unicode encoding they came in."""
    first = next(chunks, b"")
    while len(first) < 4 and (more := next(chunks, b"")):
        first += more
    encoding = None
    if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif first.startswith(codecs.BOM_UTF8):
        first = first[len(codecs.BOM_UTF8) :]
    elif len(first) >= 2 and 0 in first[:2]:  # JSON begins with an ASCII character
        encoding = "utf-16-be" if first[0] == 0 else "utf-16-le"
    if encoding is None:
        yield first
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(first).encode("utf-8", "replace")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "replace")


def head_chunks(path: Path, *, packed: bool) -> Iterator[bytes]:
    """The beginning of a file as UTF-8, unpacked if `packed`; ends quietly where data is cut."""
    with path.open("rb") as stream:
        name = display_name(path)
        chunks = _gunzip(stream, name, DEFAULT_LIMITS) if packed else _plain(stream)
        try:
            yield from _as_utf8(chunks)
        except _CutError:
            return


_EVENTS_KEY = re.compile(rb'"traceEvents"\s*:\s*\[')
_BOUNDARY = re.compile(rb"\}\s*,\s*\{")
_NEXT_EVENT = re.compile(
    rb'\}[\s,]*(?=\{\s*"(?:ph|name|cat|pid|tid|ts|id|args|dur|bp|s)"\s*:)', re.IGNORECASE
)
_EVENT_START = re.compile(rb'\{\s*"(?:ph|name|cat|pid|tid|ts|id|args|dur|bp|s)"\s*:', re.IGNORECASE)
_LIST_END = re.compile(rb"\}[\s,]*\]")


_AFTER_LIST = re.compile(rb'\s*(?:\Z|\}\s*\Z|,\s*"[^"]{1,80}"\s*:)')


class EventReader(Generic[E]):
    """The events of a Chrome trace, batch by batch; `metadata` and the counts fill on the way.

    `decode` turns the bytes of a JSON list into events and raises msgspec's errors. `rescue` turns
    the bytes of one event that `decode` refused into an event, or None if it can't; only if its
    second argument says so may it give up parts of the event.
    """

    def __init__(
        self,
        path: Path,
        decode: Callable[[bytes], list[E]],
        rescue: Callable[[bytes, bool], E | None],
        limits: StreamLimits = DEFAULT_LIMITS,
    ) -> None:
        self.metadata: dict[str, Any] = {}
        self.truncated = False
        self.is_list = False
        self.bad_events = 0
        self.repaired_events = 0
        self._path = path
        self._name = display_name(path)
        self._decode = decode
        self._rescue = rescue
        self._limits = limits

    def _chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        head = stream.read(2)
        stream.seek(0)
        try:
            if head == GZIP_MAGIC:
                yield from _as_utf8(_gunzip(stream, self._name, self._limits))
            else:
                yield from _as_utf8(_plain(stream))
        except _CutError:
            self.truncated = True

    def __iter__(self) -> Iterator[list[E]]:
        """Batches of events in file order. Raises InputError if this is not a trace."""
        try:
            with self._path.open("rb") as stream:
                yield from self._batches(self._chunks(stream))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{self._name}: can't be read: {reason}") from error

    def _batches(self, chunks: Iterator[bytes]) -> Iterator[list[E]]:
        buffer = self._find_events(chunks)
        for chunk in chunks:
            events, rest = self._quick(buffer, chunk)
            if events is not None:
                yield events
                buffer = rest
                continue
            buffer += chunk
            found = self._cut(buffer)
            if found is None:
                if len(buffer) > self._limits.max_event_bytes + CHUNK_BYTES:
                    raise InputError(
                        f"{self._name}: one event is larger than "
                        f"{self._limits.max_event_bytes >> 20} MiB: not a torch profiler trace"
                    )
                continue
            events, end, closed = found
            if events:
                yield events
            buffer = buffer[end:]
            if closed:
                self._read_tail(buffer, chunks)
                return
        events, end, closed = self._last(buffer)
        if events:
            yield events
        if closed:
            self._read_tail(buffer[end:], chunks)
        else:
            self.truncated = True

    # --- before the events ------------------------------------------------------------------

    def _find_events(self, chunks: Iterator[bytes]) -> bytes:
        """Reads up to the list of events; returns what follows its opening bracket."""
        buffer = b""
        searched = tries = 0
        for chunk in chunks:
            buffer += chunk
            text = buffer.lstrip()
            if text.startswith(b"["):
                self.is_list = True
                return text[1:]
            if text and not text.startswith(b"{"):
                break
            for match in islice(_EVENTS_KEY.finditer(buffer, searched), HEAD_TRIES):
                head = lenient_object(buffer[: match.end()] + b"]}")
                if head is not None:
                    head.pop("traceEvents", None)
                    self.metadata = head
                    return buffer[match.end() :]
                tries += 1
            searched = max(0, len(buffer) - 64)
            if len(buffer) > TAIL_LIMIT_BYTES or tries >= HEAD_TRIES:
                break
        raise InputError(
            f"{self._name}: no list of trace events found: not a torch profiler trace, or cut "
            f"before its first event"
        )

    # --- the events -------------------------------------------------------------------------

    def _quick(self, rest: bytes, chunk: bytes) -> tuple[list[E] | None, bytes]:
        """Events up to the last boundary in a sound `chunk`, with one copy of it; else None."""
        near = [*_BOUNDARY.finditer(chunk, max(0, len(chunk) - SEARCH_BYTES))]
        if not near:
            return None, b""
        last = near[-1]
        try:
            text = b"".join((b"[", rest, memoryview(chunk)[: last.start() + 1], b"]"))
            return self._decode(text), chunk[last.end() - 1 :]
        except msgspec.DecodeError:
            return None, b""

    def _cut(self, buffer: bytes) -> tuple[list[E], int, bool] | None:
        """Events before the last proven cut, where the rest begins, whether the list closed."""
        for start, end in islice(_cuts(buffer), CUT_TRIES):
            block = buffer[: start + 1]
            events, closed_at, cut_inside = self._block(block)
            if closed_at is not None:
                return events, closed_at, True
            if not cut_inside:
                return events, end, False
        return None

    def _block(self, block: bytes) -> tuple[list[E], int | None, bool]:
        """Events of `block`, where the list closed in it, whether its end cuts an event."""
        try:
            return self._decode(b"[" + block + b"]"), None, False
        except msgspec.ValidationError:
            return *self._pieces(block), False
        except msgspec.DecodeError as error:
            text = str(error)
            if "truncated" in text:
                return [], None, True
            closed_at = _list_end(text)
            if closed_at is None:
                return *self._pieces(block), False
        try:
            return self._decode(b"[" + block[:closed_at]), closed_at, False
        except msgspec.DecodeError:
            return *self._pieces(block), False

    def _last(self, buffer: bytes) -> tuple[list[E], int, bool]:
        """Events of what is left at the end of the file, where the list closed, whether it did."""
        if self.truncated:
            found = self._cut(buffer)
            events, end, closed = found or ([], 0, False)
            if closed:
                return events, end, True
            more, closed_at = self._pieces(buffer[end:], last_may_be_cut=True)
            return events + more, end + (closed_at or 0), closed_at is not None
        try:
            return self._decode(b"[" + buffer), len(buffer), True
        except msgspec.ValidationError:
            pass
        except msgspec.DecodeError as error:
            closed_at = _list_end(str(error))
            if closed_at is not None:
                try:
                    return self._decode(b"[" + buffer[:closed_at]), closed_at, True
                except msgspec.DecodeError:
                    pass
        if not buffer.strip(b" \t\r\n,"):
            return [], 0, False
        events, closed_at = self._pieces(buffer, last_may_be_cut=True)
        return events, closed_at or 0, closed_at is not None

    def _pieces(self, block: bytes, *, last_may_be_cut: bool = False) -> tuple[list[E], int | None]:
        """Event by event what can be saved of `block`, and where the list closed in it."""
        events: list[E] = []
        starts = [0, *(match.end() for match in _NEXT_EVENT.finditer(block)), len(block)]
        index = 0
        while index < len(starts) - 1:
            begin, end = starts[index], starts[index + 1]
            index += 1
            piece = block[begin:end].strip(b" \t\r\n,")
            if not piece:
                continue
            if (event := self._one(piece)) is not None:
                events.append(event)
                continue
            for match in islice(_LIST_END.finditer(block, begin, end), CUT_TRIES):
                closing = block[begin : match.start() + 1].strip(b" \t\r\n,")
                if (event := self._one(closing)) is not None:
                    events.append(event)
                    return events, match.end()
            closed = self._rescue_last(block, begin, end, at_end=last_may_be_cut)
            if closed is not None:
                events.append(closed[0])
                self.repaired_events += 1
                return events, closed[1]
            if piece.startswith(b"]"):
                return events, block.index(b"]", begin) + 1
            start = _EVENT_START.search(piece)
            behind = piece[start.start() :] if start is not None and start.start() else b""
            if behind and (event := self._one(behind)) is not None:
                self.bad_events += 1  # what stands before the event is none
                events.append(event)
                continue
            # nested objects that look like events: the event goes on in the next pieces
            for further in range(index + 1, min(index + CUT_TRIES, len(starts))):
                joined = block[begin : starts[further]].strip(b" \t\r\n,")
                if (event := self._one(joined)) is not None:
                    events.append(event)
                    index = further
                    break
            else:
                if last_may_be_cut and end == len(block) and b"}" not in piece[-2:]:
                    continue  # the event the file was cut in: `truncated` tells
                small = len(piece) <= RESCUE_LIMIT_BYTES
                event = self._rescue(piece, True) if small else None
                if event is None:
                    self.bad_events += 1
                else:
                    self.repaired_events += 1
                    events.append(event)
        return events, None

    def _rescue_last(
        self, block: bytes, begin: int, end: int, *, at_end: bool
    ) -> tuple[E, int] | None:
        """A damaged event that the list ends behind, and where; None if it does not end there."""
        if end - begin > RESCUE_LIMIT_BYTES:
            return None
        ends = list(islice(_LIST_END.finditer(block, begin, end), CUT_TRIES))
        for give_up in (False, True) if at_end else (False,):
            for match in ends:
                if give_up and not _AFTER_LIST.match(block, match.end()):
                    continue
                text = block[begin : match.start() + 1].strip(b" \t\r\n,")
                if (event := self._rescue(text, give_up)) is not None:
                    return event, match.end()
        return None

    def _one(self, piece: bytes) -> E | None:
        try:
            decoded = self._decode(b"[" + piece + b"]")
        except msgspec.DecodeError:
            return None
        return decoded[0] if len(decoded) == 1 else None

    # --- after the events -------------------------------------------------------------------

    def _read_tail(self, tail: bytes, chunks: Iterator[bytes]) -> None:
        """The metadata behind the list of events; the first value of a key wins."""
        if self.is_list:
            return
        for chunk in chunks:
            tail += chunk
            if len(tail) > TAIL_LIMIT_BYTES:
                break
        after = tail.lstrip(b" \t\r\n")
        found = lenient_object(b"{" + after.lstrip(b" \t\r\n,"))
        if found is None:
            self.truncated = True
            found = lenient_object(b"{" + after.strip(b" \t\r\n,") + b"}") or {}
        for key, value in found.items():
            if key != "traceEvents" and not self.metadata.get(key):
                self.metadata[key] = value


def _cuts(buffer: bytes) -> Iterator[tuple[int, int]]:
    """Places where an event may end and the next begin, the last first."""
    near = max(0, len(buffer) - SEARCH_BYTES)
    found = [(m.start(), m.end() - 1) for m in _BOUNDARY.finditer(buffer, near)]
    yield from reversed(found)
    if len(found) < CUT_TRIES and near:
        found = [(m.start(), m.end() - 1) for m in _BOUNDARY.finditer(buffer, 0, near)]
        yield from reversed(found)


_BYTE = re.compile(r"trailing characters \(byte (\d+)\)")


def _list_end(message: str) -> int | None:
    """Where, in the text after our opening bracket, the list of events was closed."""
    match = _BYTE.search(message)
    return int(match[1]) - 1 if match else None


# --- lenient parsing of small texts ---------------------------------------------------------

_LITERAL = re.compile(
    r'((?:"\s*:|[\[,])\s*)[-+]?(?:inf|nan|infinity|undefined|none)\b(?=\s*[,}\]])', re.IGNORECASE
)
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_DOUBLE_COMMA = re.compile(r",(?:\s*,)+")


def _first_wins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of `pairs` in which the first value that is not empty wins."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key not in found or found[key] in (None, "", [], {}):
            found[key] = value
    return found


def lenient_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object in `text`, or None; forgives what writers of traces are known to get wrong.

    That is: bytes that are not UTF-8, control characters in strings, `inf` and `nan`, superfluous
    commas and keys given twice.
    """
    plain = text.decode("utf-8", "replace")
    for attempt in (lambda s: s, _tidy):
        try:
            found = json.loads(attempt(plain), strict=False, object_pairs_hook=_first_wins)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _tidy(text: str) -> str:
    """`text` with non-JSON literals as null and without superfluous commas."""
    for _ in range(2):  # neighbours in a list share their comma, so one pass skips every other one
        text = _LITERAL.sub(r"\1null", text)
    return _TRAILING_COMMA.sub("", _DOUBLE_COMMA.sub(",", text))
