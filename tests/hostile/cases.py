"""Named broken inputs: each builds files in a folder and gives the arguments of `analyze`.

Sound bases are small: a two-step Nsight Systems export and a two-step PyTorch trace. A case says
how the program must end: with a result that names at least these issues, or with exit 2.
"""

import gzip
import json
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import kineto_builder as k
from tests.nsys_builder import GENERATIONS, NsysExport, two_steps

Build = Callable[[Path], list[str]]
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Case:
    """`exits` 0 with at least `issues`, or 2 with a line that holds `says`; None is either."""

    build: Build
    exits: int | None
    issues: frozenset[str] = frozenset()
    says: str = ""


CASES: dict[str, Case] = {}


def case(
    name: str, build: Build, exits: int | None = None, issues: str = "", says: str = ""
) -> None:
    assert name not in CASES, name  # a name twice would hide a case
    CASES[name] = Case(build, exits, frozenset(issues.split()), says)


# --- bases ----------------------------------------------------------------------------------


def steps(count: int = 2) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for step in range(count):
        at = 100.0 + 1000 * step
        events += [
            k.annotation(f"iteration {step}", at, 900),
            k.operator("aten::mm", at + 8, 20),
            k.call(at + 10, 5, 10 * step + 1),
            k.kernel("gemm_kernel", at + 30, 200, 10 * step + 1),
            k.call(at + 40, 5, 10 * step + 2),
            k.kernel(
                "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", at + 240, 100,
                10 * step + 2, stream=20, **k.collective("all_to_allv"),
            ),
        ]  # fmt: skip
    return events


TORCH = k.trace(*steps())
COMPACT = json.dumps({**k.METADATA, "traceEvents": steps()}, separators=(",", ":")).encode()


def torch_case(
    name: str, content: bytes, exits: int | None = None, issues: str = "", says: str = "",
    file: str = "trace.json",
) -> None:  # fmt: skip
    def build(folder: Path) -> list[str]:
        (folder / file).write_bytes(content)
        return [str(folder / file)]

    case(f"torch: {name}", build, exits, issues, says)


def events_case(
    name: str, events: list[Any], exits: int | None = None, issues: str = "", says: str = "",
    **metadata: Any,
) -> None:  # fmt: skip
    content = json.dumps({**k.METADATA, **metadata, "traceEvents": events}).encode()
    torch_case(name, content, exits, issues, says)


