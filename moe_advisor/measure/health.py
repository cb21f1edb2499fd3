"""What a capture's own evidence says about its completeness, and which GPU is slow."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import among
from moe_advisor.intervals import Intervals
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.steps import StepWindows
from moe_advisor.model import ActivityKind, CaptureIssue, CollectiveKind, RankTrace, Severity
from moe_advisor.privacy import safe_text
from moe_advisor.result import SlowGpu, SlowKernel
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import Role
from moe_advisor.roles.taxonomy import Taxonomy

LOST_SHARE = 0.05
"""More launches without a kernel, or kernels without a launch, than this are lost records: healthy
captures have none inside their steps."""

EARLY_NS = 50_000
"""CUPTI converts GPU times to the host's clock within some µs; 50 µs before its launch no kernel
can begin."""

EARLY_SHARE = 0.01
"""Up to one activity in a hundred may be an outlier of the conversion."""

FEWER_KERNELS = 0.5
"""Steps of one job launch the same kernels within some per cent; half of them is another thing."""

MIN_STEPS = 3
"""Of two steps nothing says which is the odd one."""

COMPARED_KERNELS = 40
"""The kernels with the most time are compared between ranks; they are most of any step."""

MIN_MEDIAN_NS = 20_000
"""Kernels shorter than 20 µs are as long as clocks, caches and their neighbours make them."""

MIN_RUNS = 5
"""A median of fewer runs than this is no speed."""

SLOW_GPU = 1.03
"""Peers of one kind run the same kernel within 1 to 2 % of each other in our captures."""

_RECAPTURE_WITH = {
    "nsys": "capture again with fewer steps, flushed before exit: nsys profile --trace=cuda,nvtx "
    "--capture-range=cudaProfilerApi --capture-range-end=stop",
    "torch": "capture again with fewer steps, and end the profiler before the program: "
    "torch.profiler with schedule(wait=1, warmup=1, active=3)",
}

RECAPTURE = " or ".join(_RECAPTURE_WITH.values())
"""What a rank's own issues say, as a rank does not know its profiler; see `for_profiler`."""

_FIXED_WORK = (Role.DENSE_GEMM, Role.ATTENTION)
"""Roles whose work does not depend on how many tokens the router sent."""


def rank_issues(
    rank: RankTrace,
    windows: StepWindows,
    step: NDArray[np.int64],
    taxonomy: Taxonomy,
    calls: Sequence[int],
) -> list[CaptureIssue]:
    """Lost records inside the steps of one rank; `calls` are the names of its CUDA calls."""
    found: list[CaptureIssue] = []
    call = rank.activities["call"].to_numpy()
    inside = (rank.activities["kind"].to_numpy() == ActivityKind.KERNEL) & (step >= 0)
    orphans = int((inside & (call < 0)).sum())
    if orphans > LOST_SHARE * max(int(inside.sum()), 1):
        found.append(
            CaptureIssue(
                "kernels-without-launch",
                Severity.WARNING,
                f"{orphans} of {int(inside.sum())} kernels have no launch call, so host gaps may "
                f"read as dependency idle: {RECAPTURE}",
                orphans,
                rank.rank,
            )
        )
    launches = _kernel_launches(rank, windows, taxonomy, calls)
    lost = launches.copy()
    lost[call[call >= 0]] = False
    missing, launched = int(lost.sum()), int(launches.sum())
    if missing > LOST_SHARE * max(launched, 1):
        found.append(
            CaptureIssue(
                "launches-without-kernel",
                Severity.ERROR,
                f"{missing} of {launched} kernel launches inside the steps left no kernel "
                f"in the trace: busy time is too low and idle too high; {RECAPTURE}",
                missing,
                rank.rank,
            )
        )
    found += _early_kernels(rank, call)
    found += _uneven_steps(rank, windows, np.bincount(step[inside], minlength=len(windows)))
    return found


