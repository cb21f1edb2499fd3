#!/usr/bin/env python3
"""Grow a real profiler trace into a big one, to test speed, memory and scale.

The copies follow each other in time like further training steps: times, correlation ids and step
numbers go on, so a grown trace is a valid trace of a longer run. The same input and options give
the same output. Only the standard library is used.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import random
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

EXAMPLES = """
examples:
  # 80 times the work of a Nsight Systems export (6.7 MB become about 450 MB)
  make_big_trace.py nsys mcore_alltoall.sqlite.xz big.sqlite --repeat 80

  # a Kineto trace of one million events
  make_big_trace.py kineto mcore_alltoall.rank0.json.gz big.json.gz --repeat 10

  # 64 small ranks, one step each, made from the two real ones
  make_big_trace.py ranks base.rank0.json.gz base.rank1.json.gz ranks64 --ranks 64 --steps 1
"""

STEP_NAME = re.compile(r"(?i)^(iteration[ _#]?|step[ _#]?|ProfilerStep#)(\d+)$")
GAP_NS = 20_000  # pause between two copies, when the trace itself shows no pause between its steps


class TraceError(Exception):
    """The input is not a trace that this tool can grow."""


@dataclass(frozen=True)
class Step:
    """One annotated training step in host time."""

    number: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Window:
    """The part of a trace that is repeated: whole steps, in host time."""

    start_ns: int
    end_ns: int
    steps: int

    def holds(self, time_ns: int) -> bool:
        return self.start_ns <= time_ns < self.end_ns


def window_of(steps: list[Step], keep: int | None = None) -> Window:
    """The window over all steps, or over the first `keep` of them."""
    if not steps:
        raise TraceError("no annotated steps (iterationN, step N or ProfilerStep#N) to repeat")
    numbers = sorted({step.number for step in steps})[:keep]
    chosen = [step for step in steps if step.number in numbers]
    end = max(step.end_ns for step in chosen)
    later = [step.start_ns for step in steps if step.number > numbers[-1]]
    return Window(min(step.start_ns for step in chosen), min([end, *later]), len(numbers))


def copy_period_ns(steps: list[Step], window: Window, gpu_span_ns: int) -> int:
    """The time from one copy to the next, in whole microseconds.

    It is the trace's own pace, but never so short that two copies overlap on the GPU.
    """
    starts: dict[int, int] = {}
    for step in steps:
        starts[step.number] = min(step.start_ns, starts.get(step.number, step.start_ns))
    ordered = [starts[number] for number in sorted(starts)]
    paces = [after - before for before, after in itertools.pairwise(ordered)]
    pace = int(statistics.median(paces)) * window.steps if paces else 0
    period = max(pace, gpu_span_ns + GAP_NS, window.end_ns - window.start_ns + GAP_NS)
    return -(-period // 1000) * 1000


# ------------------------------------------------------------------------------ files in and out


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The path of the plain file behind `path`, which may be xz or gzip compressed."""
    openers: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open}
    if path.suffix not in openers:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with openers[path.suffix](path, "rb") as packed, plain.open("wb") as out:
            shutil.copyfileobj(packed, out)
        yield plain


@contextlib.contextmanager
def text_writer(path: Path) -> Iterator[TextIO]:
    """A text stream to `path`, gzip compressed if its name ends in .gz (no time stamp inside)."""
    if path.suffix != ".gz":
        with path.open("w", encoding="utf-8", newline="\n") as out:
            yield out
        return
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as out:
            yield out


# ------------------------------------------------------------------------------- Nsight Systems

PID_MASK = ~0xFFFFFF  # a globalTid without its thread bits is the globalPid
TIME_COLUMNS = {"start", "end", "timestamp", "rawTimestamp"}
ID_COLUMNS = {"correlationId", "eventSyncId", "gridId", "rangeId"}
NO_ID = (0, 0xFFFFFFFF)  # "no event": stays as it is
KEPT_ONCE = {"DIAGNOSTIC_EVENT", "StringIds"}  # messages about the capture, not events of the run


