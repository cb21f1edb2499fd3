"""Reads a PyTorch profiler (Kineto) trace into the trace tables.

The reader streams: memory grows with the rows that are used, not with the file. Nothing of the
trace's metadata is kept but what `_Metadata` names.
"""

import gc
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.errors import InputError
from moe_advisor.ingest.json_stream import DEFAULT_LIMITS, EventReader, StreamLimits
from moe_advisor.ingest.kineto_collectives import (
    COALESCED,
    WAIT,
    Collective,
    GroupRanks,
    Launch,
    Span,
    from_args,
    is_p2p,
    members,
    recover,
)
from moe_advisor.ingest.kineto_events import (
    GPU_KERNEL,
    GPU_MEMCPY,
    GPU_MEMSET,
    HOST_ANNOTATION,
    HOST_OPERATOR,
    HOST_OVERHEAD,
    HOST_PYTHON,
    Columns,
    CommsCall,
    EventDecoder,
    integer,
    integers,
    text_of,
)
from moe_advisor.model import (
    ACTIVITY_SCHEMA,
    CALL_SCHEMA,
    COLLECTIVE_SCHEMA,
    MATMUL_SCHEMA,
    MEMORY_SCHEMA,
    NONE,
    RANGE_SCHEMA,
    ActivityKind,
    CaptureIssue,
    CopyKind,
    Device,
    InputInfo,
    LoadedInput,
    ProcessGroup,
    RangeKind,
    RankTrace,
    Severity,
)
from moe_advisor.privacy import display_name, gpu_name, safe_text

NAME_LIMIT = 4096
"""Longest kernel or range name kept, in characters; mangled template names reach about 2,000."""

DAY_NS = 86_400 * 10**9
"""A row further than this from the middle of the trace has a broken clock: no capture is so long"""

UNLINKED_SHARE = 0.01
"""Share of GPU rows without a launch call above which host-gap figures suffer visibly."""

EARLY_START_NS = 1_000_000
"""A GPU row this long before its launch call: clock conversion errs by microseconds, not by this"""

EARLY_SHARE = 0.01
"""Share of early GPU rows above which the clocks are reported; single ones are conversion noise."""

MINOR_DEVICE_SHARE = 0.01
"""A device with fewer kernels than this share of the busiest is a helper's, not a rank's."""

MAX_RANKS = 1024
"""Ranks taken from one file; a merged trace of more could not be loaded by any viewer either."""

EPOCH_START_NS = 10**18
"""Times later than this are UTC (2001 or later), earlier ones are relative to some base."""

_HEAD_KEYS = re.compile(
    rb'"(?:traceEvents|deviceProperties|distributedInfo|baseTimeNanoseconds|cupti_version'
    rb'|displayTimeUnit|record_shapes|profile_memory|with_stack|traceName)"\s*:'
)
_EVENT_KEYS = re.compile(rb'"ph"\s*:\s*"')

Ints = NDArray[np.int64]