def _early_kernels(rank: RankTrace, call: NDArray[np.int64]) -> list[CaptureIssue]:
    """GPU work that begins before its launch call: the clocks of host and GPU disagree."""
    if any(issue.id == "clock-skew" for issue in rank.issues):
        return []
    linked = call >= 0
    start = rank.activities["start_ns"].to_numpy()[linked]
    ahead = rank.calls["start_ns"].to_numpy()[call[linked]] - start
    early = int((ahead > EARLY_NS).sum())
    if early <= EARLY_SHARE * max(len(start), 1):
        return []
    message = (
        f"{early} of {len(start)} GPU activities begin more than {EARLY_NS // 1000} µs before "
        "their launch call: host and GPU clocks disagree, so host gaps are uncertain; capture "
        "again after a restart of the profiler"
    )
    return [CaptureIssue("clock-skew", Severity.WARNING, message, early, rank.rank)]


def _uneven_steps(
    rank: RankTrace, windows: StepWindows, kernels: NDArray[np.int64]
) -> list[CaptureIssue]:
    """Steps with far fewer kernels than the others: records were lost, or it was no training."""
    if len(kernels) < MIN_STEPS:
        return []
    usual = float(np.median(kernels))
    few = np.flatnonzero(kernels < FEWER_KERNELS * usual)
    if not len(few) or len(few) == len(kernels):
        return []
    first = int(few[0])
    message = (
        f"{len(few)} of {len(kernels)} steps hold less than half of the usual {usual:.0f} kernels "
        f"({windows.names[first]}: {kernels[first]}): records were lost there, or the step did "
        f"other work; leave them out with --steps, or {RECAPTURE}"
    )
    return [CaptureIssue("uneven-steps", Severity.WARNING, message, len(few), rank.rank)]


def _kernel_launches(
    rank: RankTrace, windows: StepWindows, taxonomy: Taxonomy, calls: Sequence[int]
) -> NDArray[np.bool_]:
    """The kernel launches among the calls inside the steps; graph launches are not among them."""
    name, start = rank.calls["name"].to_numpy(), rank.calls["start_ns"].to_numpy()
    kernel = [
        one
        for one in calls
        if taxonomy.call_kind(rank.names[one]) == "launch" and "LaunchKernel" in rank.names[one]
    ]
    found = np.zeros(len(name), np.bool_)
    # Calls come in order: a step holds those from its start to its end or the next step's start.
    first = np.searchsorted(start, windows.host_start)
    last = np.minimum(np.searchsorted(start, windows.host_end), np.append(first[1:], len(start)))
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        found[low:high] = among(name[low:high], kernel)
    return found


def kernel_speeds(
    rank: RankTrace, roles: RoleTable, step: NDArray[np.int64], comm: Intervals
) -> dict[str, tuple[float, int]]:
    """Kernel, grid and number of undisturbed runs -> (their median ns, ns in all).

    The number is part of the key: one name and grid can serve several shapes, and where overlap
    disturbs different ones on two ranks, their medians are of different work.
    """
    rows = np.flatnonzero(roles.mask(*_FIXED_WORK) & (step >= 0))
    if not len(rows):
        return {}
    table = rank.activities[rows].select("name", "blocks", ns=pl.col("end_ns") - pl.col("start_ns"))
    beside = comm.touches(
        rank.activities["start_ns"].to_numpy()[rows], rank.activities["end_ns"].to_numpy()[rows]
    )
    best = (
        table.filter(pl.Series(~beside))
        .group_by("name", "blocks")
        .agg(pl.col("ns").median().alias("median"), pl.col("ns").sum().alias("all"), pl.len())
        .filter((pl.col("len") >= MIN_RUNS) & (pl.col("median") >= MIN_MEDIAN_NS))
        .sort("all", "name", "blocks", descending=[True, False, False])
        .head(COMPARED_KERNELS)
    )
    return {
        f"{rank.names[name]}|{blocks}|{runs}": (float(median), int(total))
        for name, blocks, median, total, runs in best.iter_rows()
    }