def grow_nsys(source: Path, target: Path, repeat: int) -> dict[str, int]:
    """Write `target`, an export with the steps of `source` `repeat` times. Returns row counts."""
    with unpacked(source) as plain:
        shutil.copyfile(plain, target)
        try:
            with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = OFF")
                db.execute("PRAGMA synchronous = OFF")
                db.execute("PRAGMA temp_store = MEMORY")
                db.execute("ATTACH ? AS origin", (str(plain),))
                return _NsysGrower(db, repeat).run()
        except BaseException:
            target.unlink()  # without a journal, what is there is of no use
            raise


class _NsysGrower:
    """Repeats the rows of `origin` inside `main`, a copy of it."""

    def __init__(self, db: sqlite3.Connection, repeat: int) -> None:
        self.db = db
        self.repeat = repeat
        self.columns = {name: self._columns(name) for name in self._objects("table")}
        steps = self._steps()
        self.window = window_of(steps)
        self._mark_repeated_calls()
        self.period = copy_period_ns(steps, self.window, self._gpu_span_ns())
        self.stride = 1 + self._largest_id()
        self.db.create_function("step_text", 2, self._step_text, deterministic=True)
        self.db.create_function("step_text_id", 2, self._step_text_id, deterministic=True)

    def run(self) -> dict[str, int]:
        self.db.execute("BEGIN")
        self.text_ids = self._register_step_names()
        indices = self._objects("index")
        for name in indices:
            self.db.execute(f'DROP INDEX "{name}"')
        for table in self.columns:
            if self._condition(table):
                self._move_tail(table)
                for copy in range(1, self.repeat):
                    self._add_copy(table, copy)
        for sql in indices.values():
            self.db.execute(sql)
        self._extend_capture()
        self.db.execute("COMMIT")
        return {name: self._scalar(f'SELECT count(*) FROM main."{name}"') for name in self.columns}

    def _objects(self, kind: str) -> dict[str, str]:
        """Name and SQL of the tables or of the indices that a user made."""
        return dict(
            self.db.execute(
                "SELECT name, sql FROM origin.sqlite_master"
                " WHERE type = ? AND sql IS NOT NULL AND name NOT LIKE 'sqlite_%'",
                (kind,),
            )
        )

    def _columns(self, table: str) -> dict[str, bool]:
        """The columns of a table, and whether each one is its primary key."""
        rows = self.db.execute(f'PRAGMA origin.table_info("{table}")').fetchall()
        return {row[1]: bool(row[5]) for row in rows}

    def _scalar(self, sql: str, *values: object) -> int:
        return self.db.execute(sql, values).fetchone()[0] or 0

    def _steps(self) -> list[Step]:
        if "NVTX_EVENTS" not in self.columns:
            return []
        rows = self.db.execute(
            "SELECT coalesce(n.text, s.value), n.start, n.end FROM origin.NVTX_EVENTS n"
            " LEFT JOIN origin.StringIds s ON s.id = n.textId WHERE n.end IS NOT NULL"
        )
        found = ((STEP_NAME.match(name or ""), start, end) for name, start, end in rows)
        return [Step(int(match[2]), start, end) for match, start, end in found if match]

    def _mark_repeated_calls(self) -> None:
        """Keep the process and correlation id of each CUDA call that started in the window."""
        self.db.execute("CREATE TEMP TABLE calls (pid, id, PRIMARY KEY (pid, id)) WITHOUT ROWID")
        self.db.execute(
            f"INSERT OR IGNORE INTO calls SELECT globalTid & {PID_MASK}, correlationId"
            " FROM origin.CUPTI_ACTIVITY_KIND_RUNTIME"
            " WHERE correlationId IS NOT NULL AND start >= ? AND start < ?",
            (self.window.start_ns, self.window.end_ns),
        )

    def _condition(self, table: str) -> str | None:
        """The SQL condition for rows to repeat; None for tables without events."""
        columns = self.columns[table]
        time = next((name for name in ("start", "timestamp") if name in columns), None)
        if table in KEPT_ONCE:
            return None
        if {"correlationId", "globalPid"} <= columns.keys():
            launched = f"(globalPid & {PID_MASK}, correlationId) IN temp.calls"
            return f"{launched} AND {time} >= {self.window.start_ns}" if time else launched
        if time is None:
            return None
        return f"{time} >= {self.window.start_ns} AND {time} < {self.window.end_ns}"

    def _gpu_span_ns(self) -> int:
        span = 0
        for table in self.columns:
            if table.startswith("CUPTI_ACTIVITY_KIND") and "streamId" in self.columns[table]:
                if "end" in self.columns[table]:
                    span_sql = f'SELECT max("end") - {self.window.start_ns} FROM origin."{table}"'
                    span = max(span, self._scalar(f"{span_sql} WHERE {self._condition(table)}"))
        first = self._scalar(
            "SELECT min(start) FROM origin.CUPTI_ACTIVITY_KIND_KERNEL"
            f" WHERE {self._condition('CUPTI_ACTIVITY_KIND_KERNEL')}"
        )
        return span - (first - self.window.start_ns)

    def _largest_id(self) -> int:
        largest = 0
        for table, columns in self.columns.items():
            for column in ID_COLUMNS & columns.keys():
                sql = f'SELECT max("{column}") FROM origin."{table}" WHERE "{column}" < {NO_ID[1]}'
                largest = max(largest, self._scalar(sql))
        return largest

    def _move_tail(self, table: str) -> None:
        """Move what follows the steps (shutdown of the run) behind the last copy."""
        times = [name for name in self.columns[table] if name in TIME_COLUMNS]
        if not times:
            return
        shifts = ", ".join(f'"{name}" = "{name}" + :shift' for name in times)
        self.db.execute(
            f'UPDATE main."{table}" SET {shifts}'
            f" WHERE {times[0]} >= :end AND NOT coalesce({self._condition(table)}, 0)",
            {"shift": (self.repeat - 1) * self.period, "end": self.window.end_ns},
        )

    def _add_copy(self, table: str, copy: int) -> None:
        values = [self._value(table, name, key) for name, key in self.columns[table].items()]
        self.db.execute(
            f'INSERT INTO main."{table}" SELECT {", ".join(values)} FROM origin."{table}"'
            f" WHERE {self._condition(table)} ORDER BY rowid",
            {"copy": copy, "period": self.period, "stride": self.stride},
        )

    def _value(self, table: str, column: str, is_key: bool) -> str:
        """The SQL value of one column in a copied row."""
        quoted = f'"{column}"'
        if column in TIME_COLUMNS:
            return f"{quoted} + :copy * :period"
        if column in ID_COLUMNS:
            later = f"{quoted} + :copy * :stride"
            return f"CASE WHEN {quoted} IN {NO_ID} THEN {quoted} ELSE {later} END"
        if is_key:
            largest = self._scalar(f'SELECT max({quoted}) FROM origin."{table}"')
            return f"{quoted} + :copy * {largest + 1}"
        if table == "NVTX_EVENTS" and column == "text":
            return f"CASE WHEN {quoted} IS NULL THEN NULL ELSE step_text({quoted}, :copy) END"
        if table == "NVTX_EVENTS" and column == "textId":
            return f"CASE WHEN {quoted} IS NULL THEN NULL ELSE step_text_id({quoted}, :copy) END"
        return quoted

    def _step_text(self, text: str, copy: int) -> str:
        match = STEP_NAME.match(text)
        return f"{match[1]}{int(match[2]) + copy * self.window.steps}" if match else text

    def _step_text_id(self, text_id: int, copy: int) -> int:
        return self.text_ids.get((text_id, copy), text_id)

    def _register_step_names(self) -> dict[tuple[int, int], int]:
        """Add the names of further steps to StringIds, for ranges whose name is registered."""
        renamed: dict[tuple[int, int], int] = {}
        strings = self.db.execute("SELECT id, value FROM origin.StringIds").fetchall()
        fresh = 1 + max((row[0] for row in strings), default=0)
        for text_id, text in strings:
            for copy in range(1, self.repeat) if STEP_NAME.match(text or "") else ():
                row = (fresh, self._step_text(text, copy))
                self.db.execute("INSERT INTO main.StringIds (id, value) VALUES (?, ?)", row)
                renamed[text_id, copy] = fresh
                fresh += 1
        return renamed

    def _extend_capture(self) -> None:
        if "ANALYSIS_DETAILS" in self.columns:
            self.db.execute(
                "UPDATE main.ANALYSIS_DETAILS"
                " SET duration = duration + :more, stopTime = stopTime + :more",
                {"more": (self.repeat - 1) * self.period},
            )