def sniff(head: bytes) -> bool:
    """Whether `head`, the first kilobytes of a file once unpacked, begin a Chrome trace."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return _HEAD_KEYS.search(text) is not None
    return text.startswith(b"[") and _EVENT_KEYS.search(text) is not None


def load(path: Path, *, limits: StreamLimits = DEFAULT_LIMITS) -> LoadedInput:
    """Reads one trace file. Raises InputError if nothing in it can be read.

    A file usually holds one rank; a merged file gives one rank per process and device.
    """
    columns, decoder = Columns(), EventDecoder()
    reader = EventReader(path, decoder.decode, decoder.rescue, limits)
    with _no_collector():
        for batch in reader:
            columns.offset_us = decoder.offset_us
            columns.add(batch)
        metadata = _Metadata.of(reader.metadata)
        reader.metadata.clear()
        if not columns.categories - {""} and not metadata.known:
            raise InputError(
                f"{display_name(path)}: holds no profiler events: is it a torch profiler trace?"
            )
        ranks = _assemble(columns, metadata, path)
    return LoadedInput(
        info=InputInfo(
            name=display_name(path),
            format="kineto",
            producer=metadata.producer,
            ranks=tuple(rank.rank for rank in ranks),
        ),
        ranks=ranks,
        issues=(*_file_issues(reader, columns), *metadata.issues),
    )


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's cycle collector: nothing here makes cycles, and it costs time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --- metadata -------------------------------------------------------------------------------

_SETTINGS = (
    ("with_stack", "profiler-stacks-on", "Python stacks"),
    ("record_shapes", "profiler-shapes-on", "operator shapes"),
    ("profile_memory", "profiler-memory-on", "memory events"),
    ("with_modules", "profiler-modules-on", "module names"),
)
_VERSION = re.compile(r"[0-9][0-9.]{0,15}")


def _version(value: Any) -> str | None:
    text = text_of(value)
    return text if _VERSION.fullmatch(text) else None


def _cuda_version(value: Any) -> str | None:
    """13000 and "13000" are CUDA 13.0."""
    number = integer(value)
    return f"{number // 1000}.{number % 1000 // 10}" if 1000 <= number < 10**6 else None


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What is taken from the trace's metadata; host, user, job and file names are not."""

    known: bool = False
    rank: int | None = None
    world_size: int | None = None
    groups: tuple[ProcessGroup, ...] = ()
    devices: dict[int, Device] = field(default_factory=dict)
    base_ns: int | None = None
    producer: str | None = None
    issues: tuple[CaptureIssue, ...] = ()

    @classmethod
    def of(cls, found: dict[str, Any]) -> "_Metadata":
        job = found.get("distributedInfo")
        job = job if isinstance(job, dict) else {}
        rank, world = integer(job.get("rank")), integer(job.get("world_size"))
        base = integer(found.get("baseTimeNanoseconds"))
        names = (
            ("CUDA", _cuda_version(found.get("cuda_runtime_version"))),
            ("CUPTI", _version(found.get("cupti_version"))),
            ("ROCm", _version(found.get("hip_runtime_version"))),
        )
        versions = ", ".join(f"{name} {version}" for name, version in names if version)
        return cls(
            known=bool({"deviceProperties", "distributedInfo", "schemaVersion"} & found.keys()),
            rank=rank if rank >= 0 else None,
            world_size=world if world > 0 else None,
            groups=_groups(job.get("pg_config")),
            devices=_devices(found.get("deviceProperties")),
            base_ns=base if base >= 0 else None,
            producer=f"PyTorch profiler ({versions})" if versions else "PyTorch profiler",
            issues=tuple(
                CaptureIssue(
                    id=issue,
                    severity=Severity.INFO,
                    message=f"The profiler recorded {what}, which slows the host: host-side times "
                    f"are longer than without.",
                )
                for key, issue, what in _SETTINGS
                if integer(found.get(key), 0) == 1 or found.get(key) is True
            ),
        )


def _groups(found: Any) -> tuple[ProcessGroup, ...]:
    groups = []
    for group in found if isinstance(found, list) else ():
        if not isinstance(group, dict):
            continue
        groups.append(
            ProcessGroup(
                name=safe_text(text_of(group.get("pg_name")), NAME_LIMIT),
                description=safe_text(text_of(group.get("pg_desc")), NAME_LIMIT),
                ranks=integers(group.get("ranks")),
            )
        )
    return tuple(groups)


def _devices(found: Any) -> dict[int, Device]:
    devices: dict[int, Device] = {}
    for device in found if isinstance(found, list) else ():
        if not isinstance(device, dict):
            continue
        number = integer(device.get("id"))
        if number < 0 or number in devices:
            continue
        major, minor = integer(device.get("computeMajor")), integer(device.get("computeMinor"))
        memory, sms = integer(device.get("totalGlobalMem")), integer(device.get("numSms"))
        devices[number] = Device(
            name=gpu_name(text_of(device.get("name"))),
            memory_bytes=memory if memory > 0 else None,
            sm_count=sms if sms > 0 else None,
            compute_capability=f"{major}.{minor}" if major > 0 and minor >= 0 else None,
        )
    return devices


# --- tables ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Host:
    """Host-side columns of the file in start order; threads are unique over its processes."""

    start: Ints
    end: Ints
    pid: Ints
    tid: Ints
    name: NDArray[np.uint32]


@dataclass(slots=True)
class _Calls(_Host):
    correlation: Ints


@dataclass(slots=True)
class _Ranges(_Host):
    kind: NDArray[np.uint8]
    sequence: Ints
    forward: Ints


@dataclass(slots=True)
class _Activities:
    start: Ints
    end: Ints
    name: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    pid: Ints
    device: Ints
    stream: Ints
    correlation: Ints
    bytes: Ints
    blocks: Ints
    in_graph: NDArray[np.bool_]
    number: Ints  # row in file order


@dataclass(slots=True)
class _Names:
    """One numbering for the names of activities, calls and ranges."""

    texts: list[str]
    activity: NDArray[np.uint32]
    call: NDArray[np.uint32]
    operator: NDArray[np.uint32]
    overhead: NDArray[np.uint32]
    numbers: dict[str, int]

    def number(self, text: str) -> int:
        """The number of `text`, given one if it is new."""
        clean = safe_text(text, NAME_LIMIT)
        number = self.numbers.setdefault(clean, len(self.texts))
        if number == len(self.texts):
            self.texts.append(clean)
        return number