def gpu_slowness(partials: Sequence[RankPartial]) -> dict[int, float]:
    """Rank -> time-weighted duration of its kernels over its peers' median; empty for one rank.

    Pipeline stages hold different layers, and kernels of one name and grid may differ in depth:
    only ranks of one stage are peers.
    """
    return {
        rank: sum(total for _, _, total, _ in kernels)
        / sum(total * peers / median for _, median, total, peers in kernels)
        for rank, kernels in _against_peers(partials).items()
    }


def _against_peers(
    partials: Sequence[RankPartial],
) -> dict[int, list[tuple[str, float, int, float]]]:
    """Rank -> (kernel, its median ns, its ns in all, the median of the peers' medians) each."""
    runs: dict[tuple[int, str], list[tuple[float, int, int]]] = {}
    for one in partials:
        stage = _stage(one)
        for kernel, (median, total) in one.facts.get("kernel_speeds", {}).items():
            runs.setdefault((stage, kernel), []).append((median, one.rank, total))
    found: dict[int, list[tuple[str, float, int, float]]] = {}
    for (_, kernel), members in runs.items():
        if len(members) < 2:
            continue
        members.sort()
        ordered = [median for median, _, _ in members]
        # The median of all others: of the sorted values without the one at `place`.
        low, high = (len(ordered) - 2) // 2, (len(ordered) - 1) // 2
        for place, (median, rank, total) in enumerate(members):
            peers = (ordered[low + (low >= place)] + ordered[high + (high >= place)]) / 2
            found.setdefault(rank, []).append((kernel, median, total, peers))
    return {rank: sorted(found[rank]) for rank in sorted(found)}


NAME_LIMIT = 160
"""Characters of a kernel's name that are shown."""

SHOWN_KERNELS = 8
"""Kernels that show a GPU's slowness: the ones with the most time."""


def slow_gpus(partials: Sequence[RankPartial]) -> list[SlowGpu]:
    """The ranks whose GPU is more than SLOW_GPU slower than its peers, slowest first."""
    slowness = gpu_slowness(partials)
    compared = _against_peers(partials) if max(slowness.values(), default=0) > SLOW_GPU else {}
    found = [
        SlowGpu(
            rank=rank,
            slowness=round(slowness[rank], 6),
            kernels=[
                SlowKernel(
                    name=safe_text(kernel.rsplit("|", 2)[0], NAME_LIMIT),
                    ms=round(median / 1e6, 6),
                    peers_ms=round(peers / 1e6, 6),
                    slowness=round(median / peers, 6),
                )
                for kernel, median, total, peers in sorted(
                    kernels, key=lambda row: (-row[2], row[0])
                )[:SHOWN_KERNELS]
            ],
        )
        for rank, kernels in compared.items()
        if slowness[rank] > SLOW_GPU
    ]
    return sorted(found, key=lambda one: (-one.slowness, one.rank))


def _stage(one: RankPartial) -> int:
    """The rank's pipeline stage; where a pipeline hides it, a number that no other rank has."""
    if Role.PP_P2P.label not in one.roles:
        return 0
    place = one.facts.get("stage")
    return int(place[1]) if place else -1 - one.rank


def run_issues(partials: Sequence[RankPartial], profiler: str) -> list[CaptureIssue]:
    """Ranks that are shorter than their peers, and captures that slow the host down.

    The torch profiler always records operators; in nsys they are NVTX ranges of emit_nvtx.
    """
    most = max((len(one.step_names) for one in partials), default=0)
    found = [
        CaptureIssue(
            "rank-shorter",
            Severity.WARNING,
            f"rank {one.rank} has {len(one.step_names)} whole steps, its peers up to {most}: it "
            f"was cut off, and only common steps are compared; {RECAPTURE}",
            most - len(one.step_names),
            one.rank,
        )
        for one in partials
        if len(one.step_names) < most
    ]
    if profiler == "nsys" and any(one.facts.get("operators") for one in partials):
        found.append(
            CaptureIssue(
                "operator-ranges",
                Severity.WARNING,
                "every operator pushed an NVTX range (emit_nvtx), which slows the host: host gaps "
                "are too large; capture again without emit_nvtx, with ranges for modules only",
            )
        )
    return found


