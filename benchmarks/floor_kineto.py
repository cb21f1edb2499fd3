"""The floor for reading a Kineto trace: gunzip and decode each event into a typed struct.

Nothing is kept but a count, and one number so that the decode can't be skipped. The trace is read
in chunks of 1 MiB; a chunk is cut where one event ends and the next begins, and the decode of the
part before the cut proves the cut.
"""

import gzip
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

CHUNK = 1 << 20
BOUNDARY = re.compile(rb"\}\s*,\s*\{")


class Args(msgspec.Struct, gc=False):
    stream: Any = None
    correlation: Any = None
    external: Any = msgspec.field(name="External id", default=None)


class Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: int | str = 0
    tid: int | str = 0
    args: Args | None = None


class Rest(msgspec.Struct, gc=False):
    traceEvents: list[Event] = []


EVENTS = msgspec.json.Decoder(list[Event])
REST = msgspec.json.Decoder(Rest)


def cut(buffer: bytes) -> tuple[list[Event], int] | None:
    """The events before the last boundary that proves to be one, and where the next begins."""
    for match in reversed(list(BOUNDARY.finditer(buffer, max(0, len(buffer) - (1 << 16))))):
        try:
            return EVENTS.decode(b"[" + buffer[: match.start() + 1] + b"]"), match.end() - 1
        except msgspec.DecodeError:
            continue
    return None


def events(stream: BinaryIO) -> Iterator[list[Event]]:
    buffer, started = b"", False
    while chunk := stream.read(CHUNK):
        buffer += chunk
        if not started:
            at = buffer.find(b"[", buffer.find(b'"traceEvents"'))
            if b'"traceEvents"' not in buffer or at < 0:
                continue
            buffer, started = buffer[at + 1 :], True
        if found := cut(buffer):
            yield found[0]
            buffer = buffer[found[1] :]
    yield REST.decode(b'{"traceEvents":[' + buffer).traceEvents


def main(path: str) -> None:
    count = microseconds = 0
    with gzip.open(path) as stream:
        for batch in events(stream):
            count += len(batch)
            microseconds += sum(event.dur for event in batch)
    print(count, round(microseconds))


if __name__ == "__main__":
    main(sys.argv[1])