def changed(change: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """The sound events, each as `change` leaves or replaces it."""
    result = []
    for event in steps():
        replaced = change(event)
        result.append(event if replaced is None else replaced)
    return result


def nsys_case(
    name: str, change: Callable[[NsysExport], object], exits: int | None = None, issues: str = "",
    says: str = "", schema: str = "3.20.3",
) -> None:  # fmt: skip
    def build(folder: Path) -> list[str]:
        export = two_steps(schema)
        change(export)
        export.write(folder / "run.sqlite")
        return [str(folder / "run.sqlite")]

    case(f"nsys: {name}", build, exits, issues, says)


def sql_case(
    name: str, script: str, exits: int | None = None, issues: str = "", says: str = ""
) -> None:
    def build(folder: Path) -> list[str]:
        path = two_steps().write(folder / "run.sqlite")
        with closing(sqlite3.connect(path)) as database:
            database.executescript(script)
            database.commit()
        return [str(path)]

    case(f"nsys: {name}", build, exits, issues, says)


def bytes_case(
    name: str, change: Callable[[bytes], bytes], exits: int | None = None, issues: str = "",
    says: str = "",
) -> None:  # fmt: skip
    def build(folder: Path) -> list[str]:
        path = two_steps().write(folder / "run.sqlite")
        path.write_bytes(change(path.read_bytes()))
        return [str(path)]

    case(f"nsys: {name}", build, exits, issues, says)


# --- JSON: truncation at every structural place ---------------------------------------------

_PLACES = {
    "after the opening brace": b"{",
    "after a metadata key": b'"schemaVersion"',
    "inside the device list": b'"deviceProperties": [',
    "inside the job": b'"pg_config": [',
    "after the events' key": b'"traceEvents":',
    "after the opening bracket": b'"traceEvents": [',
    "after an event's brace": b'"traceEvents": [\n  {',
    "after an event's key": b'"ph":',
    "inside a category": b'"cat": "user_anno',
    "inside a name": b'"name": "iterat',
    "inside a number": b'"ts": 100.',
    "after a colon": b'"dur":',
    "inside args": b'"args": {',
    "after args": b'"External id": 1\n    }',
    "after a backslash": None,
    "inside a surrogate": None,
}
for _name, _mark in _PLACES.items():
    if _mark is None:
        continue
    at = TORCH.index(_mark) + len(_mark)
    torch_case(f"cut {_name}", TORCH[:at])
torch_case("cut after a backslash", TORCH[: TORCH.rindex(b"gemm_k")] + b"a\\", 0, "truncated-input")
torch_case(
    "cut inside a surrogate", TORCH[: TORCH.rindex(b"gemm_k")] + b"\\ud8", 0, "truncated-input"
)
torch_case("cut after the last event", TORCH[: TORCH.rindex(b"\n  ]")], 0, "truncated-input")
torch_case("cut after the list", TORCH[: TORCH.rindex(b"]") + 1], 0, "truncated-input")
torch_case("cut inside the trace name", TORCH[:-8], 0, "truncated-input")
for _part in range(1, 10):
    torch_case(f"cut at {_part} tenths, compact", COMPACT[: len(COMPACT) * _part // 10])

# --- gzip -----------------------------------------------------------------------------------

PACKED = gzip.compress(TORCH, 6, mtime=0)
for _length, _name in (
    (1, "one byte"), (2, "the magic only"), (3, "no flags"), (9, "most of the header"),
    (10, "the header only"), (11, "one byte of data"), (18, "little data"),
):  # fmt: skip
    torch_case(f"gzip cut: {_name}", PACKED[:_length], 2, file="trace.json.gz")
for _part in (3, 5, 8):
    torch_case(
        f"gzip cut at {_part} tenths", PACKED[: len(PACKED) * _part // 10], file="trace.json.gz"
    )
torch_case("gzip without its length", PACKED[:-4], 0, "truncated-input", file="trace.json.gz")
torch_case("gzip without its trailer", PACKED[:-8], 0, "truncated-input", file="trace.json.gz")
torch_case(
    "gzip with a wrong checksum", PACKED[:-8] + b"\1\2\3\4" + PACKED[-4:], 0, "truncated-input",
    file="trace.json.gz",
)  # fmt: skip
torch_case(
    "gzip with a wrong byte inside",
    PACKED[: len(PACKED) // 2]
    + bytes([PACKED[len(PACKED) // 2] ^ 0xFF])
    + PACKED[len(PACKED) // 2 + 1 :],
    file="trace.json.gz",
)
torch_case("gzip with reserved flags", PACKED[:3] + b"\xff" + PACKED[4:], file="trace.json.gz")
torch_case("gzip of nothing", gzip.compress(b""), 2, file="trace.json.gz")
torch_case("gzip in gzip", gzip.compress(PACKED), 2, file="trace.json.gz")
torch_case("gzip with garbage behind", PACKED + b"garbage" * 100, 0, file="trace.json.gz")
torch_case("gzip named json", PACKED, 0)
torch_case("json named gz", TORCH, 0, file="trace.json.gz")


def _bomb(folder: Path) -> list[str]:
    head = TORCH[: TORCH.index(b'"traceEvents": [') + 16]
    with gzip.open(folder / "bomb.json.gz", "wb", compresslevel=9) as out:
        out.write(head)
        for _ in range(160):
            out.write(b" " * (1 << 20))
        out.write(b"]}")
    return [str(folder / "bomb.json.gz")]


case("torch: gzip bomb", _bomb, 2, says="--max-expansion")

# --- JSON: wrong content --------------------------------------------------------------------

torch_case("empty file", b"", 2, says="empty")
torch_case("one space", b" ", 2)
torch_case("a number", b"12345", 2)
torch_case("null", b"null", 2)
torch_case("an empty object", b"{}", 2)
torch_case("an empty list", b"[]", 2)
torch_case("zero bytes", b"\0" * 5000, 2)
torch_case("random bytes", random.Random(1).randbytes(5000), 2)
torch_case("an HTML error page", b"<!doctype html><title>403</title>", 2)
torch_case("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 2)
torch_case(
    "header only", json.dumps({**k.METADATA, "traceEvents": []}).encode(), 0, "no-gpu-activity"
)
torch_case("events are null", json.dumps({**k.METADATA, "traceEvents": None}).encode())
torch_case("events are an object", json.dumps({**k.METADATA, "traceEvents": {}}).encode())
torch_case("events are a string", json.dumps({**k.METADATA, "traceEvents": "x"}).encode())
torch_case("events twice", TORCH[:-2] + b', "traceEvents": []}', 0)
torch_case("UTF-8 with a byte order mark", b"\xef\xbb\xbf" + TORCH, 0)
torch_case("UTF-16", TORCH.decode().encode("utf-16"))
torch_case("UTF-16 without a mark", TORCH.decode().encode("utf-16-le"))
torch_case("UTF-32", TORCH.decode().encode("utf-32"))
torch_case("Latin-1 names", TORCH.replace(b"gemm_kernel", "gémm".encode("latin-1")), 0)
torch_case("bytes that are no UTF-8", TORCH.replace(b"gemm_kernel", b"\xff\xfe\x80\xc0"), 0)
torch_case("overlong UTF-8", TORCH.replace(b"gemm_kernel", b"\xc0\xaf\xe0\x80\xaf"), 0)
torch_case("surrogates alone", TORCH.replace(b"gemm_kernel", b"\\ud800\\udfff"), 0)
torch_case("zero byte in a name", TORCH.replace(b"gemm_kernel", b"a\\u0000b"), 0)
torch_case("raw control characters", TORCH.replace(b"gemm_kernel", b"a\x01\x07\x1bb"), 0)
torch_case("Windows line ends", TORCH.replace(b"\n", b"\r\n"), 0)
torch_case("old Mac line ends", TORCH.replace(b"\n", b"\r"), 0)
torch_case("deep nesting", TORCH.replace(b'"traceEvents": [', b'"traceEvents": [' + b"[" * 100_000))
torch_case(
    "deep objects",
    TORCH.replace(
        b'"traceEvents": [',
        b'"deep": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b', "traceEvents": [',
    ),
)
torch_case(
    "deep args",
    TORCH.replace(b'"grid": [', b'"deep": ' + b"[" * 20_000 + b"]" * 20_000 + b', "grid": [', 1),
    0,
)
torch_case("a result with no content", b'{"schema": "moe-advisor/result"}', 2)
torch_case(
    "a result of a later schema",
    b'{"schema": "moe-advisor/result", "schema_version": "9.0"}',
    2,
    says="update",
)
torch_case("a result that is cut", b'{"schema": "moe-advisor/result", "schema_version": "1.0", ', 2)

# --- events ---------------------------------------------------------------------------------


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda event: event.update(values)


def only(category: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda event: event.update(values) if event["cat"] == category else None


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda event: event.pop(key, None) and None


for _key in ("ph", "cat", "name", "pid", "tid", "ts", "dur", "args"):
    events_case(f"no event has {_key}", changed(without(_key)))
    events_case(f"{_key} is null everywhere", changed(put(**{_key: None})))
    events_case(f"{_key} is a list everywhere", changed(put(**{_key: [1, {"a": []}]})))
    events_case(f"{_key} is a large number", changed(put(**{_key: 10**30})))
events_case("events are not objects", [1, "a", None, [], True, 1e308, {}])
events_case("times are negative", changed(lambda e: e.update(ts=-e["ts"])))
events_case("durations are negative", changed(put(dur=-5.0)), 0, "negative-durations")
events_case("durations are zero", changed(put(dur=0)), 0)
events_case("times are zero", changed(put(ts=0)), 0)
events_case("everything is at time zero", changed(put(ts=0, dur=0)), 0)
events_case("times overflow", changed(put(ts=1e300)))
events_case("times at the end of 64 bits", changed(put(ts=INT64_MAX / 1000 - 1)))
events_case("durations overflow", changed(only("kernel", dur=9e15)))
events_case("times are strings", changed(lambda e: e.update(ts=str(e["ts"]), dur="10")))
events_case("times are words", changed(put(ts="now")))
torch_case("times are NaN", COMPACT.replace(b'"ts":100.0', b'"ts":NaN'), 0)
torch_case("times are infinite", COMPACT.replace(b'"dur":200', b'"dur":Infinity'), 0)
events_case(
    "a clock jump of a day", [*steps(), *(e | {"ts": e["ts"] + 86_400e6} for e in steps())], 0
)
events_case("a clock jump of a century", [*steps(), k.kernel("late", 3e15, 5, 99)], 0)
events_case("the clock runs backwards", list(reversed(steps())), 0)
events_case(
    "GPU an hour before its calls",
    changed(lambda e: e.update(ts=e["ts"] - 3.6e9) if e["cat"] == "kernel" else None),
    0,
    "clock-skew",
)
events_case(
    "kernels overlap on one stream",
    [*steps(), k.kernel("long", 130, 1000, 77), k.kernel("long", 131, 1000, 78)],
    0,
)
events_case("every event ten times", steps() * 10, 0)
events_case("duplicate correlation ids", changed(lambda e: e["args"].update(correlation=1)), 0)
events_case(
    "no correlation ids",
    changed(lambda e: e["args"].pop("correlation", None) and None),
    0,
    "gpu-work-without-launch",
)
events_case(
    "correlation ids of calls that are missing",
    [e for e in steps() if e["cat"] != "cuda_runtime"],
    0,
    "gpu-work-without-launch",
)
events_case(
    "correlation ids overflow", changed(lambda e: e["args"].update(correlation=2**64 + 1)), 0
)
events_case("correlation ids are negative", changed(lambda e: e["args"].update(correlation=-1)), 0)
events_case(
    "streams overflow",
    changed(lambda e: e["args"].update(stream=2**70) if e["cat"] == "kernel" else None),
    0,
)
events_case(
    "devices are negative",
    changed(lambda e: e["args"].update(device=-1) if e["cat"] == "kernel" else None),
)
events_case("a thousand devices", [k.kernel("gemm", i, 0.5, 0, device=i) for i in range(3000)])
events_case(
    "grids are huge",
    changed(lambda e: e["args"].update(grid=[2**62] * 3) if e["cat"] == "kernel" else None),
    0,
)
events_case(
    "grids are text",
    changed(lambda e: e["args"].update(grid="a", block=None) if e["cat"] == "kernel" else None),
    0,
)
events_case("bytes are negative", [*steps(), k.copy("Memcpy DtoH", 500, 20, 0, -5)], 0)
events_case("bytes overflow", [*steps(), k.copy("Memcpy DtoH", 500, 20, 0, 2**80)], 0)
for _name, _value in (
    ("negative", -7), ("huge", 2**66), ("text", "many"), ("null", None), ("a list", [1]),
    ("a fraction", 1.5),
):  # fmt: skip
    events_case(
        f"message sizes are {_name}",
        changed(
            lambda e, v=_value: (
                e["args"].update({"In msg nelems": v, "Out msg nelems": v})
                if "Group size" in e["args"]
                else None
            )
        ),
        0,
    )
    events_case(
        f"group sizes are {_name}",
        changed(
            lambda e, v=_value: (
                e["args"].update({"Group size": v}) if "Group size" in e["args"] else None
            )
        ),
        0,
    )
events_case(
    "splits never close",
    changed(
        lambda e: (
            e["args"].update({"In split size": "[" * 10_000}) if "Group size" in e["args"] else None
        )
    ),
    0,
)
events_case(
    "splits are a million",
    changed(
        lambda e: (
            e["args"].update({"In split size": json.dumps([1] * 200_000)})
            if "Group size" in e["args"]
            else None
        )
    ),
    0,
)
events_case("steps overlap", [*steps(), k.annotation("iteration 7", 500, 1000)], 0)
events_case(
    "steps repeat one number",
    [e | ({"name": "iteration 5"} if "iter" in e["name"] else {}) for e in steps(4)],
    0,
)
events_case(
    "step numbers overflow",
    [e | ({"name": "iteration " + "9" * 5000} if "iter" in e["name"] else {}) for e in steps()],
    0,
)
events_case(
    "steps without work",
    [k.annotation(f"iteration {i}", 5000 + i, 0.5) for i in range(5)],
    0,
    "no-gpu-activity",
)
events_case(
    "ranges open at the end",
    [
        *steps(),
        *(
            {
                "ph": "B",
                "cat": "user_annotation",
                "name": "open",
                "pid": 100,
                "tid": 101,
                "ts": 50 + i,
            }
            for i in range(1000)
        ),
    ],
    0,
)
events_case(
    "ends without a begin",
    [*steps(), *({"ph": "E", "pid": 100, "tid": 101, "ts": 50 + i} for i in range(1000))],
    0,
)
events_case(
    "ranges nest ten thousand deep",
    [*steps(), *(k.annotation("deep", 100 + i / 100, 800 - i / 50) for i in range(10_000))],
    0,
)
events_case("threads are text", changed(put(tid="thread 7 (python)")), 0)
events_case(
    "processes are text",
    changed(lambda e: e.update(pid="Spans") if e["cat"] != "kernel" else None),
    0,
)
events_case(
    "ten thousand threads",
    [*steps(), *(k.operator("op", 100 + i, 1, tid=i) for i in range(10_000))],
    0,
)

# --- metadata -------------------------------------------------------------------------------

for _key in (
    "deviceProperties",
    "distributedInfo",
    "baseTimeNanoseconds",
    "schemaVersion",
    "cuda_runtime_version",
):
    for _name, _value in (
        ("text", "x"),
        ("null", None),
        ("a list of lists", [[[]]]),
        ("huge", 10**40),
    ):
        events_case(f"{_key} is {_name}", steps(), 0, **{_key: _value})
_JOB = k.METADATA["distributedInfo"]
events_case("rank is negative", steps(), 0, distributedInfo=_JOB | {"rank": -3})
events_case("rank beyond the world", steps(), 0, distributedInfo=_JOB | {"rank": 10**12})
events_case(
    "world of a billion ranks",
    steps(),
    0,
    "ranks-missing",
    distributedInfo=_JOB | {"world_size": 10**9},
)
events_case(
    "groups of a million ranks",
    steps(),
    0,
    distributedInfo=_JOB
    | {"pg_config": [{"pg_name": "1", "pg_desc": "EP", "ranks": list(range(10**6))}]},
)
events_case(
    "groups without end",
    steps(),
    0,
    distributedInfo=_JOB | {"pg_config": [{"pg_name": "1"}] * 20_000},
)
events_case("the base time is negative", steps(), 0, baseTimeNanoseconds=-5)
events_case(
    "GPU memory is negative",
    steps(),
    0,
    deviceProperties=[{"id": 0, "totalGlobalMem": -1, "numSms": -1}],
)

# --- names ----------------------------------------------------------------------------------

HOSTILE_NAMES = {
    "10 MB": "x" * 10_000_000,
    "10 MB of brackets": "<" * 5_000_000 + ">" * 5_000_000,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\u2028",
    "right to left": "\u202egnp.exe\u2066\u200f\u061c",
    "ANSI": "\x1b[2J\x1b]0;title\x07\x1b[31mred\x9b1m",
    "markup": "</script><img src=x onerror=alert(1)>\"'`|&amp;",
    "workflow commands": "::error::x%0A##[error]\n::set-output name=a::b",
    "zero width": "a\u200b\ufeff\u00ad" * 1000,
    "many templates": "f<" * 3000 + ">" * 3000,
    "backtracking": "a" * 5000 + "!" + "(" * 5000,
    "nothing": "",
    "spaces": " " * 5000,
    "formulas": "=cmd|'/c calc'!A1",
    "templates": "{{7*7}}{%for%}${jndi:ldap://x}",
}
for _name, _text in HOSTILE_NAMES.items():
    events_case(f"kernel names are {_name}", changed(only("kernel", name=_text)), 0)
    if len(_text) < 1_000_000:
        events_case(f"annotations are {_name}", [*steps(), k.annotation(_text, 120, 600)], 0)
        events_case(
            f"groups are named {_name}",
            changed(
                lambda e, t=_text: (
                    e["args"].update({"Process Group Description": t, "Process Group Name": t})
                    if "Group size" in e["args"]
                    else None
                )
            ),
            0,
        )
    nsys_case(
        f"names are {_name}",
        lambda x, t=_text: (
            x.kernel(5_000, 6_000, t.replace("\0", ""), 0),
            x.range(1_100, 2_000, t.replace("\0", "")),
        ),
        0,
    )

# --- SQLite ---------------------------------------------------------------------------------

bytes_case("only the magic", lambda b: b[:16], 2)
bytes_case("only the header", lambda b: b[:100], 2)
for _part in range(1, 10):
    bytes_case(f"cut at {_part} tenths", lambda b, p=_part: b[: len(b) * p // 10])
for _page in (1, 2, 3):
    bytes_case(f"cut after page {_page}", lambda b, p=_page: b[: 4096 * p])
bytes_case("the last byte is missing", lambda b: b[:-1], 0, "truncated-file")
bytes_case("a wrong page size", lambda b: b[:16] + b"\x00\x03" + b[18:], 2)
bytes_case("a later file format", lambda b: b[:18] + b"\x09\x09" + b[20:], 2)
bytes_case("a wrong text encoding", lambda b: b[:56] + b"\0\0\0\x09" + b[60:])
bytes_case("UTF-16 named in the header", lambda b: b[:56] + b"\0\0\0\x02" + b[60:])
bytes_case("write-ahead mode without a log", lambda b: b[:18] + b"\x02\x02" + b[20:], 0)
bytes_case("zeros from the second page on", lambda b: b[:4096] + bytes(len(b) - 4096))
bytes_case("a schema of zeros", lambda b: b[:100] + bytes(3996) + b[4096:], 2)
for _seed in range(12):

    def _damaged(content: bytes, seed: int = _seed) -> bytes:
        dice, data = random.Random(seed), bytearray(content)
        for _ in range(1 + seed * 20):
            data[dice.randrange(100 if seed % 2 else 4096, len(data))] = dice.randrange(256)
        return bytes(data)

    bytes_case(f"random damage {_seed}", _damaged)


def _cycle(content: bytes) -> bytes:
    """Every page of rows becomes an inner page whose children are itself: rows without end."""
    data = bytearray(content)
    for at in range(4096, len(data), 4096):
        if data[at] != 0x0D:
            continue
        page = at // 4096 + 1
        cells = 300
        data[at : at + 12] = struct.pack(">BHHHBI", 0x05, 0, cells, 4096 - 5 * cells, 0, page)
        for index in range(cells):
            cell = 4096 - 5 * (index + 1)
            data[at + 12 + 2 * index : at + 14 + 2 * index] = struct.pack(">H", cell)
            data[at + cell : at + cell + 5] = struct.pack(">IB", page, index % 100)
    return bytes(data)


def _widened(content: bytes) -> bytes:
    """A table whose inner pages all point to one page of rows, again and again."""
    data = bytearray(content)
    leaf = next(
        at // 4096 + 1
        for at in range(len(data) - 4096, 0, -4096)
        if data[at] == 0x0D and struct.unpack(">H", data[at + 3 : at + 5])[0] > 1
    )
    child = leaf
    for _ in range(6):
        page = bytearray(4096)
        cells = 400
        page[0:12] = struct.pack(">BHHHBI", 0x05, 0, cells, 4096 - 5 * cells, 0, child)
        for index in range(cells):
            cell = 4096 - 5 * (index + 1)
            page[12 + 2 * index : 14 + 2 * index] = struct.pack(">H", cell)
            page[cell : cell + 5] = struct.pack(">IB", child, 100)
        data += page
        child = len(data) // 4096
    data[28:32] = struct.pack(">I", len(data) // 4096)
    return bytes(data)


bytes_case("pages that hold themselves", _cycle)


def _endless(folder: Path) -> list[str]:
    path = two_steps().write(folder / "run.sqlite")
    path.write_bytes(_widened(path.read_bytes()))
    pages = path.stat().st_size // 4096
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute(
            "UPDATE sqlite_master SET rootpage=? WHERE name='CUPTI_ACTIVITY_KIND_KERNEL'", (pages,)
        )
        database.commit()
    return [str(path)]


case("nsys: rows without end", _endless)

for _schema in GENERATIONS:
    nsys_case(
        f"no kernel table, schema {_schema}",
        lambda x: x.rows.pop("CUPTI_ACTIVITY_KIND_KERNEL"),
        0,
        schema=_schema,
    )
for _table in (
    "StringIds", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS", "META_DATA_EXPORT",
    "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_KERNEL",
):  # fmt: skip
    if _table != "CUPTI_ACTIVITY_KIND_KERNEL":
        nsys_case(f"no table {_table}", lambda x, t=_table: setattr(x, "skip", frozenset({t})), 0)
    sql_case(f"{_table} without rows", f"DELETE FROM {_table}", 0)
    sql_case(
        f"{_table} is a view",
        f"ALTER TABLE {_table} RENAME TO old; CREATE VIEW {_table} AS SELECT * FROM old",
    )
    sql_case(
        f"{_table} has one unknown column",
        f"DROP TABLE {_table}; CREATE TABLE {_table} (x); INSERT INTO {_table} VALUES (1)",
    )
for _column in (
    "start",
    "end",
    "deviceId",
    "streamId",
    "correlationId",
    "globalPid",
    "shortName",
    "demangledName",
    "gridX",
    "graphNodeId",
):
    _table = "CUPTI_ACTIVITY_KIND_KERNEL"
    sql_case(f"kernels without {_column}", f'ALTER TABLE {_table} DROP COLUMN "{_column}"')
    sql_case(
        f"kernels with {_column} renamed",
        f'ALTER TABLE {_table} RENAME COLUMN "{_column}" TO "{_column}2"',
    )
    sql_case(f"kernels with {_column} NULL", f'UPDATE {_table} SET "{_column}"=NULL')
    sql_case(f"kernels with {_column} as text", f"UPDATE {_table} SET \"{_column}\"='abc'")
    sql_case(f"kernels with {_column} as a blob", f"UPDATE {_table} SET \"{_column}\"=x'00ff80'")
    sql_case(f"kernels with {_column} as a fraction", f'UPDATE {_table} SET "{_column}"=1.5e300')
for _table in (
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    "NVTX_EVENTS",
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "StringIds",
):
    _columns = NsysExport().columns(_table)
    sql_case(
        f"{_table} all NULL", f"UPDATE {_table} SET " + ", ".join(f'"{c}"=NULL' for c in _columns)
    )
    sql_case(
        f"{_table} all at the end of 64 bits",
        f"UPDATE {_table} SET " + ", ".join(f'"{c}"={INT64_MAX}' for c in _columns),
    )
    sql_case(
        f"{_table} all negative",
        f"UPDATE {_table} SET " + ", ".join(f'"{c}"=-{INT64_MAX}-1' for c in _columns),
    )
_KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
sql_case("kernels end before they start", f'UPDATE {_KERNEL} SET "end"=start-100', 0)
sql_case("kernels of no length", f'UPDATE {_KERNEL} SET "end"=start', 0)
sql_case("kernel times are negative", f'UPDATE {_KERNEL} SET start=-start, "end"=-start+50')
sql_case("kernel times overflow", f'UPDATE {_KERNEL} SET start={INT64_MAX - 5}, "end"={INT64_MAX}')
sql_case("kernels span all of time", f'UPDATE {_KERNEL} SET start=-{INT64_MAX}, "end"={INT64_MAX}')
sql_case(
    "all times are zero",
    "".join(
        f'UPDATE {t} SET start=0, "end"=0;'
        for t in (_KERNEL, "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS")
    ),
)
sql_case(
    "a clock jump of a century",
    f'UPDATE {_KERNEL} SET start=start+3000000000000000000, "end"="end"+3000000000000000000 WHERE rowid=2',
)
sql_case(
    "one correlation id for all",
    f"UPDATE {_KERNEL} SET correlationId=1; UPDATE CUPTI_ACTIVITY_KIND_RUNTIME SET correlationId=1",
    0,
)
sql_case("ids of no string", f"UPDATE {_KERNEL} SET shortName=12345, demangledName=12345", 0)
sql_case("every string has one id", "UPDATE StringIds SET id=1", 0)
sql_case("strings that are no UTF-8", "UPDATE StringIds SET value=CAST(x'fffe80' AS TEXT)", 0)
sql_case(
    "a generated column",
    f"ALTER TABLE {_KERNEL} ADD COLUMN deviceOrdinal AS (length(zeroblob(900000000)))",
    0,
)
sql_case(
    "start is generated",
    f"ALTER TABLE {_KERNEL} DROP COLUMN start; ALTER TABLE {_KERNEL} ADD COLUMN start AS (length(hex(zeroblob(400000000))))",
)
sql_case(
    "a table without row ids",
    "CREATE TABLE n2 (id INTEGER PRIMARY KEY, value TEXT) WITHOUT ROWID; INSERT INTO n2 SELECT id, value FROM StringIds; DROP TABLE StringIds; ALTER TABLE n2 RENAME TO StringIds",
    0,
)
sql_case(
    "row ids at both ends",
    "UPDATE NVTX_EVENTS SET rowid=9223372036854775806 WHERE rowid=(SELECT max(rowid) FROM NVTX_EVENTS); UPDATE NVTX_EVENTS SET rowid=-9223372036854775807 WHERE rowid=(SELECT min(rowid) FROM NVTX_EVENTS)",
    0,
)
sql_case(
    "a trigger on the kernels",
    f"CREATE TRIGGER t AFTER INSERT ON {_KERNEL} BEGIN DELETE FROM {_KERNEL}; END",
    0,
)
sql_case("quotes in a table's name", 'CREATE TABLE "a""b\'; DROP TABLE x" ("c""d")', 0)
sql_case("a thousand tables", "".join(f"CREATE TABLE t{i} (a);" for i in range(1000)), 0)
sql_case("a virtual table", "CREATE VIRTUAL TABLE NVTX_TEXT USING fts5(a)", 0)
sql_case(
    "no tables",
    "".join(
        f"DROP TABLE IF EXISTS {t};"
        for t in (
            "StringIds",
            "NVTX_EVENTS",
            "META_DATA_EXPORT",
            _KERNEL,
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            "CUPTI_ACTIVITY_KIND_MEMCPY",
            "CUPTI_ACTIVITY_KIND_MEMSET",
        )
    ),
    2,
)
sql_case(
    "header tables only",
    "".join(
        f"DELETE FROM {t};"
        for t in (
            "NVTX_EVENTS",
            _KERNEL,
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            "CUPTI_ACTIVITY_KIND_MEMCPY",
            "CUPTI_ACTIVITY_KIND_MEMSET",
        )
    ),
    0,
    "no-gpu-activity",
)
nsys_case(
    "ranges open at the end", lambda x: [x.range(500 + i, None, "open") for i in range(2000)], 0
)
nsys_case(
    "ranges that cross",
    lambda x: [x.range(1_000 + i * 10, 8_000 + i * 7, f"r{i}") for i in range(500)],
    0,
)
nsys_case(
    "payloads that are noise",
    lambda x: [
        x.nccl(1_200, 1_900, "ncclAllToAll", random.Random(i).randbytes(i)) for i in range(200)
    ],
    0,
)
nsys_case(
    "ten thousand processes",
    lambda x: [x.kernel(1_000 + i, 1_001 + i, pid=i) for i in range(1, 10_000)],
)


def _foreign(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "other.sqlite")) as database:
        database.execute("CREATE TABLE cookies (host, value)")
        database.commit()
    return [str(folder / "other.sqlite")]


case("nsys: a browser's database", _foreign, 2, says="not an Nsight Systems export")

# --- files and folders ----------------------------------------------------------------------


def _two_jobs(folder: Path) -> list[str]:
    two_steps(pid=10).write(folder / "a.sqlite")
    other = two_steps(pid=99)
    other.kernel(50_000, 60_000, "other_job", pid=99)
    other.write(folder / "b.sqlite")
    return [str(folder)]


def _mixed(folder: Path) -> list[str]:
    two_steps().write(folder / "a.sqlite")
    (folder / "b.json").write_bytes(TORCH)
    return [str(folder)]


def _ranks(numbers: list[int], world: int = 4) -> Build:
    def build(folder: Path) -> list[str]:
        for place, number in enumerate(numbers):
            job = _JOB | {"rank": number, "world_size": world}
            content = json.dumps({**k.METADATA, "distributedInfo": job, "traceEvents": steps()})
            (folder / f"{place}.json").write_text(content)
        return [str(folder)]

    return build


def _worlds(folder: Path) -> list[str]:
    for place, world in enumerate((2, 8)):
        job = _JOB | {"rank": place, "world_size": world}
        content = json.dumps(
            {**k.METADATA, "distributedInfo": job, "traceEvents": steps(2 + place)}
        )
        (folder / f"{place}.json").write_text(content)
    return [str(folder)]


def _links(folder: Path) -> list[str]:
    (folder / "a").mkdir()
    (folder / "trace.json").write_bytes(TORCH)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "self").symlink_to("self")
    (folder / "a" / "gone.json").symlink_to(folder / "nowhere")
    (folder / "again.json").symlink_to(folder / "trace.json")
    return [str(folder)]


def _self_link(folder: Path) -> list[str]:
    (folder / "loop.json").symlink_to("loop.json")
    return [str(folder / "loop.json")]


def _fifo(folder: Path) -> list[str]:
    os.mkfifo(folder / "pipe.json")
    return [str(folder / "pipe.json")]


def _fifo_in_folder(folder: Path) -> list[str]:
    os.mkfifo(folder / "pipe.json")
    (folder / "trace.json").write_bytes(TORCH)
    return [str(folder)]


def _one_broken(folder: Path) -> list[str]:
    _ranks([0, 1])(folder)
    (folder / "2.json").write_bytes(b'{"traceEvents": [')
    return [str(folder)]


def _nine_one_broken(folder: Path) -> list[str]:
    _ranks([0, 1, 2], 4)(folder)
    (folder / "9.json").write_bytes(TORCH[: TORCH.index(b'"ph"')])
    return [str(folder)]


def _odd_name(name: str | bytes) -> Build:
    def build(folder: Path) -> list[str]:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(TORCH)
        return [os.fsdecode(path)]

    return build


def _hot_wal(folder: Path) -> list[str]:
    made = folder.parent / (folder.name + "-making")
    made.mkdir()
    path = two_steps().write(made / "run.sqlite")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("INSERT INTO StringIds VALUES (9999, 'late')")
        database.commit()
        shutil.copy(path, folder / "run.sqlite")
        shutil.copy(f"{path}-wal", folder / "run.sqlite-wal")
    return [str(folder / "run.sqlite")]


def _bad_wal(folder: Path) -> list[str]:
    _hot_wal(folder)
    (folder / "run.sqlite-wal").write_bytes(random.Random(3).randbytes(9000))
    return [str(folder / "run.sqlite")]


def _hot_journal(folder: Path) -> list[str]:
    made = folder.parent / (folder.name + "-making")
    made.mkdir()
    path = two_steps().write(made / "run.sqlite")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA cache_size=1")
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO StringIds VALUES (?, ?)", ((i, "x" * 2000) for i in range(5000, 5200))
        )
        shutil.copy(path, folder / "run.sqlite")
        shutil.copy(f"{path}-journal", folder / "run.sqlite-journal")
        database.execute("ROLLBACK")
    return [str(folder / "run.sqlite")]


def _bad_journal(folder: Path) -> list[str]:
    two_steps().write(folder / "run.sqlite")
    (folder / "run.sqlite-journal").write_bytes(random.Random(3).randbytes(9000))
    return [str(folder / "run.sqlite")]


def _stray_parquet(folder: Path) -> list[str]:
    (folder / "run_pqtdir").mkdir()
    (folder / "run_pqtdir" / f"{_KERNEL}.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    return [str(folder / "run_pqtdir")]


def _parquet(change: Callable[[Any], Any], cut: int | None = None) -> Build:
    def build(folder: Path) -> list[str]:
        import polars as pl

        place = folder / "run_pqtdir"
        place.mkdir()
        for table, (columns, rows) in two_steps().tables().items():
            frame = pl.DataFrame(
                rows, schema=columns, orient="row", infer_schema_length=None, strict=False
            )
            frame = change(frame) if table == _KERNEL else frame
            frame.write_parquet(place / f"{table}.parquet")
        if cut is not None:
            at = place / f"{_KERNEL}.parquet"
            at.write_bytes(at.read_bytes()[:cut])
        return [str(place)]

    return build


case("files: two jobs in one folder", _two_jobs, 0, "ranks-renumbered")
case("files: both profilers in one folder", _mixed, 2, says="one profiler")
case("files: ranks missing", _ranks([0, 3]), 0, "ranks-missing")
case("files: a rank twice", _ranks([0, 1, 1]), 0, "duplicate-rank")
case("files: every rank is 0", _ranks([0, 0, 0, 0]), 0, "duplicate-rank")
case("files: ranks of two worlds", _worlds, 0)
case("files: links that go in circles", _links, 0)
case("files: a link to itself", _self_link, 2)
case("files: a pipe", _fifo, 2, says="not a regular file")
case("files: a pipe in a folder", _fifo_in_folder, 0)
case("files: one rank without events", _one_broken)
case("files: one rank cut short", _nine_one_broken)
case("files: a device", lambda _: ["/dev/zero"], 2, says="not a regular file")
case("files: nothing there", lambda folder: [str(folder / "none.json")], 2, says="no such file")
case("files: an empty folder", lambda folder: [str(folder)], 2, says="no trace")
case(
    "files: a pattern that matches nothing",
    lambda folder: [str(folder / "*.json")],
    2,
    says="matches no file",
)
case("files: a name too long", lambda folder: [str(folder / ("x" * 5000))], 2)
case("files: a name with a zero byte", lambda folder: [str(folder) + "/a\0b"], 2)
case("files: an empty name", lambda _: [""], None)
case("files: a name of ANSI codes", _odd_name("\x1b[2Ja\x07.json"), 0)
case("files: a name of line breaks", _odd_name("a\n::error::b.json"), 0)
case("files: a name right to left", _odd_name("\u202enosj.json"), 0)
case("files: a name that is no UTF-8", _odd_name(b"\xff\xfe.json"), 0)
case("files: a name of markup", _odd_name("<img src=x onerror=alert(1)>.json"), 0)
case("files: a name like an option", _odd_name("--help.json"), 0)
case("files: a hot write-ahead log", _hot_wal, 0)
case("files: a damaged write-ahead log", _bad_wal)
case("files: a hot journal", _hot_journal)
case("files: a damaged journal", _bad_journal)
case("files: a parquet folder of noise", _stray_parquet, 2)
case("files: parquet kernels cut", _parquet(lambda f: f, 200))
case(
    "files: parquet times as text",
    _parquet(lambda f: f.with_columns(start=f["start"].cast(str))),
    0,
)
case(
    "files: parquet times as words",
    _parquet(lambda f: f.with_columns(start="x" + f["start"].cast(str))),
)
case(
    "files: parquet times as lists",
    _parquet(
        lambda f: f.with_columns(
            start=f.select(start=f["start"].reshape((-1, 1)).arr.to_list())["start"]
        )
    ),
)
case(
    "files: parquet names as lists",
    _parquet(lambda f: f.with_columns(shortName=f["shortName"].reshape((-1, 1)).arr.to_list())),
)
case("files: parquet without kernels' times", _parquet(lambda f: f.drop("start", "end")))
case(
    "files: a truncated report",
    lambda folder: [
        _write(folder / "a.nsys-rep", b"NVIDIA Tegra Profiler Report 2025@3@2" + b"\0" * 90),
        "--nsys",
        "/bin/false",
    ],
    2,
    says="nsys export failed",
)
case(
    "files: a report and no nsys",
    lambda folder: [
        _write(folder / "a.nsys-rep", b"NVIDIA Tegra Profiler Report 2025@3@2" + b"\0" * 90),
        "--nsys",
        "/none/nsys",
    ],
    2,
    says="not a program",
)


def _write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# --- configurations, rules, taxonomies, logs ------------------------------------------------

_BILLION = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
TEXTS: dict[str, bytes] = {
    "Python tags": b"a: !!python/object/apply:os.system ['touch pwned']\n",
    "Python names": b"a: !!python/name:os.system\n",
    "own tags": b"!moe {a: !x 1}\n",
    "a billion laughs": _BILLION.encode(),
    "an anchor to itself": b"a: &a [*a]\n",
    "a mapping to itself": b"&a {b: *a, pattern: *a}\n",
    "deep nesting": b"[" * 20_000,
    "deep mappings": b"{a: " * 5_000,
    "many documents": b"---\na: 1\n" * 100,
    "merge keys": b"a: &a {<<: {b: 1}}\nc: {<<: [*a, *a]}\n",
    "zero bytes": b"\0\0\0\0",
    "no UTF-8": b"\xff\xfe\x80a: 1\n",
    "UTF-16": "a: 1\n".encode("utf-16"),
    "random bytes": random.Random(5).randbytes(3000),
    "nothing": b"",
    "a list": b"- 1\n- 2\n",
    "a number": b"42\n",
    "not a number": b".nan\n",
    "a huge number": b"expert_model_parallel_size: 1" + b"0" * 5000 + b"\n",
    "a key of 1 MB": b"x" * 1_000_000 + b": 1\n",
    "keys that are lists": b"? [a, b]\n: 1\n",
    "dates": b"expert_model_parallel_size: 2024-01-01 25:99:99\n",
    "a bad date": b"expert_model_parallel_size: 2024-99-99\n",
    "tabs": b"\ta:\t1\n",
    "an unknown alias": b"a: *b\n",
    "ANSI": b"a: \x1b[2J\n",
    "environment names": b"a: ${HOME} $(id) `id`\n",
    "a path": b"a: /etc/passwd\ninclude: !include /etc/passwd\n",
}


def _with_text(option: str, content: bytes) -> Build:
    def build(folder: Path) -> list[str]:
        path = folder / "trace.json"
        path.write_bytes(TORCH)
        other = folder.parent / (folder.name + "-options")
        other.mkdir()
        name = {"--log": "train.log"}.get(option, "own.yaml")
        (other / name).write_bytes(content)
        given = other if option == "--rules" else other / name
        return [str(path), option, str(given)]

    return build


for _option in ("--config", "--rules", "--taxonomy", "--log"):
    for _name, _content in TEXTS.items():
        case(f"{_option}: {_name}", _with_text(_option, _content))
case(
    "--taxonomy: a slow pattern",
    _with_text("--taxonomy", b"kernels:\n- {id: a, pattern: '(a+)+$', nature: gemm}\n"),
    None,
)
case(
    "--taxonomy: a bad pattern",
    _with_text("--taxonomy", b"kernels:\n- {id: a, pattern: '(', nature: gemm}\n"),
    2,
    says="bad pattern",
)
case("--config: a folder", lambda f: [_write(f / "t.json", TORCH), "--config", str(f)], 2)
case(
    "--config: nothing there",
    lambda f: [_write(f / "t.json", TORCH), "--config", str(f / "none")],
    2,
)
case("--config: a device", lambda f: [_write(f / "t.json", TORCH), "--config", "/dev/zero"], 2)
case("--log: a device", lambda f: [_write(f / "t.json", TORCH), "--log", "/dev/zero"], 2)
case("--log: a folder", lambda f: [_write(f / "t.json", TORCH), "--log", str(f)], 2)
case("--taxonomy: a device", lambda f: [_write(f / "t.json", TORCH), "--taxonomy", "/dev/zero"], 2)
case(
    "--rules: a file that is none",
    lambda f: [_write(f / "t.json", TORCH), "--rules", "/dev/zero"],
    2,
)
case("--set: no value", lambda f: [_write(f / "t.json", TORCH), "--set", "ep"], 2)
case("--set: a tag", lambda f: [_write(f / "t.json", TORCH), "--set", "ep=!!python/name:os.system"])
case(
    "--set: a number without end",
    lambda f: [_write(f / "t.json", TORCH), "--set", "expert_model_parallel_size=" + "9" * 5000],
)
case(
    "--set: not a number",
    lambda f: [_write(f / "t.json", TORCH), "--set", "expert_model_parallel_size=nan"],
)
case("--steps: backwards", lambda f: [_write(f / "t.json", TORCH), "--steps", "5:2"])
case("--steps: without end", lambda f: [_write(f / "t.json", TORCH), "--steps", "0:" + "9" * 5000])
case("--steps: words", lambda f: [_write(f / "t.json", TORCH), "--steps", "all"], 2)
case("--step-pattern: bad", lambda f: [_write(f / "t.json", TORCH), "--step-pattern", "("], 2)
case("--step-pattern: matches all", lambda f: [_write(f / "t.json", TORCH), "--step-pattern", ""])
case(
    "--fail-on: deep",
    lambda f: [_write(f / "t.json", TORCH), "--fail-on", "(" * 1000 + "1" + ")" * 1000],
    2,
)
case(
    "--fail-on: long",
    lambda f: [_write(f / "t.json", TORCH), "--fail-on", "1+" * 50_000 + "1 > 0"],
    2,
)
case(
    "--fail-on: nested macros",
    lambda f: [
        _write(f / "t.json", TORCH),
        "--fail-on",
        "[1,2].all(a,[1,2].all(b,[1,2].all(c,[1].all(d,true))))",
    ],
    2,
)