_API_VERSION = re.compile(r"_v\d{4,}$")
OVERHEAD_PREFIX = "profiler: "


def _names(columns: Columns) -> _Names:
    nothing = np.zeros(0, np.uint32)
    names = _Names([], nothing, nothing, nothing, nothing, {})

    def numbered(texts: list[str]) -> NDArray[np.uint32]:
        return np.array([names.number(text) for text in texts], np.uint32)

    names.activity = numbered(list(columns.activity_names))
    names.call = numbered([_API_VERSION.sub("", text) for text in columns.call_names])
    names.operator = numbered(list(columns.range_names))
    kinds = columns.ranges.column("kind", np.uint8)
    used = np.unique(columns.ranges.column("name", np.uint32)[kinds == HOST_OVERHEAD])
    names.overhead = names.operator.copy()
    texts = list(columns.range_names)
    for raw in used.tolist():
        names.overhead[raw] = names.number(OVERHEAD_PREFIX + texts[raw])
    return names


class _Lanes:
    """Thread numbers that are unique over the processes of a file.

    The main process keeps its own; those of others are moved far above.
    """

    PLACES = 1 << 18  # more processes than this share numbers, so that they fit 64 bits
    SHIFT = 1 << 44  # above every thread number of `ThreadNumbers`

    def __init__(self, pids: Ints) -> None:
        values, counts = np.unique(pids, return_counts=True)
        order = np.lexsort((values, -counts))
        self._shift = {
            int(values[at]): place % self.PLACES * self.SHIFT for place, at in enumerate(order)
        }

    def of(self, pid: Ints, tid: Ints) -> Ints:
        if len(self._shift) <= 1:
            return tid
        values, inverse = np.unique(pid, return_inverse=True)
        shifts = np.array([self._shift.get(int(value), 0) for value in values], np.int64)
        return tid + shifts[inverse]


@dataclass(slots=True)
class _File:
    """The columns of a whole file, sorted, before they are divided among ranks."""

    activities: _Activities
    calls: _Calls
    ranges: _Ranges
    launched_by: Ints  # row in calls per activity, NONE where unknown
    comms: list[CommsCall]
    duplicates: int
    jumps: int
    matmuls: pl.DataFrame  # MATMUL_SCHEMA and `pid`


def _sorted_file(columns: Columns, names: _Names) -> _File:
    jumps = 0
    middle = _middle(columns)

    def sane(start: Ints, end: Ints) -> NDArray[np.bool_]:
        nonlocal jumps
        keep: NDArray[np.bool_] = (np.abs(start - middle) < DAY_NS) & (end - start < DAY_NS)
        jumps += int((~keep).sum())
        return keep

    host_pids = columns.calls.column("pid")
    range_kinds = columns.ranges.column("kind", np.uint8)
    range_pids = columns.ranges.column("pid")
    lanes = _Lanes(np.concatenate([host_pids, range_pids[range_kinds != HOST_OVERHEAD]]))

    table = columns.calls
    start, end = table.column("start"), table.column("end")
    rows = np.flatnonzero(sane(start, end))
    rows = rows[np.lexsort((end[rows], start[rows]))]
    calls = _Calls(
        start=start[rows],
        end=end[rows],
        pid=host_pids[rows],
        tid=lanes.of(host_pids, table.column("tid"))[rows],
        name=names.call[table.column("name", np.uint32)[rows]],
        correlation=table.column("correlation")[rows],
    )
    table.keep("start")

    table = columns.ranges
    start, end = table.column("start"), table.column("end")
    rows = np.flatnonzero(sane(start, end))
    rows = rows[np.lexsort((-end[rows], start[rows]))]
    kind = range_kinds[rows]
    raw_names = table.column("name", np.uint32)[rows]
    overhead = kind == HOST_OVERHEAD
    tid = lanes.of(range_pids, table.column("tid"))[rows]
    ranges = _Ranges(
        start=start[rows],
        end=end[rows],
        pid=range_pids[rows],
        tid=np.where(overhead, NONE, tid),
        name=np.where(overhead, names.overhead[raw_names], names.operator[raw_names])
        if len(raw_names)
        else raw_names,
        kind=kind,
        sequence=table.column("sequence")[rows],
        forward=table.column("forward")[rows],
    )
    table.keep("start")

    table = columns.activities
    start, end = table.column("start"), table.column("end")
    rows = np.flatnonzero(sane(start, end))
    rows = rows[np.lexsort((end[rows], start[rows]))]
    raw_names = table.column("name", np.uint32)[rows]
    activities = _Activities(
        start=start[rows],
        end=end[rows],
        name=names.activity[raw_names] if len(raw_names) else raw_names,
        kind=table.column("kind", np.uint8)[rows],
        pid=table.column("pid")[rows],
        device=table.column("device")[rows],
        stream=table.column("stream")[rows],
        correlation=table.column("correlation")[rows],
        bytes=table.column("bytes")[rows],
        blocks=table.column("blocks")[rows],
        in_graph=table.column("graph_node", np.bool_)[rows],
        number=rows,
    )
    table.keep("start")
    launched_by, duplicates = _launches(activities, calls)
    graph = np.array(["GraphLaunch" in text for text in names.texts] or [False], np.bool_)
    has_call = launched_by >= 0
    activities.in_graph[has_call] |= graph[calls.name[launched_by[has_call]]]
    comms = [
        CommsCall(
            call.start_ns,
            call.end_ns,
            call.pid,
            int(lanes.of(np.array([call.pid]), np.array([call.tid]))[0]),
            call.args,
        )
        for call in columns.comms
    ]
    matmuls = _matmul_table(columns, lanes)
    return _File(activities, calls, ranges, launched_by, comms, duplicates, jumps, matmuls)