# --------------------------------------------------------------------------------------- Kineto

GPU_CATEGORIES = {"kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation", "cuda_sync"}
# The fields of one event's text that change from copy to copy. A quote inside a JSON string is
# escaped, so this never matches inside a name.
FIELD = re.compile(
    r'("ts": )(?P<time>-?\d+(?:\.\d+)?)'
    r'|("(?:correlation|[Ee]xternal id|id|Sequence number|Ev Idx|Record function id|Python id'
    r'|Python parent id|wait_on_cuda_event_record_corr_id)": )(?P<id>\d+)'
    r'|("name": "(?:[Ii]teration[ _#]?|step[ _#]?|ProfilerStep#))(?P<step>\d+)(?=")'
)


@dataclass(frozen=True)
class Event:
    """One trace event: what this tool needs of it, and its text as the profiler wrote it."""

    text: str
    phase: str
    category: str
    name: str
    start_ns: int
    end_ns: int
    correlation: int | None
    external: int | None


@dataclass(frozen=True)
class KinetoTrace:
    """The text before the events, the events, and the text behind them."""

    head: str
    events: list[Event]
    tail: str

    def steps(self) -> list[Step]:
        marks = [e for e in self.events if e.category == "user_annotation" and e.phase == "X"]
        found = [(STEP_NAME.match(e.name), e) for e in marks]
        profiler = [(m, e) for m, e in found if m and m[1] == "ProfilerStep#"]
        chosen = profiler or [(m, e) for m, e in found if m]
        return [Step(int(match[2]), e.start_ns, e.end_ns) for match, e in chosen]


