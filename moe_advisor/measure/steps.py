"""Where training steps begin and end, on the host and on the GPU."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import distinct
from moe_advisor.errors import ConfigError
from moe_advisor.model import ActivityKind, RangeKind, RankTrace
from moe_advisor.patterns import UserPattern, user_pattern
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import Role

STEP_NAMES = (
    ("iteration", re.compile(r"(?i)^iteration[ _#]?(\d+)$")),
    ("step", re.compile(r"(?i)^step[ _#]?(\d+)$")),
    ("ProfilerStep#", re.compile(r"^ProfilerStep#(\d+)$")),
)
"""Step annotations in order of preference: the framework's own, then the profiler's."""

SPECIAL_STEP = re.compile(
    r"(?i)save_checkpoint|checkpoint_save|\bevaluate\b|validation_step|^eval\b"
)
"""Ranges that make a step one of checkpointing or evaluation, which no mean should hold."""

CUT_STEP_SHARE = 0.5
"""The first or last step is cut by the capture if its host range is shorter than this share of the
median: real steps of one job differ far less, profiler start and stop included."""

FOREIGN_PAUSE_STEPS = 1.0
"""A pause between two step ranges that is longer than this many median steps holds other work
(evaluation, checkpoints): it belongs to no step."""

REGULAR_SPREAD = 0.1
"""Repetition counts as steps where the spacing of a kernel varies by less than this share."""


@dataclass(frozen=True)
class StepWindows:
    """The kept steps of one rank; all arrays have one entry per step, times in ns.

    [start, end) is the window on the GPU, [host_start, host_end) the range on the host.
    """

    names: tuple[str, ...]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    host_start: NDArray[np.int64]
    host_end: NDArray[np.int64]
    source: str
    pattern: str | None
    dropped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class _HostSteps:
    names: list[str]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    source: str
    pattern: str | None


def find_steps(
    rank: RankTrace, roles: RoleTable, pattern: str | None = None, select: str | None = None
) -> StepWindows:
    """The steps of one rank.

    `pattern` is a user's regular expression for step ranges (ConfigError if no range matches),
    `select` a slice A:B over the kept steps, counted from 0. A trace without steps is one window.
    """
    host = (
        _annotated(rank, pattern)
        or _by_optimizer(rank, roles)
        or _by_repetition(rank)
        or _whole(rank)
    )
    windows = _on_gpu(rank, roles, host)
    kept = _drop_special(rank, windows)
    return _selected(kept, select)


def _annotated(rank: RankTrace, pattern: str | None) -> _HostSteps | None:
    ranges = rank.ranges.filter(pl.col("kind") == RangeKind.ANNOTATION)
    names = {name: rank.names[name] for name in distinct(ranges["name"].to_numpy())}
    choices: tuple[tuple[str, re.Pattern[str] | UserPattern], ...] = STEP_NAMES
    if pattern is not None:
        choices = ((pattern, user_pattern(pattern, "--step-pattern")),)
    for label, expression in choices:
        matching = [number for number, name in names.items() if expression.search(name)]
        if matching:
            found = ranges.filter(pl.col("name").is_in(matching)).sort("start_ns", "end_ns")
            found = _outermost(found)
            return _HostSteps(
                [names[name] for name in found["name"].to_list()],
                found["start_ns"].to_numpy(),
                found["end_ns"].to_numpy(),
                "annotation",
                label,
            )
    if pattern is not None:
        raise ConfigError(f"--step-pattern {pattern!r} matches no range of rank {rank.rank}")
    return None


def _outermost(found: pl.DataFrame) -> pl.DataFrame:
    """Without ranges that begin inside an earlier one (the same step named on several threads)."""
    reach = found["end_ns"].cum_max().shift(1, fill_value=np.iinfo(np.int64).min)
    return found.filter(found["start_ns"] >= reach)


def _by_optimizer(rank: RankTrace, roles: RoleTable) -> _HostSteps | None:
    """Steps that end with a cluster of optimizer kernels; boundaries are GPU times."""
    rows = np.flatnonzero(roles.mask(Role.OPTIMIZER))
    if not len(rows):
        return None
    start = rank.activities["start_ns"].to_numpy()
    end = rank.activities["end_ns"].to_numpy()
    gemms = np.sort(start[roles.mask(Role.EXPERT_GEMM, Role.DENSE_GEMM, Role.GEMM_UNATTRIBUTED)])
    # A cluster ends where GEMMs of the next forward follow: foreach kernels inside it don't.
    after = np.searchsorted(gemms, start[rows], side="right")
    closes = np.concatenate([after[1:] > after[:-1], [True]])
    ends = np.maximum.accumulate(end[rows])[closes]
    if len(ends) < 2:
        return None
    names = [f"step {index}" for index in range(1, len(ends))]
    return _HostSteps(names, ends[:-1], ends[1:], "optimizer", None)


def _by_repetition(rank: RankTrace) -> _HostSteps | None:
    """Steps from the rarest kernel that comes back at a steady pace, at least three times."""
    kernels = rank.activities.filter(pl.col("kind") == ActivityKind.KERNEL)
    if not len(kernels):
        return None
    found = (
        kernels.group_by("name")
        .agg(
            pl.len().alias("count"),
            pl.col("start_ns").first().alias("first"),
            pl.col("start_ns").diff().mean().alias("mean"),
            pl.col("start_ns").diff().std().alias("deviation"),
        )
        .filter((pl.col("count") >= 3) & (pl.col("deviation") < REGULAR_SPREAD * pl.col("mean")))
        .sort("count", "first")
    )
    if not len(found):
        return None
    starts = kernels.filter(pl.col("name") == found["name"][0])["start_ns"].to_numpy()
    names = [f"repetition {index}" for index in range(len(starts) - 1)]
    return _HostSteps(
        names, starts[:-1], starts[1:], "repetition", rank.names[found["name"][0]][:80]
    )


def _whole(rank: RankTrace) -> _HostSteps:
    table = rank.activities
    if len(table):
        start, end = table["start_ns"].min(), table["end_ns"].max()
    else:
        start = end = 0
    return _HostSteps(
        ["whole trace"],
        np.asarray([start], np.int64),
        np.asarray([end], np.int64),
        "whole-trace",
        None,
    )


def _on_gpu(rank: RankTrace, roles: RoleTable, host: _HostSteps) -> StepWindows:
    """Boundaries on the GPU, as docs/reference/metrics.md defines them."""
    dropped: list[tuple[str, str]] = []
    count = len(host.names)
    if host.source != "annotation":
        full = host.end > host.start  # a trace without GPU work has no step, not one of length 0
        names = tuple(name for name, kept in zip(host.names, full.tolist(), strict=True) if kept)
        start, end = host.start[full], host.end[full]
        return StepWindows(names, start, end, start, end, host.source, host.pattern)
    table = rank.activities
    call = table["call"].to_numpy()
    launched = np.where(
        call >= 0,
        rank.calls["start_ns"].to_numpy()[np.maximum(call, 0)] if len(rank.calls) else 0,
        table["start_ns"].to_numpy(),
    )
    order = np.argsort(launched, kind="stable")
    launch = launched[order]
    start = table["start_ns"].to_numpy()[order]
    end = table["end_ns"].to_numpy()[order]
    is_kernel = table["kind"].to_numpy()[order] == ActivityKind.KERNEL
    computes = is_kernel & (roles.roles[order] < Role.EP_DISPATCH)
    lowest = np.iinfo(np.int64).min
    reach = np.maximum.accumulate(np.concatenate([[lowest], end]))
    compute_reach = np.maximum.accumulate(
        np.concatenate([[lowest], np.where(computes, end, lowest)])
    )
    first = np.searchsorted(launch, host.start)
    last = np.searchsorted(launch, host.end)
    boundary = np.zeros(count, np.int64)
    final = np.zeros(count, np.int64)
    empty = np.zeros(count, np.bool_)
    for step in range(count):
        inside = slice(first[step], last[step])
        if first[step] == last[step]:
            boundary[step] = final[step] = host.start[step]
            empty[step] = True
            continue
        early = ~computes[inside] & (start[inside] < compute_reach[first[step]])
        movers = start[inside][~early]
        opens = int(movers.min() if len(movers) else start[inside].min())
        done = int(reach[first[step]])
        boundary[step] = opens if opens <= done else max(int(host.start[step]), done)
        final[step] = max(int(end[inside].max()), int(host.end[step]))
    lengths = host.end - host.start
    median = float(np.median(lengths)) if count else 0.0
    ends = final.copy()
    if count > 1:
        pause = host.start[1:] - host.end[:-1]
        joined = pause <= FOREIGN_PAUSE_STEPS * median
        ends[:-1] = np.where(joined, boundary[1:], np.minimum(final[:-1], boundary[1:]))
    keep = ~empty
    dropped.extend(
        (host.names[step], "no GPU work was launched in it") for step in np.flatnonzero(empty)
    )
    for step in {0, count - 1} if count > 2 else set():
        if keep[step] and lengths[step] < CUT_STEP_SHARE * median:
            keep[step] = False
            dropped.append((host.names[step], "cut by the edge of the capture"))
    past = lowest
    for step in np.flatnonzero(keep).tolist():  # clocks that disagree can put a step inside another
        boundary[step] = max(int(boundary[step]), past)
        past = max(int(ends[step]), past)
    inside_another = keep & (ends <= boundary)
    dropped.extend(
        (host.names[step], "its GPU time lies in another step")
        for step in np.flatnonzero(inside_another)
    )
    keep &= ~inside_another
    ran = _ran_inside(table, boundary, ends)
    dropped.extend(
        (host.names[step], "no GPU work ran in it") for step in np.flatnonzero(keep & ~ran)
    )
    keep &= ran
    return StepWindows(
        tuple(name for name, kept in zip(host.names, keep.tolist(), strict=True) if kept),
        boundary[keep],
        ends[keep],
        host.start[keep],
        host.end[keep],
        host.source,
        host.pattern,
        tuple(dropped),
    )


def _ran_inside(
    table: pl.DataFrame, start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether any activity overlaps each window: clocks that disagree can leave one empty."""
    begun = np.searchsorted(table["start_ns"].to_numpy(), end)  # the table is sorted by start
    reach = np.append(np.maximum.accumulate(table["end_ns"].to_numpy()), np.iinfo(np.int64).min)
    found: NDArray[np.bool_] = reach[begun - 1] > start
    return found