def _middle(columns: Columns) -> int:
    """A time that is surely inside the capture, even if some rows' clocks are broken."""
    starts = [columns.activities.column("start"), columns.calls.column("start")]
    merged = np.concatenate(starts)
    if not len(merged):
        merged = columns.ranges.column("start")
    return int(np.partition(merged, len(merged) // 2)[len(merged) // 2]) if len(merged) else 0


def _launches(activities: _Activities, calls: _Calls) -> tuple[Ints, int]:
    """Row of the call that launched each activity, and how many calls share another's number.

    Where several calls have the correlation number (several processes in a file), it is the last
    that began before the activity, else the first.
    """
    launched_by = np.full(len(activities.start), NONE, np.int64)
    usable = np.flatnonzero(calls.correlation > 0)
    if not len(usable):
        return launched_by, 0
    # calls are in start order, so a stable sort by correlation leaves (correlation, start) order
    order = usable[np.argsort(calls.correlation[usable], kind="stable")]
    correlations = calls.correlation[order]
    first = np.searchsorted(correlations, activities.correlation, side="left")
    last = np.searchsorted(correlations, activities.correlation, side="right")
    found = last > first
    launched_by[found] = order[first[found]]
    duplicates = int((np.diff(correlations) == 0).sum())
    if duplicates:
        before = np.searchsorted(calls.start, activities.start, side="right")
        for row in np.flatnonzero(last - first > 1).tolist():
            candidates = order[first[row] : last[row]]
            place = int(np.searchsorted(candidates, before[row], side="left"))
            launched_by[row] = candidates[max(place - 1, 0)]
    return launched_by, duplicates


# --- ranks ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Owner:
    pid: int | None  # None: no launch call of any activity is known
    device: int


def _owners(file: _File) -> tuple[dict[_Owner, Ints], int]:
    """Rows of `activities` of each process and device, and how many rows are of none of them."""
    activities = file.activities
    pid = _owning_processes(file)
    processes, process = np.unique(pid, return_inverse=True)
    devices, device = np.unique(activities.device, return_inverse=True)
    code = process * max(len(devices), 1) + device
    codes, counts = np.unique(code, return_counts=True)
    kernels = np.zeros(len(codes), np.int64)
    of_kernels, kernel_counts = np.unique(code[activities.kind == GPU_KERNEL], return_counts=True)
    kernels[np.searchsorted(codes, of_kernels)] = kernel_counts
    busiest = int(kernels.max(initial=0))
    rank_like = np.flatnonzero((kernels > busiest * MINOR_DEVICE_SHARE) | (busiest == 0))
    if len(rank_like) > MAX_RANKS:
        rank_like = np.sort(rank_like[np.lexsort((rank_like, -counts[rank_like]))][:MAX_RANKS])
    rows = np.split(np.argsort(code, kind="stable"), np.cumsum(counts)[:-1])
    kept: dict[_Owner, Ints] = {}
    for place in rank_like.tolist():
        number, ordinal = divmod(int(codes[place]), len(devices))
        owner = int(processes[number])
        kept[_Owner(None if owner == NONE else owner, int(devices[ordinal]))] = rows[place]
    return kept, len(code) - sum(len(own) for own in kept.values())


def _owning_processes(file: _File) -> Ints:
    """The host process of each activity: its launch call's; NONE if no launch call is known."""
    activities = file.activities
    pid = np.full(len(activities.start), NONE, np.int64)
    has_call = file.launched_by >= 0
    pid[has_call] = file.calls.pid[file.launched_by[has_call]]
    processes = np.unique(pid[has_call])
    if len(processes) == 1:
        pid[:] = processes[0]
    elif len(processes) > 1:
        # rows without a call belong to the process that most rows of their own lane belong to
        lanes = [*zip(activities.pid.tolist(), activities.device.tolist(), strict=True)]
        votes: dict[tuple[int, int], Counter[int]] = {}
        for row in np.flatnonzero(has_call).tolist():
            votes.setdefault(lanes[row], Counter())[int(pid[row])] += 1
        for row in np.flatnonzero(~has_call).tolist():
            known = votes.get(lanes[row])
            pid[row] = known.most_common(1)[0][0] if known else processes[0]
    return pid


def _assemble(columns: Columns, metadata: _Metadata, path: Path) -> tuple[RankTrace, ...]:
    names = _names(columns)
    file = _sorted_file(columns, names)
    owners, left_out = _owners(file)
    issues: list[CaptureIssue] = []
    if not owners:
        owners = {_Owner(None, 0): np.zeros(0, np.int64)}
        issues.append(
            CaptureIssue(
                id="no-gpu-activity",
                severity=Severity.ERROR,
                message="The trace holds no GPU work: record it with ProfilerActivity.CUDA.",
            )
        )
    if left_out:
        issues.append(
            CaptureIssue(
                id="minor-device-skipped",
                severity=Severity.INFO,
                message=f"{left_out} GPU rows ran on devices with less than "
                f"{100 * MINOR_DEVICE_SHARE:.0f} % of the kernels of the busiest; they were left "
                "out.",
                count=left_out,
            )
        )
    if file.duplicates and len({owner.pid for owner in owners}) == 1:
        issues.append(
            CaptureIssue(
                id="duplicate-correlation-ids",
                severity=Severity.WARNING,
                message=f"{file.duplicates} API calls share a correlation number with another; "
                f"GPU work was linked to the latest call before it.",
                count=file.duplicates,
            )
        )
    if file.jumps:
        issues.append(
            CaptureIssue(
                id="clock-jump",
                severity=Severity.WARNING,
                message=f"{file.jumps} rows lie more than a day from the rest of the trace; they "
                f"were left out.",
                count=file.jumps,
            )
        )
    numbers = _rank_numbers(list(owners), file, metadata, path)
    several = len({owner.pid for owner in owners}) > 1
    ranks = [
        _rank_trace(columns, file, names, metadata, owner, rows, number, several, tuple(issues))
        for (owner, rows), number in zip(owners.items(), numbers, strict=True)
    ]
    return tuple(sorted(ranks, key=lambda rank: rank.rank))


_NUMBER_IN_NAME = (
    re.compile(r"rank[-_.]?(\d{1,7})(?!\d)", re.IGNORECASE),
    re.compile(r"(?<![0-9a-zA-Z])r(\d{1,7})(?!\d)", re.IGNORECASE),
    re.compile(r"[-_.](\d{1,5})(?=(?:\.[A-Za-z_]+)+$)"),
)


def rank_in_name(name: str) -> int | None:
    """The rank that a file name tells: `rank3`, `trace_rank_3`, `r3`, `trace_3.json`."""
    for pattern in _NUMBER_IN_NAME:
        if found := pattern.search(name):
            return int(found[1])
    return None


def _rank_numbers(
    owners: list[_Owner], file: _File, metadata: _Metadata, path: Path
) -> list[tuple[int, str]]:
    """Number and its source for each owner."""
    if len(owners) == 1:
        told = metadata.rank
        if told is None:
            told = _rank_in_comms(file.comms, metadata)
        if told is not None:
            return [(told, "metadata")]
        named = rank_in_name(path.name)
        return [(0, "process-order")] if named is None else [(named, "file-name")]
    told_each = [
        _rank_in_comms([call for call in file.comms if call.pid == owner.pid], metadata)
        for owner in owners
    ]
    if None not in told_each and len(set(told_each)) == len(owners):
        return [(told, "metadata") for told in told_each if told is not None]
    return [(number, "process-order") for number in range(len(owners))]


def _rank_in_comms(comms: list[CommsCall], metadata: _Metadata) -> int | None:
    """The global rank that most collectives' arguments tell."""
    groups = GroupRanks({group.name: group.ranks for group in metadata.groups})
    votes: Counter[int] = Counter()
    for call in comms:
        place = integer(call.args.group_rank)
        if place < 0 or integer(call.args.group_size) == 1 or is_p2p(call.args):
            continue
        ranks = members(call.args, groups)
        if place < len(ranks):
            votes[ranks[place]] += 1
    return min(votes, key=lambda rank: (-votes[rank], rank)) if votes else None


_RANGE_KINDS = {
    HOST_OPERATOR: RangeKind.OPERATOR,
    HOST_ANNOTATION: RangeKind.ANNOTATION,
    HOST_PYTHON: RangeKind.PYTHON,
    HOST_OVERHEAD: RangeKind.LIBRARY,
}
_ACTIVITY_KINDS = {
    GPU_KERNEL: ActivityKind.KERNEL,
    GPU_MEMCPY: ActivityKind.MEMCPY,
    GPU_MEMSET: ActivityKind.MEMSET,
}
_COPY = re.compile(r"(?:Memcpy|Copy)\s*([A-Za-z]+)(?:\s*\((.*)\))?")
_COPY_KINDS = {
    "htod": CopyKind.HOST_TO_DEVICE,
    "dtoh": CopyKind.DEVICE_TO_HOST,
    "dtod": CopyKind.DEVICE_TO_DEVICE,
    "htoh": CopyKind.HOST_TO_HOST,
    "ptop": CopyKind.PEER_TO_PEER,
    "hosttodevice": CopyKind.HOST_TO_DEVICE,
    "devicetohost": CopyKind.DEVICE_TO_HOST,
    "devicetodevice": CopyKind.DEVICE_TO_DEVICE,
    "hosttohost": CopyKind.HOST_TO_HOST,
    "peertopeer": CopyKind.PEER_TO_PEER,
}


def copy_kind(name: str) -> tuple[CopyKind, bool]:
    """Direction, and whether the host side is pageable, of `Memcpy DtoH (Device -> Pageable)`."""
    found = _COPY.match(name)
    if found is None:
        return CopyKind.OTHER, False
    kind = _COPY_KINDS.get(found[1].lower(), CopyKind.OTHER)
    return kind, "pageable" in (found[2] or "").lower()


def _lookup(values: dict[int, int]) -> NDArray[np.uint8]:
    table = np.zeros(max(values) + 1, np.uint8)
    for key, value in values.items():
        table[key] = value
    return table


_Rows = NDArray[np.bool_] | slice
_ALL = slice(None)
"""The rows of a rank that has a file to itself: its tables need no copies of the file's."""


def _rank_trace(
    columns: Columns,
    file: _File,
    names: _Names,
    metadata: _Metadata,
    owner: _Owner,
    rows: Ints,
    number: tuple[int, str],
    several: bool,
    issues: tuple[CaptureIssue, ...],
) -> RankTrace:
    """The tables of one process on one device."""
    calls, ranges = file.calls, file.ranges
    own_calls: _Rows = calls.pid == owner.pid if several else _ALL
    own_ranges: _Rows = (
        (ranges.pid == owner.pid) | (ranges.kind == HOST_OVERHEAD) if several else _ALL
    )
    call = file.launched_by[rows]
    if isinstance(own_calls, np.ndarray):
        place = np.cumsum(own_calls) - 1  # row of each own call in the rank's table
        call = np.where(call >= 0, place[call] if len(place) else NONE, NONE)
    table = _activity_table(file.activities, rows, call, names)
    collectives = _collective_table(columns, file, rows, owner, several, names, metadata, number[0])
    start = file.activities.start[rows]
    base = metadata.base_ns
    if base is None and len(calls.start) + len(start) and _middle(columns) > EPOCH_START_NS:
        base = 0
    return RankTrace(
        rank=number[0],
        rank_source=number[1],
        names=tuple(names.texts),
        activities=table,
        calls=pl.DataFrame(
            {
                "start_ns": calls.start[own_calls],
                "end_ns": calls.end[own_calls],
                "tid": calls.tid[own_calls],
                "name": calls.name[own_calls],
            },
            schema=CALL_SCHEMA,
        ),
        ranges=_range_table(ranges, own_ranges, names),
        collectives=collectives,
        memory=_memory_table(columns, owner, several),
        matmuls=(file.matmuls.filter(pl.col("pid") == owner.pid) if several else file.matmuls).drop(
            "pid"
        ),
        device=metadata.devices.get(owner.device, Device()),
        groups=metadata.groups,
        world_size=metadata.world_size,
        epoch_ns=base,
        issues=(*issues, *_rank_issues(file, rows, number[0])),
    )


def _activity_table(activities: _Activities, rows: Ints, call: Ints, names: _Names) -> pl.DataFrame:
    kind = _lookup({key: int(value) for key, value in _ACTIVITY_KINDS.items()})[
        activities.kind[rows]
    ]
    name = activities.name[rows]
    copies = kind == ActivityKind.MEMCPY
    directions = np.zeros(len(rows), np.uint8)
    pageable = np.zeros(len(rows), np.bool_)
    for used in np.unique(name[copies]).tolist():
        direction, is_pageable = copy_kind(names.texts[used])
        these = copies & (name == used)
        directions[these], pageable[these] = int(direction), is_pageable
    return pl.DataFrame(
        {
            "start_ns": activities.start[rows],
            "end_ns": activities.end[rows],
            "kind": kind,
            "name": name,
            "stream": activities.stream[rows],
            "call": call,
            "blocks": activities.blocks[rows],
            "bytes": activities.bytes[rows],
            "copy_kind": directions,
            "pageable": pageable,
            "in_graph": activities.in_graph[rows],
        },
        schema=ACTIVITY_SCHEMA,
    )


def _range_table(ranges: _Ranges, own: _Rows, names: _Names) -> pl.DataFrame:
    kind = _lookup({key: int(value) for key, value in _RANGE_KINDS.items()})[ranges.kind[own]]
    name = ranges.name[own]
    library = np.array([text.startswith("nccl:") for text in names.texts] or [False], np.bool_)
    kind[(kind == RangeKind.ANNOTATION) & library[name]] = RangeKind.LIBRARY
    return pl.DataFrame(
        {
            "start_ns": ranges.start[own],
            "end_ns": ranges.end[own],
            "tid": ranges.tid[own],
            "name": name,
            "kind": kind,
            "sequence": ranges.sequence[own],
            "forward_tid": ranges.forward[own],
        },
        schema=RANGE_SCHEMA,
    )


def _matmul_table(columns: Columns, lanes: _Lanes) -> pl.DataFrame:
    table = columns.matmuls
    pid = table.column("pid")
    found = pl.DataFrame(
        {
            "start_ns": table.column("start"),
            "end_ns": table.column("end"),
            "tid": lanes.of(pid, table.column("tid")) if len(pid) else pid,
            "flops": table.column("flops"),
            "rows": table.column("rows"),
            "groups": table.column("groups"),
            "pid": pid,
        },
        schema={**MATMUL_SCHEMA, "pid": pl.Int64},
    )
    return found.sort("start_ns", maintain_order=True)


def _memory_table(columns: Columns, owner: _Owner, several: bool) -> pl.DataFrame:
    table = columns.memory
    own = table.column("device") == owner.device
    if several:
        own &= table.column("pid") == owner.pid
    time = table.column("time")[own]
    order = np.argsort(time, kind="stable")
    return pl.DataFrame(
        {
            "time_ns": time[order],
            "allocated_bytes": table.column("allocated")[own][order],
            "reserved_bytes": table.column("reserved")[own][order],
        },
        schema=MEMORY_SCHEMA,
    )


def _collective_table(
    columns: Columns,
    file: _File,
    rows: Ints,
    owner: _Owner,
    several: bool,
    names: _Names,
    metadata: _Metadata,
    rank: int,
) -> pl.DataFrame:
    """Metadata of the communication kernels among `rows`, by their place in `rows`."""
    activities = file.activities
    groups = GroupRanks({group.name: group.ranks for group in metadata.groups}, rank)
    is_nccl = np.array(["nccl" in text.lower() for text in names.texts] or [False], np.bool_)
    number = activities.number[rows]
    told = np.isin(number, np.fromiter(columns.collectives, np.int64, len(columns.collectives)))
    kernel = activities.kind[rows] == GPU_KERNEL
    name = activities.name[rows]
    found: dict[int, Collective] = {}
    by_stream: dict[int, list[tuple[str, Collective]]] = {}
    for place in np.flatnonzero(told).tolist():
        args = columns.collectives[int(number[place])]
        if text_of(args.collective).lower() == WAIT:
            continue
        found[place] = row = from_args(args, groups)
        stream = int(activities.stream[rows[place]])
        by_stream.setdefault(stream, []).append((names.texts[name[place]], row))
    launches = []
    for place in np.flatnonzero(kernel & ~told & is_nccl[name]).tolist():
        call = int(file.launched_by[rows[place]])
        launches.append(
            Launch(
                activity=place,
                kernel=names.texts[name[place]],
                stream=int(activities.stream[rows[place]]),
                tid=int(file.calls.tid[call]) if call >= 0 else None,
                start_ns=int(file.calls.start[call]) if call >= 0 else 0,
            )
        )
    if launches:
        comms = [call for call in file.comms if not several or call.pid == owner.pid]
        found |= recover(launches, _coalesced(file.ranges, names), comms, by_stream, groups)
    places = sorted(found)
    table: dict[str, list[Any]] = {
        "activity": places,
        "kind": [int(found[place].kind) for place in places],
        "group": [names.number(found[place].group) for place in places],
        "description": [names.number(found[place].description) for place in places],
        "group_size": [found[place].group_size for place in places],
        "bytes_sent": [found[place].bytes_sent for place in places],
        "bytes_received": [found[place].bytes_received for place in places],
        "bytes_self": [found[place].bytes_self for place in places],
        "in_splits": [list(found[place].in_splits) for place in places],
        "out_splits": [list(found[place].out_splits) for place in places],
        "sequence": [found[place].sequence for place in places],
        "place": [found[place].place for place in places],
        "to_low": [min(found[place].sends_to, default=NONE) for place in places],
        "to_high": [max(found[place].sends_to, default=NONE) for place in places],
        "from_low": [min(found[place].receives_from, default=NONE) for place in places],
        "from_high": [max(found[place].receives_from, default=NONE) for place in places],
    }
    return pl.DataFrame(table, schema=pl.Schema(COLLECTIVE_SCHEMA))


def _coalesced(ranges: _Ranges, names: _Names) -> list[Span]:
    wanted = [number for number, text in enumerate(names.texts) if text in COALESCED]
    rows = np.flatnonzero((ranges.kind == HOST_ANNOTATION) & np.isin(ranges.name, wanted))
    return [Span(int(ranges.start[r]), int(ranges.end[r]), int(ranges.tid[r])) for r in rows]


# --- issues ---------------------------------------------------------------------------------


def _rank_issues(file: _File, rows: Ints, rank: int) -> tuple[CaptureIssue, ...]:
    count = len(rows)
    if not count:
        return ()
    issues = []
    launched_by = file.launched_by[rows]
    unlinked = int((launched_by < 0).sum())
    if unlinked > UNLINKED_SHARE * count:
        issues.append(
            CaptureIssue(
                id="gpu-work-without-launch",
                severity=Severity.WARNING,
                message=f"{unlinked} of {count} GPU rows ({100 * unlinked / count:.0f} %) have no "
                "launch call in the trace; host gaps and annotations are less certain.",
                count=unlinked,
                rank=rank,
            )
        )
    linked = launched_by >= 0
    ahead = file.calls.start[launched_by[linked]] - file.activities.start[rows][linked]
    early = int((ahead > EARLY_START_NS).sum())
    if early > EARLY_SHARE * count:
        issues.append(
            CaptureIssue(
                id="clock-skew",
                severity=Severity.WARNING,
                message=f"{early} of {count} GPU rows begin more than "
                f"{EARLY_START_NS // 1_000_000} ms before their launch call: host and GPU clocks "
                f"disagree, so host gaps are uncertain.",
                count=early,
                rank=rank,
            )
        )
    return tuple(issues)


def _file_issues(reader: "EventReader[Any]", columns: Columns) -> tuple[CaptureIssue, ...]:
    counts = columns.counts
    warning, info = Severity.WARNING, Severity.INFO
    found = (
        (
            "truncated-input", Severity.ERROR, int(reader.truncated),
            "The file is cut short or damaged; what was complete was read.",
        ),
        (
            "unreadable-events", warning, reader.bad_events,
            "{} events could not be read and were left out.",
        ),
        (
            "repaired-events", info, reader.repaired_events,
            "{} events were not valid JSON (torch up to 2.11 writes some names unescaped) and "
            "were repaired.",
        ),
        (
            "events-without-duration", warning, counts.no_duration,
            "{} events have no duration and were left out.",
        ),
        (
            "negative-durations", warning, counts.negative,
            "{} events end before they start and were left out.",
        ),
        (
            "impossible-times", warning, counts.bad_time,
            "{} events have a time that is no time and were left out.",
        ),
        (
            "out-of-memory-events", warning, columns.out_of_memory,
            "{} allocations failed for lack of GPU memory during the capture.",
        ),
    )  # fmt: skip
    return tuple(
        CaptureIssue(id=name, severity=severity, message=text.format(count), count=count)
        for name, severity, count, text in found
        if count
    )