def sparser_ranks(partials: Sequence[RankPartial]) -> list[CaptureIssue]:
    """Ranks without kernels and collectives that their peers of one stage have in the same steps.

    Peers run one program, and a collective needs all members of its group: what is missing was not
    recorded. Kernels alone would not show it, as experts without tokens launch fewer; nor would
    collectives of different groups, which stages have in different numbers.
    """
    stages: dict[int, list[RankPartial]] = {}
    for one in partials:
        stages.setdefault(_stage(one), []).append(one)
    found = []
    for members in stages.values():
        common = set(members[0].step_names).intersection(*(one.step_names for one in members))
        if len(members) < 2 or not common:
            continue
        counts = {one.rank: _recorded(one, common) for one in members}
        fullest = max(counts, key=lambda rank: (counts[rank][0], -rank))
        most, all_of = counts[fullest]
        for rank, (kernels, groups) in sorted(counts.items()):
            shared = groups.keys() & all_of.keys()
            collectives, needed = (sum(one[name] for name in shared) for one in (groups, all_of))
            if max(kernels - (1 - LOST_SHARE) * most, collectives - (1 - LOST_SHARE) * needed) < 0:
                message = (
                    f"rank {rank} has {kernels} of rank {fullest}'s {most} kernels and "
                    f"{collectives} of its {needed} collectives in the same {len(common)} steps, "
                    "which both must have run: the rest was not recorded, so it is left out; "
                    f"{RECAPTURE}"
                )
                lost = most - kernels
                found.append(CaptureIssue("rank-sparser", Severity.ERROR, message, lost, rank))
    return found


def _recorded(one: RankPartial, steps: Set[str]) -> tuple[int, Counter[str]]:
    """Kernels of a rank in these steps, and its collectives there by group, sends left out."""
    kept = np.asarray([name in steps for name in one.step_names])
    kernels = one.counts.get("kernels_per_step", np.zeros(len(kept)))
    table = one.collectives
    told = kept[table.step] & (table.group >= 0) & (table.kind != CollectiveKind.SEND_RECV)
    numbers = Counter(table.group[told].tolist())
    groups = Counter({one.group_names[number]: count for number, count in numbers.items()})
    return int(kernels[kept].sum()), groups


def for_profiler(issues: Sequence[CaptureIssue], profiler: str) -> list[CaptureIssue]:
    """The issues with the command of the profiler that was used, where it is known."""
    command = _RECAPTURE_WITH.get(profiler, RECAPTURE)
    return [replace(one, message=one.message.replace(RECAPTURE, command)) for one in issues]


def memory_levels(rank: RankTrace, windows: StepWindows) -> dict[str, Any]:
    """Growth from the first step's end to the last's and reserved minus allocated at the peak."""
    table = rank.memory
    if len(table) < 2 or not len(windows):
        return {}
    time = table["time_ns"].to_numpy()
    allocated, reserved = table["allocated_bytes"].to_numpy(), table["reserved_bytes"].to_numpy()
    found: dict[str, Any] = {}
    level = allocated if (allocated > 0).any() else reserved
    if len(windows) > 1:
        ends = np.searchsorted(time, [windows.end[0], windows.end[-1]], side="right") - 1
        if ends[0] >= 0 and (level[ends] >= 0).all():
            found["growth_bytes"] = int(level[ends[1]] - level[ends[0]])
    if (allocated > 0).any() and (reserved > 0).any():
        peak = int(np.argmax(allocated))
        if reserved[peak] >= 0:
            found["fragmented_bytes"] = int(reserved[peak] - allocated[peak])
    return found
