"""Measures one rank: every metric, or part of one, that needs no other rank."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import among, distinct
from moe_advisor.intervals import EMPTY, Intervals, merge, places, union
from moe_advisor.measure.blocking import find_blocking
from moe_advisor.measure.causes import find_causes
from moe_advisor.measure.gemms import gemm_work
from moe_advisor.measure.health import kernel_speeds, memory_levels, rank_issues
from moe_advisor.measure.held_sms import held_sms
from moe_advisor.measure.host import (
    Idle,
    divide_idle,
    host_calls,
    issue_times,
    starved_launches,
)
from moe_advisor.measure.kernels import find_kernels
from moe_advisor.measure.layers import Layers, find_layers
from moe_advisor.measure.microbatches import embedding_passes
from moe_advisor.measure.partial import Collectives, PerStep, RankPartial, RolePartial
from moe_advisor.measure.pipeline import PHASES, find_pipeline
from moe_advisor.measure.recompute import by_module, find_recompute
from moe_advisor.measure.states import States, divide
from moe_advisor.measure.steps import StepWindows, find_steps
from moe_advisor.model import (
    NONE,
    ActivityKind,
    CaptureIssue,
    CollectiveKind,
    CopyKind,
    RangeKind,
    RankTrace,
)
from moe_advisor.roles.assign import RoleTable, assign_roles
from moe_advisor.roles.roles import COMMUNICATION, COMPUTE, Family, Role, Source
from moe_advisor.roles.taxonomy import Taxonomy

_GROUPED_LINEAR = re.compile(r"_GroupedLinear|nvte_multi_tensor_gemm|nvte_grouped_gemm")
"""Ranges of Transformer Engine's grouped linear. On Hopper it runs one cuBLAS kernel per expert on
several streams, so its kernels look like those of a loop."""

_MERGED_NODE = re.compile(r"^moe_(dispatch|combine) (forward|backward)")
"""Ranges that Megatron opens only in the schedule that merges two micro-batches."""

OPAQUE_LIMIT = 0.01
"""Opaque CUDA graph launches above this share of the step hide too much: what lies in them is not
measured."""

LARGE_COPY_BYTES = 1 << 20
"""A copy between host and device of at least this size moves activations or states, not counts."""

CLEAN_SAMPLES = 3
"""So many undisturbed runs of the same kernel make a median to compare the overlapped ones with."""

LONG_GAP_NS = 5_000_000
"""A host gap of 5 ms holds hundreds of launches: one of that length is no slow launching, but a
pause (garbage collection, input, logging)."""

BLOCKING_ORDER = (Family.EP, Family.PP, Family.DP, Family.TP, Family.CP, Family.OTHER_COLLECTIVE)
"""Who is named first when several kinds of communication run while compute waits."""

PART_ORDER = (Role.EXPERT_GEMM, *(role for role in COMPUTE if role is not Role.EXPERT_GEMM))
"""Which compute role owns an instant in the stacked bar when two run at once."""


def _names(*roles: Role) -> tuple[str, ...]:
    """The conditions that stand for these roles running."""
    return tuple(f"role:{role.label}" for role in roles)


_FAMILY = {family: _names(*(role for role in Role if role.family is family)) for family in Family}
_COMPUTE = _FAMILY[Family.COMPUTE]
_COMM = _names(*COMMUNICATION)
_COPIES = _FAMILY[Family.COPY]
_BUSY = _names(*Role)


@dataclass(frozen=True)
class MeasuredRank:
    """A rank's partial together with the tables it came from (for timeline and activity export).

    `recompute` says of each activity whether it is forward work run again.
    """

    partial: RankPartial
    trace: RankTrace
    roles: RoleTable
    windows: StepWindows
    idle: Idle
    recompute: NDArray[np.bool_]


def measure_rank(
    rank: RankTrace,
    taxonomy: Taxonomy,
    *,
    step_pattern: str | None = None,
    steps: str | None = None,
) -> MeasuredRank:
    """Everything that one rank's trace alone can tell."""
    roles = assign_roles(rank, taxonomy)
    windows = find_steps(rank, roles, step_pattern, steps)
    working = _Measurement(rank, roles, windows, taxonomy)
    recompute = working.recompute.rows
    return MeasuredRank(working.partial(), rank, roles, windows, working.idle, recompute)


