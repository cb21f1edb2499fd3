"""Divides a Kineto file among the ranks that it holds, and tells their numbers."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from moe_advisor.ingest.kineto_collectives import GroupRanks, is_p2p, members
from moe_advisor.ingest.kineto_columns import GPU_KERNEL, HOST_OVERHEAD, Columns, CommsCall
from moe_advisor.ingest.kineto_events import integer
from moe_advisor.ingest.kineto_metadata import Metadata
from moe_advisor.ingest.kineto_sorted import (
    Ints,
    Names,
    SortedFile,
    middle_ns,
    names_of,
    sorted_file,
)
from moe_advisor.ingest.kineto_tables import (
    Owner,
    Rows,
    activity_table,
    collective_table,
    memory_table,
    range_table,
)
from moe_advisor.model import CALL_SCHEMA, NONE, CaptureIssue, Device, RankTrace, Severity

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


def _owners(file: SortedFile) -> tuple[dict[Owner, Ints], int]:
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
    kept: dict[Owner, Ints] = {}
    for place in rank_like.tolist():
        number, ordinal = divmod(int(codes[place]), len(devices))
        owner = int(processes[number])
        kept[Owner(None if owner == NONE else owner, int(devices[ordinal]))] = rows[place]
    return kept, len(code) - sum(len(own) for own in kept.values())


def _owning_processes(file: SortedFile) -> Ints:
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


def assemble(columns: Columns, metadata: Metadata, path: Path) -> tuple[RankTrace, ...]:
    """The ranks of a file, by number; `columns` are used up."""
    names = names_of(columns)
    file = sorted_file(columns, names)
    owners, left_out = _owners(file)
    issues: list[CaptureIssue] = []
    if not owners:
        owners = {Owner(None, 0): np.zeros(0, np.int64)}
        issues.append(
            CaptureIssue(
                id="no-gpu-activity",
                severity=Severity.ERROR,
                message="The trace holds no GPU work: record it with ProfilerActivity.CUDA, or to "
                "its end if it was cut short.",
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
    owners: list[Owner], file: SortedFile, metadata: Metadata, path: Path
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


def _rank_in_comms(comms: list[CommsCall], metadata: Metadata) -> int | None:
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


_ALL = slice(None)
"""The rows of a rank that has a file to itself: its tables need no copies of the file's."""


def _rank_trace(
    columns: Columns,
    file: SortedFile,
    names: Names,
    metadata: Metadata,
    owner: Owner,
    rows: Ints,
    number: tuple[int, str],
    several: bool,
    issues: tuple[CaptureIssue, ...],
) -> RankTrace:
    """The tables of one process on one device."""
    calls, ranges = file.calls, file.ranges
    own_calls: Rows = calls.pid == owner.pid if several else _ALL
    own_ranges: Rows = (
        (ranges.pid == owner.pid) | (ranges.kind == HOST_OVERHEAD) if several else _ALL
    )
    call = file.launched_by[rows]
    if isinstance(own_calls, np.ndarray):
        place = np.cumsum(own_calls) - 1  # row of each own call in the rank's table
        call = np.where(call >= 0, place[call] if len(place) else NONE, NONE)
    table = activity_table(file.activities, rows, call, names)
    collectives = collective_table(columns, file, rows, owner, several, names, metadata, number[0])
    start = file.activities.start[rows]
    base = metadata.base_ns
    if base is None and len(calls.start) + len(start) and middle_ns(columns) > EPOCH_START_NS:
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
        ranges=range_table(ranges, own_ranges, names),
        collectives=collectives,
        memory=memory_table(columns, owner, several),
        matmuls=(file.matmuls.filter(pl.col("pid") == owner.pid) if several else file.matmuls).drop(
            "pid"
        ),
        device=metadata.devices.get(owner.device, Device()),
        groups=metadata.groups,
        world_size=metadata.world_size,
        epoch_ns=base,
        issues=(*issues, *_rank_issues(file, rows, number[0])),
    )


def _rank_issues(file: SortedFile, rows: Ints, rank: int) -> tuple[CaptureIssue, ...]:
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