def to_ns(text: str) -> int:
    """Exact nanoseconds of a time in microseconds, as it stands in the JSON text."""
    whole, _, fraction = text.partition(".")
    sign = -1 if whole.startswith("-") else 1
    return int(whole) * 1000 + sign * int((fraction + "000")[:3])


def shifted(text: str, shift_ns: int) -> str:
    """A time in microseconds, later by `shift_ns`, written as it was."""
    time_ns = to_ns(text) + shift_ns
    whole = f"{time_ns // 1000}"
    return f"{whole}.{time_ns % 1000:03d}" if "." in text else whole


def read_kineto(path: Path) -> KinetoTrace:
    with unpacked(path) as plain:
        text = plain.read_text(encoding="utf-8")
    opening = re.search(r'"traceEvents"\s*:\s*\[', text)
    if not opening:
        raise TraceError("no traceEvents list")
    decoder = json.JSONDecoder(parse_float=str)
    position = opening.end()
    events = []
    separator = re.compile(r"[\s,]*")
    while True:
        position = separator.match(text, position).end()
        if text[position] == "]":
            return KinetoTrace(text[: opening.end()], events, text[position:])
        fields, end = decoder.raw_decode(text, position)
        events.append(_event(fields, text[position:end]))
        position = end


def _event(fields: dict, text: str) -> Event:
    args = fields.get("args") or {}
    start = to_ns(str(fields.get("ts", 0)))
    return Event(
        text=text,
        phase=fields.get("ph", ""),
        category=fields.get("cat", ""),
        name=str(fields.get("name", "")),
        start_ns=start,
        end_ns=start + to_ns(str(fields.get("dur", 0))),
        correlation=args.get("correlation", fields.get("id")),
        external=args.get("External id"),
    )