class _Measurement:
    """The working state of one rank's measurement; every set is computed once."""

    def __init__(
        self, rank: RankTrace, roles: RoleTable, windows: StepWindows, taxonomy: Taxonomy
    ) -> None:
        self.rank, self.roles, self.windows, self.taxonomy = rank, roles, windows, taxonomy
        table = rank.activities
        self.start, self.end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
        self.kind = table["kind"].to_numpy()
        self.step = self._step_of(self.start)
        self.span = union(windows.start, windows.end)
        self.busy = union(self.start, self.end)
        self.sets = self._by_role()
        self.families = {
            family: merge(self.sets[role] for role in Role if role.family is family)
            for family in Family
        }
        self.compute_rows = (self.kind == ActivityKind.KERNEL) & (roles.roles < Role.EP_DISPATCH)
        self.compute = self.families[Family.COMPUTE]
        self.comm = merge(self.sets[role] for role in COMMUNICATION)
        self.copies = self.families[Family.COPY]
        self.calls = host_calls(rank, taxonomy)
        issued = issue_times(rank)
        self.idle = divide_idle(rank, issued, self.busy, self.span, self.calls)
        self.starved = starved_launches(rank, issued, self.compute_rows, self.compute, self.span)
        self.pipeline = find_pipeline(
            rank,
            roles,
            windows,
            self.step,
            compute=self.compute,
            other_comm=merge(
                one for role, one in self.sets.items() if role in COMMUNICATION and not _is_pp(role)
            ),
            starved=self.starved,
            sync=self.calls.sync,
        )
        self.starved = self.starved - self.pipeline.held
        self.blocking = self._find_blocking()
        self.causes = find_causes(rank, roles, self.idle, windows, self.calls.kinds, issued)
        self.recompute = find_recompute(rank, roles)
        self.states = self._divide()
        self.layers = self._find_layers()

    def _find_layers(self) -> tuple[Layers, str | None]:
        return find_layers(
            self.rank,
            self.roles,
            self.step,
            steps=len(self.windows),
            passes=self.pipeline.passes,
            merged=embedding_passes(self.rank, self.step, len(self.windows)),
            recompute=self.recompute.rows,
            phases={
                "attention": self.sets[Role.ATTENTION],
                "dispatch": self.sets[Role.EP_DISPATCH] | self.sets[Role.EP_NOTIFY],
                "expert_gemm": self.sets[Role.EXPERT_GEMM],
                "combine": self.sets[Role.EP_COMBINE],
                "gap": self.span - self.busy,
            },
        )

    def _find_blocking(self) -> dict[str, Intervals]:
        """EP time inside the steps that an issued compute kernel waited for, by evidence."""
        ep = np.isin(self.roles.roles, [role for role in Role if role.family is Family.EP])
        found = find_blocking(self.rank, ep, self.compute_rows, self.compute)
        return {
            evidence.name.lower(): (held - self.starved) & self.span
            for evidence, held in found.by_evidence.items()
        }

    def _divide(self) -> States:
        """Every instant of the steps by what ran and what the host did."""
        conditions = {f"role:{role.label}": one for role, one in self.sets.items()}
        conditions |= {f"host:{cause}": one for cause, one in self.idle.by_cause.items()}
        conditions["after_sync"] = self.idle.after_sync
        conditions["starved"] = self.starved
        conditions["recompute"] = self._set(self.recompute.rows)
        conditions["large_copy"] = self._large_copies()
        conditions["unfused_attention"] = self._unfused_attention()
        conditions |= {f"bubble:{phase}": self.pipeline.phases[phase] for phase in PHASES}
        conditions["pipeline"] = self.pipeline.region
        return divide(conditions, self.windows.start, self.windows.end)

    def _step_of(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The step whose window holds each time, or -1."""
        at = places(self.windows.start, times, "right") - 1
        if not len(self.windows):
            return np.full(len(times), -1, np.int64)
        return np.where((at >= 0) & (times < self.windows.end[np.maximum(at, 0)]), at, -1)

    def _set(self, rows: NDArray[np.bool_]) -> Intervals:
        at = np.flatnonzero(rows)
        return union(self.start[at], self.end[at])

    def _by_role(self) -> dict[Role, Intervals]:
        """When each role ran: all rows put into order once instead of picked out for each role."""
        order = np.argsort(self.roles.roles, kind="stable")
        start, end = self.start[order], self.end[order]
        cuts = np.cumsum(np.bincount(self.roles.roles, minlength=len(Role)))
        return {
            role: union(start[low:high], end[low:high])
            for role, low, high in zip(Role, [0, *cuts[:-1].tolist()], cuts.tolist(), strict=True)
        }

    def _count(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        inside = self.step[rows & (self.step >= 0)]
        return np.bincount(inside, minlength=len(self.windows)).astype(np.float64)

    def partial(self) -> RankPartial:
        rank, windows = self.rank, self.windows
        not_measured: dict[str, str] = {}
        if self.recompute.reason:
            not_measured["recompute_ms"] = self.recompute.reason
        times = self._times()
        slowdown = self._overlap_slowdown()
        if slowdown is None:
            not_measured["overlap_slowdown_ms"] = (
                "kernels beside communication have no undisturbed run to compare with"
            )
        else:
            times["overlap_slowdown"] = slowdown
        if not len(rank.calls):
            not_measured |= dict.fromkeys(_NEED_CALLS, "the capture holds no CUDA API calls")
        self._not_measured_behind_graphs(not_measured)
        return RankPartial(
            rank=rank.rank,
            rank_source=rank.rank_source,
            host=rank.host,
            device=rank.device,
            world_size=rank.world_size,
            epoch_ns=rank.epoch_ns,
            step_names=windows.names,
            step_source=windows.source,
            step_pattern=windows.pattern,
            dropped=windows.dropped,
            window_start_ns=windows.start,
            step_ns=windows.end - windows.start,
            times_ns=times,
            counts=self._counts(),
            parts_ns=self._parts(),
            roles=self._roles(),
            collectives=self._collectives(),
            group_names=rank.names,
            ep_exposed=(self.families[Family.EP] - self.compute) & self.span,
            absent_ns=self._absent(),
            idle_ns={
                **{
                    cause: int(self.states.time([f"host:{cause}"]).sum())
                    for cause in self.idle.by_cause
                },
                "dependency": int(times["dependency_idle"].sum()),
            },
            idle_detail=self.causes.detail,
            layers_ns=self.layers[0],
            cause_ns={cause: one.total for cause, one in self.causes.sets.items() if len(one)},
            unclassified=self._unclassified(),
            kernels=find_kernels(rank, self.roles.roles, self.end - self.start, self.step >= 0),
            memory_peak_bytes=self._memory_peak(),
            facts=self._facts(self.recompute.rows),
            environment=rank.environment,
            not_measured=not_measured,
            issues=(*rank.issues, *self._issues()),
        )

    # -------------------------------------------------------------------------------- times

    def _times(self) -> dict[str, PerStep]:
        time, both = self.states.time, self.states.both
        step = self.windows.end - self.windows.start
        host = [f"host:{cause}" for cause in self.idle.by_cause]
        idle = time(lacks=_BUSY)
        times = {
            "step": step,
            "gpu_busy": time(_BUSY),
            "gpu_idle": idle,
            "compute": time(_COMPUTE),
            "compute_absent": time(lacks=_COMPUTE),
            "launch_starved": time(["starved"], lacks=_COMPUTE),
            "blocked_by_comm": time(_COMM, lacks=(*_COMPUTE, "starved")),
            "blocked_by_copy": time(_COPIES, lacks=(*_COMPUTE, *_COMM, "starved")),
            "compute_absent_unresolved": time(lacks=(*_COMPUTE, *_COMM, *_COPIES, "starved")),
            "comm": time(_COMM),
            "comm_exposed": time(_COMM, lacks=_COMPUTE),
            "ep_a2a_blocking": merge(self.blocking.values()).within(
                self.windows.start, self.windows.end
            ),
            "ep_a2a_issued": time(_FAMILY[Family.EP], lacks=(*_COMPUTE, "starved")),
            "ep_notify": time(_names(Role.EP_NOTIFY)),
            "host_gap": time(host),
            "host_gap_after_sync": time(["after_sync"]),
            "dependency_idle": idle - time(host),
            "recompute": time(["recompute"]),
            "recompute_comm": both(["recompute"], _COMM, lacks=_COMPUTE),
            "recompute_permute": both(["recompute"], _names(Role.PERMUTE)),
            "memcpy_exposed": time(_COPIES, lacks=(*_COMPUTE, *_COMM)),
            "offload": time(["large_copy"]),
            "offload_exposed": time(["large_copy"], lacks=_COMPUTE),
            "permute_comm_bound": self._moved_bytes(),
            "attention_unfused": time(["unfused_attention"]),
            "elementwise": time(_names(Role.ELEMENTWISE, Role.CAST_QUANTIZE)),
            "opaque": time(_FAMILY[Family.OPAQUE]),
        }
        if len(self.families[Family.PP]):
            bubbles = [f"bubble:{phase}" for phase in PHASES]
            times["pp_bubble"] = time(bubbles)
            for phase, name in zip(PHASES, bubbles, strict=True):
                times[f"pp_bubble_{phase}"] = time([name])
            times["pipeline_compute"] = both(["pipeline"], _COMPUTE)
            times["pipeline_rest"] = time(["pipeline"], lacks=bubbles)
        for cause in self.idle.by_cause:
            times[f"host_gap_{cause}"] = time([f"host:{cause}"])
        for family, name in (
            (Family.EP, "ep_a2a"),
            (Family.DP, "dp_collective"),
            (Family.TP, "tp_collective"),
            (Family.CP, "cp_collective"),
            (Family.PP, "pp_p2p"),
            (Family.OTHER_COLLECTIVE, "other_collective"),
        ):
            times[name] = time(_FAMILY[family])
            times[f"{name}_exposed"] = time(_FAMILY[family], lacks=_COMPUTE)
        for role in (
            Role.EXPERT_GEMM,
            Role.DENSE_GEMM,
            Role.GEMM_UNATTRIBUTED,
            Role.ATTENTION,
            Role.ROUTER,
            Role.PERMUTE,
            Role.ACTIVATION,
            Role.OPTIMIZER,
        ):
            times[role.label] = time(_names(role))
        return times

    def _large_copies(self) -> Intervals:
        table = self.rank.activities
        between = np.isin(
            table["copy_kind"].to_numpy(), (CopyKind.HOST_TO_DEVICE, CopyKind.DEVICE_TO_HOST)
        )
        return self._set(between & (table["bytes"].to_numpy() >= LARGE_COPY_BYTES))

    def _moved_bytes(self) -> PerStep:
        """Bytes (not ns) per step that EP payload collectives send and receive; 0 if unknown."""
        table = self.rank.collectives
        if not len(table):
            return np.zeros(len(self.windows), np.int64)
        rows = table["activity"].to_numpy()
        payload = self.roles.mask(Role.EP_DISPATCH, Role.EP_COMBINE)[rows] & (self.step[rows] >= 0)
        moved = table["bytes_sent"].to_numpy() + table["bytes_received"].to_numpy()
        total = np.zeros(len(self.windows), np.int64)
        np.add.at(total, self.step[rows][payload], np.maximum(moved[payload], 0))
        return total

    def _unfused_attention(self) -> Intervals:
        """Softmax, masks and dropout of attention, where no fused attention kernel runs."""
        if self.roles.has_nature("attention").any():
            return EMPTY
        return self._set(self.roles.mask(Role.ATTENTION) & ~self.roles.has_nature("gemm"))

    def _overlap_slowdown(self) -> PerStep | None:
        """Extra duration of kernels beside communication against their undisturbed median.

        None where most of the overlapped time has no undisturbed run to compare with.
        """
        rows = np.flatnonzero(self.compute_rows & (self.step >= 0))
        result = np.zeros(len(self.windows), np.int64)
        if not len(rows) or not len(self.comm):
            return result
        beside = self.comm.touches(self.start[rows], self.end[rows])
        if not beside.any():
            return result
        duration = self.end[rows] - self.start[rows]
        table = pl.DataFrame(
            {
                "name": self.rank.activities["name"].to_numpy()[rows],
                "blocks": self.rank.activities["blocks"].to_numpy()[rows],
                "duration": duration,
                "beside": beside,
                "step": self.step[rows],
            }
        )
        clean = (
            table.filter(~pl.col("beside"))
            .group_by("name", "blocks")
            .agg(pl.col("duration").median().alias("median"), pl.len().alias("count"))
            .filter(pl.col("count") >= CLEAN_SAMPLES)
        )
        compared = table.filter("beside").join(clean, on=["name", "blocks"])
        known = compared["duration"].sum()
        if 2 * known < duration[beside].sum():
            return None
        extra = compared.group_by("step").agg((pl.col("duration") - pl.col("median")).sum())
        for step, value in extra.iter_rows():
            result[step] = max(0, round(value))
        return result

    # ------------------------------------------------------------------------- counts, parts

    def _counts(self) -> dict[str, NDArray[np.float64]]:
        windows = self.windows
        kernels = self.kind == ActivityKind.KERNEL
        graph = kernels & self.rank.activities["in_graph"].to_numpy()

        def between(times: NDArray[np.int64]) -> NDArray[np.float64]:
            low = np.searchsorted(times, windows.host_start)
            return (np.searchsorted(times, windows.host_end) - low).astype(np.float64)

        return {
            "kernels_per_step": self._count(kernels),
            "graph_kernels": self._count(graph),
            "syncs_per_step": between(self.calls.sync_starts),
            "alloc_retries": between(self.calls.alloc_frees),
            "device_allocs": between(self._device_allocs()),
            "dtoh_copies": self._count(
                self.rank.activities["copy_kind"].to_numpy() == CopyKind.DEVICE_TO_HOST
            ),
        }

    def _device_allocs(self) -> NDArray[np.int64]:
        """Start of every call that takes device memory from the driver or gives it back, sorted."""
        calls = self.rank.calls
        names = [
            n for n in self.calls.kinds.names if self.rank.names[n].startswith(_DEVICE_ALLOCATIONS)
        ]
        found = among(calls["name"].to_numpy(), names)
        return np.sort(calls["start_ns"].to_numpy()[found])

    def _issues(self) -> list[CaptureIssue]:
        names = self.calls.kinds.names
        return rank_issues(self.rank, self.windows, self.step, self.taxonomy, names)

    def _parts(self) -> dict[str, PerStep]:
        """The stacked bar: every instant of the step once, by a fixed precedence."""
        claims = [(role.label, _names(role)) for role in PART_ORDER]
        claims += [(f"{family}_exposed", _FAMILY[family]) for family in BLOCKING_ORDER]
        claims += [("graph_opaque", _FAMILY[Family.OPAQUE]), ("copies", _COPIES)]
        claims += [(f"host_gap_{cause}", (f"host:{cause}",)) for cause in self.idle.by_cause]
        parts: dict[str, PerStep] = {}
        taken: list[str] = []
        for part, names in claims:
            parts[part] = self.states.time(names, lacks=taken)
            taken += names
        parts["dependency_idle"] = self.states.time(lacks=taken)
        return {part: values for part, values in parts.items() if values.any()}

    def _roles(self) -> dict[str, RolePartial]:
        inside = self.step >= 0
        # One code per (role, evidence): two sums over all activities instead of two per role.
        code = self.roles.roles[inside].astype(np.int64) * len(Source) + self.roles.sources[inside]
        size = len(Role) * len(Source)
        duration = np.bincount(code, weights=(self.end - self.start)[inside], minlength=size)
        durations = duration.reshape(len(Role), len(Source))
        counts = np.bincount(code, minlength=size).reshape(len(Role), len(Source)).sum(axis=1)
        found: dict[str, RolePartial] = {}
        for role in Role:
            if not counts[role]:
                continue
            exposed = role in COMMUNICATION
            found[role.label] = RolePartial(
                int(self.states.time(_names(role)).sum()),
                int(self.states.time(_names(role), lacks=_COMPUTE).sum()) if exposed else 0,
                int(counts[role]),
                tuple(int(value) for value in durations[role]),
            )
        return found

    def _absent(self) -> dict[tuple[str, str], int]:
        """The compute-absent time by (cause, family), each instant once."""
        taken: list[str] = [*_COMPUTE]
        found: dict[tuple[str, str], int] = {}

        def claim(key: tuple[str, str], names: Sequence[str]) -> None:
            found[key] = int(self.states.time(names, lacks=taken).sum())
            taken.extend(names)

        claim(("launch_starved", ""), ["starved"])
        for family in BLOCKING_ORDER:
            claim(("blocked", str(family)), _FAMILY[family])
        claim(("copies", ""), _COPIES)
        claim(("opaque", ""), _FAMILY[Family.OPAQUE])
        found["unresolved", ""] = int(self.states.time(lacks=taken).sum())
        return {key: ns for key, ns in found.items() if ns}

    def _unclassified(self) -> dict[str, tuple[int, int]]:
        rows = self.compute_rows & ~self.roles.known & (self.step >= 0)
        names = self.rank.activities["name"].to_numpy()[rows]
        duration = (self.end - self.start)[rows]
        return {
            self.rank.names[name]: (int((names == name).sum()), int(duration[names == name].sum()))
            for name in distinct(names)
        }

    # -------------------------------------------------------------------------- collectives

    def _collectives(self) -> Collectives:
        """The communication of the steps, in launch order per communicator."""
        rows = np.flatnonzero(among(self.roles.roles, COMMUNICATION) & (self.step >= 0))
        table = self.rank.collectives
        row_of = np.full(len(self.start), -1, np.int32)
        row_of[table["activity"].to_numpy()] = np.arange(len(table), dtype=np.int32)

        def told(name: str, otherwise: int) -> NDArray[np.int64]:
            """A column of the metadata for the communication of `rows`."""
            at = row_of[rows]
            found = np.full(len(rows), otherwise, np.int64)
            found[at >= 0] = table[name].to_numpy()[at[at >= 0]]
            return found

        unnamed = [index for index, text in enumerate(self.rank.names) if not text]
        group = told("group", -1)
        group[np.isin(group, unnamed)] = -1
        channel = self._channel(rows, group)
        launch = np.maximum(self.rank.activities["call"].to_numpy()[rows], 0)
        order = np.lexsort((self.start[rows], launch, channel, self.step[rows]))
        rows, group, channel = rows[order], group[order], channel[order]
        key = self.step[rows] * (int(channel.max(initial=0)) + 1) + channel
        fresh = (
            np.concatenate([[True], key[1:] != key[:-1]]) if len(rows) else np.zeros(0, np.bool_)
        )
        position = np.arange(len(rows))
        first = np.maximum.accumulate(np.where(fresh, position, 0)) if len(rows) else position
        before_end = np.where(
            fresh,
            self.windows.start[self.step[rows]],
            np.concatenate([[0], self.end[rows][:-1]]) if len(rows) else 0,
        )
        before_end = np.minimum(before_end, self.start[rows])
        return Collectives(
            step=self.step[rows],
            group=group,
            index=position - first,
            role=self.roles.roles[rows],
            start_ns=self.start[rows],
            duration_ns=self.end[rows] - self.start[rows],
            **{name: told(name, NONE) for name in (*_BYTES, *_TOLD)},
            compute_before_ns=self.compute.within(before_end, self.start[rows]),
            gap_before_ns=self.idle.host.within(before_end, self.start[rows]),
            backward=self._backward(rows),
            kind=told("kind", 0).astype(np.int8),
        )

    def _channel(self, rows: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
        """What counts its collectives together: the communicator, else the role's family."""
        base = int(group.max(initial=0)) + 1
        by_family = base + _LEADER[self.roles.roles[rows]]
        return np.where(group >= 0, group, by_family).astype(np.int64)

    def _backward(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        call = self.rank.activities["call"].to_numpy()[rows]
        backward = self.roles.contexts.backward
        if not len(backward):
            return np.zeros(len(rows), np.bool_)
        return np.where(call >= 0, backward[np.maximum(call, 0)], False)

    # ------------------------------------------------------------------------- memory, facts

    def _memory_peak(self) -> int | None:
        table = self.rank.memory
        if not len(table):
            return None
        allocated = table["allocated_bytes"].max()
        if isinstance(allocated, int) and allocated > 0:
            return allocated
        reserved = table["reserved_bytes"].max()
        return reserved if isinstance(reserved, int) and reserved > 0 else None

    def _not_measured_behind_graphs(self, not_measured: dict[str, str]) -> None:
        opaque = int(self.states.time(_FAMILY[Family.OPAQUE]).sum())
        if opaque <= OPAQUE_LIMIT * max(self.span.total, 1):
            return
        reason = (
            f"{100 * opaque / max(self.span.total, 1):.0f} % of the step lies in CUDA graph "
            "launches whose kernels were not recorded: capture again with --cuda-graph-trace=node"
        )
        for name in _HIDDEN_BY_GRAPHS:
            not_measured.setdefault(name, reason)

    def _in_graphs(self, role: Role) -> bool | None:
        """Whether most kernels of a role are replayed by CUDA graphs; None where it has none."""
        of_role = self.roles.mask(role) & (self.kind == ActivityKind.KERNEL) & (self.step >= 0)
        number = int(of_role.sum())
        graphed = int((of_role & self.rank.activities["in_graph"].to_numpy()).sum())
        return graphed > number / 2 if number else None

    def _facts(self, recompute: NDArray[np.bool_]) -> dict[str, Any]:
        """What this rank's names and launches show of the configuration."""
        names = self.rank.activities["name"].to_numpy()
        used = distinct(names[(self.kind == ActivityKind.KERNEL) & (self.step >= 0)])
        families = {(f.id if (f := self.taxonomy.kernel(self.rank.names[n])) else "") for n in used}
        experts = self.roles.roles == Role.EXPERT_GEMM
        grouped = experts & self.roles.has_nature("expert_gemm")
        attention = self.roles.has_nature("attention")
        counted = experts & (self.step >= 0)
        bursts = self._count(self.roles.mask(Role.EP_DISPATCH))
        copies = self.rank.activities["copy_kind"].to_numpy()
        text = " ".join(self.rank.names[n] for n in used)
        rank_kinds = self.rank.ranges["kind"].to_numpy()
        ranges = [self.rank.names[n] for n in distinct(self.rank.ranges["name"].to_numpy())]
        moved = self.rank.activities["bytes"].to_numpy() >= LARGE_COPY_BYTES
        return {
            "families": sorted(families),
            "expert_gemms": int(counted.sum()),
            "grouped_expert_gemms": int((grouped & counted).sum()),
            "grouped_linear": any(_GROUPED_LINEAR.search(name) for name in ranges),
            "merged_schedule": any(_MERGED_NODE.search(name) for name in ranges),
            "fused_attention": bool(attention.any()),
            "attention": bool(self.roles.mask(Role.ATTENTION).any()),
            "graphed_attention": self._in_graphs(Role.ATTENTION),
            "graphed_router": self._in_graphs(Role.ROUTER),
            "dispatches": float(bursts.mean()) if len(bursts) else 0.0,
            "fp8_kernels": "e4m3" in text or "qqtst" in text or "_fp8_" in text or "float8" in text,
            "bf16_kernels": "bf16" in text or "BFloat16" in text or "bfloat16" in text,
            "large_host_copies": int(
                (moved & np.isin(copies, (CopyKind.HOST_TO_DEVICE, CopyKind.DEVICE_TO_HOST))).sum()
            ),
            "groups": {
                self.rank.names[group]: family for group, family in self.roles.group_family.items()
            },
            "group_sizes": self._group_sizes(),
            "described_groups": any(
                self.rank.names[d] for d in self.rank.collectives["description"].unique().to_list()
            ),
            "allgather_dispatch": self._gathers(),
            "microbatches": self._microbatches(),
            "operators": bool((rank_kinds == RangeKind.OPERATOR).any()),
            "kernel_speeds": kernel_speeds(self.rank, self.roles, self.step, self.comm),
            "memory": memory_levels(self.rank, self.windows),
            "embedding_passes": embedding_passes(self.rank, self.step, len(self.windows)),
            "blocking": {name: one.total for name, one in self.blocking.items()},
            "stream_waits": len(self.rank.waits) > 0,
            "gemms": gemm_work(self.rank, self.roles, self.step),
            "held_sms": held_sms(self.rank, self.roles.roles, self.step),
            "recompute_modules": by_module(self.rank, self.roles, recompute, self.step),
            "backward_passes": self.pipeline.passes,
            "layers_reason": self.layers[1],
            "stage": self._stage(),
            "long_gap_ns": self._long_gaps(),
            "item_calls": self._item_calls(),
            "recomputes_attention": bool(
                (recompute & (attention | self.roles.mask(Role.ATTENTION))).any()
            ),
            "recomputes_experts": bool((recompute & experts).any()),
            "backward_seen": bool(self.roles.contexts.backward.any()),
            "data_ranges": any(self.taxonomy.context(name) == "data" for name in ranges),
        }

    def _stage(self) -> tuple[tuple[int, ...], int] | None:
        """The ranks of this rank's pipeline and its place among them, from process groups."""
        for group in self.rank.groups:
            if (
                self.taxonomy.group_family(group.description) == "pp"
                and self.rank.rank in group.ranks
                and len(group.ranks) > 1
            ):
                return group.ranks, group.ranks.index(self.rank.rank)
        return None

    def _long_gaps(self) -> dict[str, int]:
        """Host gaps above LONG_GAP_NS: all (ns), quiet ones (ns), and steps that hold a quiet one.

        Quiet means that no thread did anything that a profiler sees.
        """
        gaps = self.idle.by_cause.get("launch", EMPTY)
        long = gaps.ends - gaps.starts >= LONG_GAP_NS
        found = union(gaps.starts[long], gaps.ends[long])
        seen = self.rank.ranges.filter(pl.col("kind") == RangeKind.OPERATOR)
        quiet = found
        for table in (seen, self.rank.calls):
            start, end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
            rows = found.touches(start, end)
            quiet = quiet - union(start[rows], end[rows])
        still = quiet.ends - quiet.starts >= LONG_GAP_NS
        steps = self._step_of(quiet.starts[still])
        return {
            "long": found.total,
            "quiet": int((quiet.ends - quiet.starts)[still].sum()),
            "steps": len(np.unique(steps[steps >= 0])),
        }

    def _item_calls(self) -> int:
        """How often the program asked for a tensor's value on the host (`.item()`)."""
        names = [n for n, text in enumerate(self.rank.names) if text == "aten::item"]
        found = self.rank.ranges.filter(pl.col("name").is_in(names))["start_ns"].to_numpy()
        low = np.searchsorted(found, self.windows.host_start)
        return int((np.searchsorted(found, self.windows.host_end) - low).sum())

    def _gathers(self) -> bool:
        """Whether tokens travel by all-gather and reduce-scatter instead of all-to-all."""
        table = self.rank.collectives
        payload = self.roles.mask(Role.EP_DISPATCH, Role.EP_COMBINE)[table["activity"].to_numpy()]
        kinds = set(table["kind"].to_numpy()[payload].tolist())
        return bool(kinds) and kinds <= {CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER}

    def _group_sizes(self) -> dict[str, int]:
        table = self.rank.collectives
        sizes = table.group_by("group").agg(pl.col("group_size").max()).sort("group")
        return {self.rank.names[g]: size for g, size in sizes.iter_rows() if size > 0}

    def _microbatches(self) -> float | None:
        """Forward ranges per step, where the program names them."""
        ranges = self.rank.ranges
        forward = [
            n
            for n in distinct(ranges["name"].to_numpy())
            if self.taxonomy.context(self.rank.names[n]) == "forward"
        ]
        if not forward or not len(self.windows):
            return None
        starts = ranges.filter(pl.col("name").is_in(forward))["start_ns"].to_numpy()
        at = np.searchsorted(self.windows.host_start, starts, side="right") - 1
        inside = (at >= 0) & (starts < self.windows.host_end[np.maximum(at, 0)])
        return float(inside.sum() / len(self.windows))


def _is_pp(role: Role) -> bool:
    return role.family is Family.PP


_DEVICE_ALLOCATIONS = ("cudaMalloc", "cudaFree", "hipMalloc", "hipFree", "cuMemCreate", "cuMemMap")

_BYTES = ("bytes_sent", "bytes_received", "bytes_self")

_TOLD = ("sequence", "place", "to_low", "to_high", "from_low", "from_high")
"""Columns of the collectives that only some traces tell."""

_LEADER = np.asarray([next(o for o in Role if o.family is role.family) for role in Role], np.int64)
"""Per role, one role that stands for its family, to number families with."""

_NEED_CALLS = (
    *("host_gap_ms", "host_gap_sync_ms", "host_gap_alloc_ms", "host_gap_data_ms"),
    *("host_gap_launch_ms", "host_gap_after_sync_ms", "dependency_idle_ms"),
    *("launch_starved_ms", "compute_absent_unresolved_ms"),
    *("syncs_per_step", "alloc_retries", "device_allocs_per_step"),
)
"""Without launch calls idle time can't be divided, and none of the host's calls is counted."""

_HIDDEN_BY_GRAPHS = (
    "compute_ms",
    "compute_absent_ms",
    "comm_exposed_ms",
    "ep_a2a_exposed_ms",
    "ep_a2a_exposed_share",
    "expert_gemm_ms",
    "expert_gemm_share",
    "a2a_to_expert_gemm",
    "dense_gemm_ms",
    "attention_ms",
    "permute_ms",
    "kernels_per_step",
    "graph_kernel_share",
    "launch_starved_ms",
    "blocked_by_comm_ms",
    "blocked_by_copy_ms",
    "compute_absent_unresolved_ms",
    "ep_a2a_blocking_ms",
)