def _drop_special(rank: RankTrace, windows: StepWindows) -> StepWindows:
    """Without the steps that save a checkpoint or evaluate."""
    names = distinct(rank.ranges["name"].to_numpy())
    special = [name for name in names if SPECIAL_STEP.search(rank.names[name])]
    if not special:
        return windows
    starts = rank.ranges.filter(pl.col("name").is_in(special))["start_ns"].to_numpy()
    holds = np.asarray(
        [
            bool(((starts >= a) & (starts < b)).any())
            for a, b in zip(windows.host_start.tolist(), windows.host_end.tolist(), strict=True)
        ]
    )
    if holds.all():
        return windows
    reasons = tuple(
        (name, "saves a checkpoint or evaluates")
        for name, one in zip(windows.names, holds.tolist(), strict=True)
        if one
    )
    return _subset(windows, np.flatnonzero(~holds), reasons)


def _selected(windows: StepWindows, select: str | None) -> StepWindows:
    if select is None:
        return windows
    match = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", select)
    if not match:
        raise ConfigError(
            f"--steps {select[:40]}: write A:B, counted from 0, B not included; for example 1:4"
        )
    chosen = range(len(windows))[slice(*(int(part) if part else None for part in match.groups()))]
    if not len(chosen):
        raise ConfigError(
            f"--steps {select}: selects none of the {len(windows)} steps in the trace"
        )
    others = tuple(
        (name, f"not in --steps {select}")
        for index, name in enumerate(windows.names)
        if index not in chosen
    )
    return _subset(windows, np.asarray(chosen), others)


def _subset(
    windows: StepWindows, keep: NDArray[np.int64], dropped: tuple[tuple[str, str], ...]
) -> StepWindows:
    return StepWindows(
        tuple(windows.names[index] for index in keep.tolist()),
        windows.start[keep],
        windows.end[keep],
        windows.host_start[keep],
        windows.host_end[keep],
        windows.source,
        windows.pattern,
        windows.dropped + dropped,
    )
