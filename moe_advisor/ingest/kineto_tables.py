"""The trace tables of one rank, from the sorted columns of a Kineto file."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.ingest.kineto_collectives import (
    COALESCED,
    WAIT,
    Collective,
    GroupRanks,
    Launch,
    Span,
    from_args,
    is_nccl_kernel,
    recover,
)
from moe_advisor.ingest.kineto_columns import (
    GPU_KERNEL,
    GPU_MEMCPY,
    GPU_MEMSET,
    HOST_ANNOTATION,
    HOST_OPERATOR,
    HOST_OVERHEAD,
    HOST_PYTHON,
    Columns,
)
from moe_advisor.ingest.kineto_events import text_of
from moe_advisor.ingest.kineto_metadata import Metadata
from moe_advisor.ingest.kineto_sorted import Activities, Ints, Names, Ranges, SortedFile
from moe_advisor.model import (
    ACTIVITY_SCHEMA,
    COLLECTIVE_SCHEMA,
    MEMORY_SCHEMA,
    NONE,
    RANGE_SCHEMA,
    ActivityKind,
    CopyKind,
    RangeKind,
)

Rows = NDArray[np.bool_] | slice
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


@dataclass(frozen=True, slots=True)
class Owner:
    """A rank as the file has it: a process on a device."""

    pid: int | None  # None: no launch call of any activity is known
    device: int


def activity_table(activities: Activities, rows: Ints, call: Ints, names: Names) -> pl.DataFrame:
    """The GPU work in `rows`, each launched by row `call` of the rank's calls."""
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


def range_table(ranges: Ranges, own: Rows, names: Names) -> pl.DataFrame:
    """The host ranges of a rank."""
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


def memory_table(columns: Columns, owner: Owner, several: bool) -> pl.DataFrame:
    """What the allocator held over time on the rank's device."""
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


def collective_table(
    columns: Columns,
    file: SortedFile,
    rows: Ints,
    owner: Owner,
    several: bool,
    names: Names,
    metadata: Metadata,
    rank: int,
) -> pl.DataFrame:
    """Metadata of the communication kernels among `rows`, by their place in `rows`."""
    activities = file.activities
    groups = GroupRanks({group.name: group.ranks for group in metadata.groups}, rank)
    is_nccl = np.array([is_nccl_kernel(text) for text in names.texts] or [False], np.bool_)
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
        streams = activities.stream[rows]
        others = kernel & ~is_nccl[name]
        # On a stream that computes too, collectives of any group run: they tell nothing of it.
        used = {one.stream for one in launches}
        own = {at for at in used if not (others & (streams == at)).any()}
        told_by = {at: known for at, known in by_stream.items() if at in own}
        found |= recover(launches, _coalesced(file.ranges, names), comms, told_by, groups)
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


def _coalesced(ranges: Ranges, names: Names) -> list[Span]:
    wanted = [number for number, text in enumerate(names.texts) if text in COALESCED]
    rows = np.flatnonzero((ranges.kind == HOST_ANNOTATION) & np.isin(ranges.name, wanted))
    return [Span(int(ranges.start[r]), int(ranges.end[r]), int(ranges.tid[r])) for r in rows]