def split_events(
    trace: KinetoTrace, window: Window
) -> tuple[list[Event], list[Event], list[Event]]:
    """Events to write once before the copies, those to repeat, and those to write once behind."""
    calls, operators = set(), set()
    for event in trace.events:
        if event.category in GPU_CATEGORIES or not window.holds(event.start_ns):
            continue
        if event.category in ("cuda_runtime", "cuda_driver"):
            calls.add(event.correlation)
        operators.add(event.external)
    before, repeated, behind = [], [], []
    for event in trace.events:
        if event.phase == "M":
            before.append(event)
        elif event.category == "Trace" or (event.phase == "i" and not event.category):
            behind.append(event)
        elif event.category in GPU_CATEGORIES:
            known = event.correlation in calls or event.external in operators - {None}
            inside = known or (event.correlation is None and window.holds(event.start_ns))
            (repeated if inside else behind).append(event)
        elif event.category == "ac2g":
            (repeated if event.correlation in calls else behind).append(event)
        elif window.holds(event.start_ns):
            repeated.append(event)
        else:
            (before if event.start_ns < window.start_ns else behind).append(event)
    return before, repeated, behind


def grow_kineto(source: Path, target: Path, repeat: int) -> dict[str, int]:
    """Write `target`, a trace with the steps of `source` `repeat` times. Returns event counts."""
    trace = read_kineto(source)
    steps = trace.steps()
    window = window_of(steps)
    before, repeated, behind = split_events(trace, window)
    gpu = [e for e in repeated if e.category in GPU_CATEGORIES and e.phase == "X"]
    gpu_span = max((e.end_ns for e in gpu), default=0) - min((e.start_ns for e in gpu), default=0)
    period = copy_period_ns(steps, window, gpu_span)
    stride = 1 + max(max(e.correlation or 0, e.external or 0) for e in trace.events)

    def texts() -> Iterator[str]:
        yield from (event.text for event in before)
        for copy in range(repeat):
            shift = _shifter(copy * period, copy * stride, copy * window.steps)
            yield from (FIELD.sub(shift, event.text) for event in repeated)
        shift = _shifter((repeat - 1) * period, 0, 0)
        for event in behind:
            if event.category == "Trace":
                yield _longer(event.text, (repeat - 1) * period)
            elif event.name.startswith("Iteration Start"):
                yield event.text
            else:
                yield FIELD.sub(shift, event.text)

    return {"events": _write_kineto(target, trace.head, texts(), trace.tail)}


def _shifter(time_ns: int, ids: int, steps: int) -> Callable[[re.Match], str]:
    """A replacement for FIELD that moves times, ids and step numbers."""

    def replace(match: re.Match) -> str:
        key = match[1] or match[3] or match[5]
        if match["time"]:
            return key + shifted(match["time"], time_ns)
        if match["id"]:
            number = int(match["id"])
            return f"{key}{number + ids if number else 0}"
        return f"{key}{int(match['step']) + steps}"

    return replace


def _longer(text: str, more_ns: int) -> str:
    return re.sub(r'("dur": )([\d.]+)', lambda m: m[1] + shifted(m[2], more_ns), text, count=1)


def _write_kineto(target: Path, head: str, texts: Iterable[str], tail: str) -> int:
    count = 0
    with text_writer(target) as out:
        out.write(head)
        for text in texts:
            out.write(",\n  " if count else "\n  ")
            out.write(text)
            count += 1
        out.write("\n  " + tail)
    return count


# ---------------------------------------------------------------------------------------- ranks

COMMUNICATION = re.compile(r"(?i)nccl|deep_ep|nvshmem|Collective name")


def clone_ranks(
    sources: list[Path],
    target: Path,
    ranks: int,
    keep_steps: int | None,
    wide_groups: str,
    skew_us: float,
    jitter: float,
    seed: int,
) -> dict[str, int]:
    """Write `ranks` traces into the folder `target`, made from the traces of a smaller run.

    Rank r is a copy of source r modulo their number. Process groups keep their size and move to
    their own ranks; those whose description matches `wide_groups` grow to the whole world.
    """
    world = len(sources)
    if ranks % world:
        raise TraceError(f"--ranks {ranks} is not a multiple of the {world} input traces")
    target.mkdir(parents=True, exist_ok=True)
    suffix = ".json.gz" if sources[0].name.endswith(("gz", "xz")) else ".json"
    total = 0
    for local, source in enumerate(sources):
        trace = read_kineto(source)
        window = window_of(trace.steps(), keep_steps)
        before, repeated, behind = split_events(trace, window)
        behind = [event for event in behind if event.category == "Trace" or event.phase == "i"]
        events = before + repeated + (behind if keep_steps is None else [])
        info = _distributed_info(trace)
        for rank in range(local, ranks, world):
            clone = _Clone(info, rank, ranks, world, re.compile(wide_groups), skew_us, jitter, seed)
            head, tail = clone.metadata(trace.head), clone.metadata(trace.tail)
            texts = (clone.event(event) for event in events)
            total += _write_kineto(target / f"rank{rank}{suffix}", head, texts, tail)
    return {"ranks": ranks, "events": total}


def _distributed_info(trace: KinetoTrace) -> dict:
    for text in (trace.head, trace.tail):
        found = re.search(r'"distributedInfo"\s*:\s*', text)
        if found:
            return json.JSONDecoder().raw_decode(text, found.end())[0]
    raise TraceError("no distributedInfo block, so the rank is not known")


class _Clone:
    """Rewrites one rank's trace into the trace of another rank of a larger world."""

    def __init__(
        self,
        info: dict,
        rank: int,
        ranks: int,
        world: int,
        wide: re.Pattern,
        skew_us: float,
        jitter: float,
        seed: int,
    ) -> None:
        self.info, self.rank, self.ranks = info, rank, ranks
        self.replica = rank // world
        self.first = self.replica * world
        self.jitter = jitter
        self.random = random.Random(f"{seed}/{rank}")
        self.skew_ns = round(self.random.uniform(0, skew_us) * 1000)
        self.trace_id = hashlib.sha256(f"{seed}/{rank}".encode()).hexdigest()[:32].upper()
        self.groups = {
            group["pg_name"]: self._group(group, wide, world) for group in info.get("pg_config", [])
        }

    def _group(self, group: dict, wide: re.Pattern, world: int) -> dict:
        """The group as this rank would see it in the larger world."""
        members = group["ranks"]
        members = json.loads(members) if isinstance(members, str) else members
        if len(members) == world and wide.search(group["pg_desc"]):
            return {**group, "pg_size": self.ranks, "ranks": list(range(self.ranks))}
        name = group["pg_name"]
        name = str(int(name) + 1000 * self.replica) if name.isdecimal() else name
        return {**group, "pg_name": name, "ranks": [member + self.first for member in members]}

    def metadata(self, text: str) -> str:
        """The text around the events, with this rank's identity."""
        text = re.sub(r'("trace_id"\s*:\s*)"[^"]*"', rf'\1"{self.trace_id}"', text)
        found = re.search(r'"distributedInfo"\s*:\s*', text)
        if not found:
            return text
        _, end = json.JSONDecoder().raw_decode(text, found.end())
        config = list(self.groups.values())
        info = {**self.info, "rank": self.rank, "world_size": self.ranks, "pg_config": config}
        return text[: found.end()] + json.dumps(info) + text[end:]

    def event(self, event: Event) -> str:
        text = re.sub(r'("ts": )(-?[\d.]+)', self._skewed, event.text, count=1)
        if event.category == "kernel" and not COMMUNICATION.search(event.text):
            # Kernels only get shorter, so that none runs into the next one on its stream.
            faster = self.random.uniform(0, self.jitter) * (event.end_ns - event.start_ns)
            text = _longer(text, -round(faster))
        if '"Process Group Name"' in text:
            text = self._regroup(text)
        return text

    def _skewed(self, match: re.Match) -> str:
        return match[1] + shifted(match[2], self.skew_ns)

    def _regroup(self, text: str) -> str:
        name = re.search(r'"Process Group Name": "([^"]*)"', text)
        group = self.groups.get(name[1])
        if not group:
            return text
        members = group["ranks"]
        # A group of one has an empty list in the trace, and a long list is cut by the profiler.
        shown = ", ".join(map(str, members[:30])) + (", ..." if len(members) > 30 else "")
        replacements = {
            "Process Group Name": f'"{group["pg_name"]}"',
            "Process Group Ranks": f'"[{shown if len(members) > 1 else ""}]"',
            "Group size": f"{group['pg_size']}",
            "Rank": f"{members.index(self.rank) if self.rank in members else 0}",
            "Global rank start": f"{members[0]}",
        }
        for key, value in replacements.items():
            text = re.sub(rf'("{key}": )("[^"]*"|-?\d+)', lambda m, v=value: m[1] + v, text)
        return text


# --------------------------------------------------------------------------------- command line


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="nsys|kineto|ranks")
    for kind, title in (
        ("nsys", "grow a Nsight Systems SQLite export (.sqlite, .sqlite.xz)"),
        ("kineto", "grow a torch profiler trace (.json, .json.gz, .json.xz)"),
    ):
        sub = kinds.add_parser(kind, help=title, description=title)
        sub.add_argument("source", type=Path)
        sub.add_argument("target", type=Path)
        sub.add_argument("--repeat", type=int, required=True, help="times the steps stand in it")
    title = "make a folder of many ranks from the torch profiler traces of a few"
    sub = kinds.add_parser("ranks", help=title, description=title)
    sub.add_argument("sources", type=Path, nargs="+", help="the traces of rank 0, 1, ...")
    sub.add_argument("target", type=Path, help="a folder")
    sub.add_argument("--ranks", type=int, required=True, help="number of ranks to write")
    sub.add_argument("--steps", type=int, help="keep only the first steps (default: all)")
    sub.add_argument(
        "--wide-groups",
        default=r"default_pg|(?<!EXPERT_)\bDATA_PARALLEL",
        help="regular expression: groups that span all ranks (default: %(default)s)",
    )
    sub.add_argument("--skew-us", type=float, default=20.0, help="largest clock shift of a rank")
    sub.add_argument(
        "--jitter", type=float, default=0.02, help="largest share by which a kernel gets faster"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the shifts and shares (default: 0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    try:
        if getattr(options, "repeat", 1) < 1 or getattr(options, "ranks", 1) < 1:
            raise TraceError("--repeat and --ranks take a number from 1 on")
        sources = options.sources if options.kind == "ranks" else [options.source]
        if options.target.resolve() in [source.resolve() for source in sources]:
            raise TraceError("the target is the input itself")
        if options.kind == "nsys":
            counts = grow_nsys(options.source, options.target, options.repeat)
        elif options.kind == "kineto":
            counts = grow_kineto(options.source, options.target, options.repeat)
        else:
            counts = clone_ranks(
                options.sources,
                options.target,
                options.ranks,
                options.steps,
                options.wide_groups,
                options.skew_us,
                options.jitter,
                options.seed,
            )
    except (TraceError, OSError, sqlite3.Error, json.JSONDecodeError) as problem:
        print(f"make_big_trace: {problem}", file=sys.stderr)
        return 2
    for name, count in counts.items():
        if count:
            print(f"{count:>12,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
