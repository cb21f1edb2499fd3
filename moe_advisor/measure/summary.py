"""Merges the ranks' partials into the run's metrics, parts, roles and views."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.intervals import union
from moe_advisor.measure.health import gpu_slowness
from moe_advisor.measure.kernels import merge_kernels
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.partly import EVIDENCE, open_ns, partly_matched, whole_steps
from moe_advisor.measure.peers import WAITING_FAMILIES, Peers, Waiting, bytes_leaving, match_peers
from moe_advisor.measure.registry import METRICS
from moe_advisor.measure.stages import mean, mean_steps, stages_of, weighted
from moe_advisor.measure.why import extra_metrics, why
from moe_advisor.result import (
    AbsentPart,
    CollectiveInstance,
    CollectiveView,
    ComputeAbsent,
    IdleCause,
    Kernel,
    MetricValue,
    RankParts,
    RankSummary,
    RankValue,
    StepPart,
    Unclassified,
    Why,
)
from moe_advisor.result import Role as RoleResult
from moe_advisor.roles.roles import CONFIDENCE, Family, Role, Source

NS_PER_MS = 1_000_000
DECIMALS = 6
"""Milliseconds are kept to the nanosecond; rounding for readers is the outputs' business."""

MAD_TO_SIGMA = 1.4826
"""Makes the median absolute deviation comparable to a standard deviation (normal data)."""

ACHIEVABLE_BANDWIDTH = 0.9
"""Share of the datasheet's memory bandwidth that a plain copy reaches: 3.0 of 3.35 TB/s on H100 and
4.3 of 4.8 TB/s on H200, measured."""

MAX_STEP_ROWS = 256
"""At most so many rank × step bars go into a result; the means always do."""

MAX_INSTANCES = 512
"""At most so many collectives of the representative step go into the heat map."""

LOW_PERCENTILE = 10
"""From one rank alone, the fastest tenth of equal collectives shows the wire without waiting."""

MIN_EQUAL_INSTANCES = 8
"""Fewer equal collectives than this say nothing about the fastest tenth."""

FAMILY_METRIC = {
    Family.EP: "ep_a2a",
    Family.DP: "dp_collective",
    Family.TP: "tp_collective",
    Family.CP: "cp_collective",
}

PART_LABELS = {
    "ep_a2a_exposed_transfer": "EP all-to-all, on the wire",
    "ep_a2a_exposed_wait": "EP all-to-all, waiting",
    "ep_a2a_exposed": "EP all-to-all, exposed",
    "dp_collective_exposed": "DP collectives",
    "tp_collective_exposed": "TP collectives",
    "cp_collective_exposed": "CP collectives",
    "pp_p2p_exposed": "Pipeline P2P",
    "other_collective_exposed": "Other collectives",
    "graph_opaque": "Opaque CUDA graphs",
    "copies": "Copies",
    "host_gap_sync": "Host gap, synchronising call",
    "host_gap_alloc": "Host gap, allocator",
    "host_gap_data": "Host gap, data loading",
    "host_gap_launch": "Host gap, launching",
    "dependency_idle": "Dependency idle",
    "expert_gemm": "Expert GEMM",
    "dense_gemm": "Dense GEMM",
    "gemm_unattributed": "GEMM, unattributed",
    "attention": "Attention",
    "router": "Router",
    "permute": "Permutation",
    "activation": "Activation",
    "norm": "Norms",
    "embedding_loss": "Embedding and loss",
    "optimizer": "Optimizer",
    "cast_quantize": "Casts, quantisation",
    "elementwise": "Elementwise",
    "compute_other": "Other compute",
}


IDLE_LABELS = {
    "sync": "In a synchronising call",
    "dispatcher_split_sync": "Waiting for the dispatcher's split sizes",
    "blocking_copy": "In a blocking copy to the host",
    "alloc": "In the CUDA allocator",
    "data": "Loading data",
    "dispatcher_count_wait": "Dispatcher polling token counts on the host",
    "module_load": "Loading a CUDA module",
    "profiler": "Profiler at work (not in an unprofiled run)",
    "gc_suspected": "Recurring pause without any call: garbage collection suspected",
    "cuda_call": "In launch and other CUDA calls",
    "python": "Host code between CUDA calls",
    "host_unknown": "On the way to the next launch, nothing visible",
    "dependency_stream": "Issued, behind work of another stream",
    "dependency_peer": "Issued, behind communication of another stream",
    "dependency_copy": "Issued, behind a copy of another stream",
    "dependency_queue": "Issued, start latency behind its own stream",
    "dependency_graph": "Between kernels of one CUDA graph",
    "dependency_unknown": "Issued at an unknown time",
}


@dataclass(frozen=True)
class Summary:
    """The run as numbers; rules, walls and outputs work on this."""

    metrics: dict[str, MetricValue]
    peers: Peers
    step_parts: list[StepPart]
    parts_by_rank: list[RankParts]
    parts_by_step: list[RankParts]
    compute_absent: ComputeAbsent | None
    idle_causes: list[IdleCause]
    roles: list[RoleResult]
    unclassified: list[Unclassified]
    ranks: list[RankSummary]
    collectives: list[CollectiveView]
    wait_causes_ms: dict[str, float] | None
    """Mean EP waiting per step by cause: host, imbalance, compute, unexplained."""
    layers: list[dict[str, Any]] = field(default_factory=list)
    """Mean ms per step by layer and phase, `forward_ms` and `backward_ms`."""
    kernels: list[Kernel] = field(default_factory=list)
    why: Why | None = None
    layers_reason: str | None = None
    """Why there are no layers."""


def summarise(partials: Sequence[RankPartial], hardware: Mapping[str, Any]) -> Summary:
    """The summary of any set of ranks; their order does not matter."""
    stepped = sorted((one for one in partials if len(one.step_names)), key=lambda one: one.rank)
    ranks = weighted(stepped)
    peers = match_peers(ranks, hardware.get("nvlink_domain_size"))
    tables = why(ranks, peers, hardware) if ranks else None
    builder = _Metrics(ranks, peers, hardware, tables)
    metrics = builder.build()
    split = {one.rank: _split_parts(one, peers.by_rank[one.rank]) for one in ranks}
    by_rank = [_rank_parts(one, split[one.rank], None) for one in ranks]
    return Summary(
        metrics=metrics,
        peers=peers,
        step_parts=_mean_parts(ranks, by_rank),
        parts_by_rank=by_rank,
        parts_by_step=_parts_by_step(ranks, split),
        compute_absent=_compute_absent(ranks),
        idle_causes=_idle_causes(ranks),
        roles=_roles(ranks),
        unclassified=_unclassified(ranks),
        ranks=_rank_summaries(ranks, peers),
        collectives=_collective_views(ranks, peers),
        layers=(layers := _layers(ranks)),
        layers_reason=None if layers else _no_layers(ranks),
        kernels=merge_kernels(ranks),
        why=tables,
        wait_causes_ms=_wait_causes(ranks, peers, metrics),
    )


# ------------------------------------------------------------------------------------- metrics


class _Metrics:
    """Builds the metric table; everything not measured gets its reason here."""

    def __init__(
        self,
        ranks: Sequence[RankPartial],
        peers: Peers,
        hardware: Mapping[str, Any],
        tables: Why | None,
    ) -> None:
        self.ranks, self.peers, self.hardware, self.tables = ranks, peers, hardware, tables
        self.found: dict[str, MetricValue] = {}

    def build(self) -> dict[str, MetricValue]:
        if not self.ranks:
            reason = "no GPU work inside a step"
            return {name: _not_measured(name, reason) for name in METRICS}
        for name in METRICS:
            key = name.removesuffix("_ms")
            if name.endswith("_ms") and all(key in one.times_ns for one in self.ranks):
                self._per_rank(name, [one.times_ns[key] / NS_PER_MS for one in self.ranks])
        for name in ("kernels_per_step", "syncs_per_step", "alloc_retries"):
            self._per_rank(name, [one.counts[name] for one in self.ranks])
        self._per_rank(
            "device_allocs_per_step", [one.counts["device_allocs"] for one in self.ranks]
        )
        self._shares()
        self._slowness()
        self._waiting()
        self._floors()
        self._tokens_and_rate()
        self._memory()
        self._levels()
        self._microbatches()
        self._pipeline()
        clocks = self.tables.clocks if self.tables else []
        self.found |= extra_metrics(self.ranks, self.peers, self.hardware, self.found, clocks)
        for one in self.ranks:
            for name, reason in one.not_measured.items():
                self.found[name] = _not_measured(name, f"rank {one.rank}: {reason}")
        for name in METRICS:
            self.found.setdefault(name, _not_measured(name, _REASONS.get(name, "not computed yet")))
        return {name: self.found[name] for name in METRICS}

    def value(self, name: str) -> float:
        return self.found[name].value or 0.0

    def _per_rank(
        self, name: str, values: Sequence[NDArray[np.float64]], basis: str | None = None
    ) -> None:
        """A metric from one array per rank with one value per step of that rank."""
        per_rank = [
            RankValue(
                rank=one.rank,
                value=_round(float(np.mean(steps))),
                steps=[_round(float(value)) for value in steps],
            )
            for one, steps in zip(self.ranks, values, strict=True)
        ]
        self.found[name] = MetricValue(
            status="measured",
            value=_round(mean(self.ranks, [value.value or 0.0 for value in per_rank])),
            unit=METRICS[name].unit,
            spread=_spread(self.ranks, values),
            basis=basis,
            per_rank=per_rank,
        )

    def _zero(self, name: str, basis: str) -> None:
        self._per_rank(name, [np.zeros(len(one.step_names)) for one in self.ranks], basis)

    def _ratio(self, name: str, above: str, below: str, absent: str) -> None:
        """The ratio of two metrics' run values, and of their rank values."""
        top, bottom = self.found[above], self.found[below]
        if (not top.value and top.value is None) or not bottom.value:
            self.found[name] = _not_measured(name, absent)
            return
        per_rank = [
            RankValue(
                rank=a.rank,
                value=_round(a.value / b.value) if a.value is not None and b.value else None,
                steps=[_round(x / y) if y else 0.0 for x, y in zip(a.steps, b.steps, strict=True)],
            )
            for a, b in zip(top.per_rank, bottom.per_rank, strict=True)
        ]
        steps = [np.asarray(one.steps) for one in per_rank]
        measured = {one.rank for one in per_rank}
        self.found[name] = MetricValue(
            status="measured",
            value=_round((top.value or 0.0) / bottom.value),
            unit=METRICS[name].unit,
            spread=_spread([one for one in self.ranks if one.rank in measured], steps),
            per_rank=per_rank,
        )

    def _shares(self) -> None:
        self._ratio("ep_a2a_exposed_share", "ep_a2a_exposed_ms", "step_ms", "no step time")
        self._ratio("expert_gemm_share", "expert_gemm_ms", "step_ms", "no step time")
        for name in ("a2a_to_expert_gemm", "permute_to_expert_gemm"):
            above = "ep_a2a_exposed_ms" if name.startswith("a2a") else "permute_ms"
            self._ratio(name, above, "expert_gemm_ms", "no expert GEMM found in the trace")
        kernels = [np.maximum(one.counts["kernels_per_step"], 1) for one in self.ranks]
        graph = [one.counts["graph_kernels"] for one in self.ranks]
        self._per_rank("graph_kernel_share", [g / k for g, k in zip(graph, kernels, strict=True)])
        opaque = [one.times_ns["opaque"] / np.maximum(one.step_ns, 1) for one in self.ranks]
        self._per_rank("graph_opaque_share", opaque)
        unknown = [
            np.full(len(one.step_names), _unknown_ns(one) / max(int(one.step_ns.sum()), 1))
            for one in self.ranks
        ]
        self._per_rank("unclassified_share", unknown)

    def _waiting(self) -> None:
        for family in WAITING_FAMILIES:
            name = FAMILY_METRIC[family]
            labels = {role.label for role in Role if role.family is family}
            involved = [one for one in self.ranks if labels & set(one.roles)]
            if not involved:
                self._zero(f"{name}_wait_ms", "no such communication in the trace")
                self._zero(f"{name}_transfer_ms", "no such communication in the trace")
                continue
            if all(_all_matched(one, self.peers.by_rank[one.rank], family) for one in involved):
                waits = [self.peers.by_rank[one.rank].wait[family] for one in self.ranks]
                moves = [self.peers.by_rank[one.rank].transfer[family] for one in self.ranks]
                self._per_rank(f"{name}_wait_ms", [one / NS_PER_MS for one in waits])
                self._per_rank(f"{name}_transfer_ms", [one / NS_PER_MS for one in moves])
            else:
                self.found |= self._partly(family, name) or self._estimate_waiting(family, name)

    def _partly(self, family: Family, name: str) -> dict[str, MetricValue] | None:
        """From what was matched, where some ranks lack collectives; None if that is too little."""
        waiting = self.peers.by_rank
        rows = {one.rank: _family_rows(one, family) for one in self.ranks}
        lost = sum(int((~waiting[rank].matched[at]).sum()) for rank, at in rows.items())
        told = f"{lost} of {sum(map(len, rows.values()))} collectives (all ranks) stay unmatched"
        if self.peers.realigned:
            told += "; where ranks differ, realigned by " + ", ".join(
                f"{EVIDENCE[how]} ({number})"
                for how, number in sorted(self.peers.realigned.items())
            )
        return partly_matched(
            name,
            self.ranks,
            {rank: one.wait[family] for rank, one in waiting.items()},
            {rank: one.transfer[family] for rank, one in waiting.items()},
            {
                one.rank: open_ns(one, rows[one.rank], waiting[one.rank].matched)
                for one in self.ranks
            },
            told,
        )

    def _estimate_waiting(self, family: Family, name: str) -> dict[str, MetricValue]:
        """Bounds from the ranks at hand alone: bytes over the link below, fast repeats above."""
        missing = "; ".join(
            f"{group}: {why}" for group, why in sorted(self.peers.unmatched_groups.items())
        )
        reason = f"needs all ranks of the group to tell waiting from transfer ({missing[:200]})"
        bounds = [_transfer_bounds(one, family, self.hardware) for one in self.ranks]
        if any(bound is None for bound in bounds) or not bounds:
            return {
                key: _not_measured(key, reason)
                for key in (f"{name}_wait_ms", f"{name}_transfer_ms")
            }
        low = mean(self.ranks, [bound[0] for bound in bounds if bound]) / NS_PER_MS
        high = mean(self.ranks, [bound[1] for bound in bounds if bound]) / NS_PER_MS
        total = mean(self.ranks, [bound[2] for bound in bounds if bound]) / NS_PER_MS
        basis = (
            "from single ranks: bytes over the link's rate below, the fastest tenth of equal "
            "collectives above"
        )
        transfer = MetricValue(
            status="estimated",
            value=_round(high),
            unit="ms/step",
            low=_round(low),
            high=_round(high),
            basis=basis,
        )
        wait = MetricValue(
            status="estimated",
            value=_round(max(total - high, 0.0)),
            unit="ms/step",
            low=_round(max(total - high, 0.0)),
            high=_round(max(total - low, 0.0)),
            basis=basis,
        )
        return {f"{name}_transfer_ms": transfer, f"{name}_wait_ms": wait}

    def _floors(self) -> None:
        bandwidth = self.hardware.get("memory_bandwidth_gbps")
        if not bandwidth:
            reason = "the GPU's memory bandwidth is not known"
        elif not all(one.times_ns["permute_comm_bound"].any() for one in self.ranks):
            reason = "the bytes that dispatch and combine move are not in the trace"
        else:
            reason = None
        unfused = [one.times_ns["attention_unfused"] / NS_PER_MS for one in self.ranks]
        if reason:
            self.found["permute_floor_ms"] = _not_measured("permute_floor_ms", reason)
            if any(one.any() for one in unfused):
                self._per_rank("compute_excess_ms", unfused, "unfused attention only: " + reason)
            else:
                self.found["compute_excess_ms"] = _not_measured("compute_excess_ms", reason)
            return
        # Each byte sent was read and written by a permutation before the wire, each byte received
        # by one after it: two passes over memory per byte moved.
        rate = float(bandwidth or 0) * ACHIEVABLE_BANDWIDTH * 1e9 / 1e3  # bytes per ms
        floors = [2 * one.times_ns["permute_comm_bound"] / rate for one in self.ranks]
        permutes = [one.times_ns["permute"] / NS_PER_MS for one in self.ranks]
        self._per_rank("permute_floor_ms", floors)
        self._per_rank(
            "compute_excess_ms",
            [
                np.maximum(permute - floor, 0.0) + attention
                for permute, floor, attention in zip(permutes, floors, unfused, strict=True)
            ],
        )

    def _tokens_and_rate(self) -> None:
        if self.peers.imbalance is None:
            reason = self.peers.imbalance_reason or "token counts are not in the trace"
            self.found["expert_token_imbalance"] = _not_measured("expert_token_imbalance", reason)
        else:
            self.found["expert_token_imbalance"] = MetricValue(
                status="measured", value=_round(self.peers.imbalance), unit="max/mean"
            )
        rates = []
        for one in self.ranks:
            waiting = self.peers.by_rank[one.rank]
            sent, rows = bytes_leaving(one.collectives, waiting.matched)
            transfer = int(waiting.transfer[Family.EP].sum())
            if rows and transfer:
                rates.append(RankValue(rank=one.rank, value=_round(sent / transfer)))
        if len(rates) == len(self.ranks):
            self.found["ep_a2a_bus_gbps"] = MetricValue(
                status="measured",
                value=_round(mean(self.ranks, [rate.value or 0.0 for rate in rates])),
                unit="GB/s",
                per_rank=rates,
            )
        else:
            self.found["ep_a2a_bus_gbps"] = _not_measured(
                "ep_a2a_bus_gbps", "needs the sizes of EP collectives and all ranks of their group"
            )

    def _memory(self) -> None:
        peaks = [one for one in self.ranks if one.memory_peak_bytes]
        if not peaks:
            return
        values = [
            RankValue(rank=one.rank, value=_round((one.memory_peak_bytes or 0) / 2**30))
            for one in peaks
        ]
        worst = max(value.value or 0.0 for value in values)
        self.found["memory_peak_gib"] = MetricValue(
            status="measured", value=worst, unit="GiB", per_rank=values, basis="highest rank"
        )
        room = [
            RankValue(
                rank=one.rank,
                value=_round((one.device.memory_bytes - (one.memory_peak_bytes or 0)) / 2**30),
            )
            for one in peaks
            if one.device.memory_bytes
        ]
        if room:
            self.found["memory_headroom_gib"] = MetricValue(
                status="measured",
                value=min(value.value or 0.0 for value in room),
                unit="GiB",
                per_rank=room,
                basis="lowest rank",
            )

    def _slowness(self) -> None:
        ratios = gpu_slowness(self.ranks)
        if not ratios:
            return
        slowest = max(sorted(ratios), key=lambda rank: ratios[rank])
        self.found["gpu_slowness"] = MetricValue(
            status="measured",
            value=_round(ratios[slowest]),
            unit="ratio",
            basis=f"slowest is rank {slowest}",
            per_rank=[RankValue(rank=rank, value=_round(ratios[rank])) for rank in sorted(ratios)],
        )

    def _levels(self) -> None:
        for name, key in (
            ("memory_growth_gib", "growth_bytes"),
            ("memory_fragmentation_gib", "fragmented_bytes"),
        ):
            values = [
                RankValue(rank=one.rank, value=_round(one.facts["memory"][key] / 2**30))
                for one in self.ranks
                if key in one.facts.get("memory", {})
            ]
            if values:
                self.found[name] = MetricValue(
                    status="measured",
                    value=max(value.value or 0.0 for value in values),
                    unit="GiB",
                    per_rank=values,
                    basis="highest rank",
                )

    def _microbatches(self) -> None:
        counts = [one.facts.get("microbatches") for one in self.ranks]
        known = [count for count in counts if count]
        basis = "forward ranges per step"
        if not known:
            known, basis = _passes_per_step(self.ranks)
        passes = [one.facts.get("backward_passes") for one in self.ranks]
        if not known:
            known = [n for one in self.ranks if (n := one.facts.get("embedding_passes"))]
            known = known if len(set(known)) == 1 else []
            basis = "gradients of the embedding per step: one per micro-batch in any schedule"
        if not known and all(passes):
            self.found["microbatches_per_step"] = _not_measured(
                "microbatches_per_step",
                f"{passes[0]:g} backward passes per step are micro-batches × model chunks; the "
                "trace does not tell the chunks",
            )
        if known:
            self.found["microbatches_per_step"] = MetricValue(
                status="measured",
                value=_round(float(np.mean(known))),
                unit="count/step",
                basis=basis,
            )

    def _pipeline(self) -> None:
        """The ideal bubble and the stages' imbalance; zeros where no pipeline is in the trace."""
        names = [name for name in METRICS if name.startswith(("pp_bubble", "pp_stage"))]
        if not any(Role.PP_P2P.label in one.roles for one in self.ranks):
            for name in names:
                self._zero(name, "no pipeline communication in the trace")
            return
        stages = stages_of(self.ranks)
        if stages is None:
            reason = "which ranks form a pipeline is not in the trace: give all of its ranks"
            for name in ("pp_bubble_ideal_ms", "pp_stage_imbalance_ms"):
                self.found[name] = _not_measured(name, reason)
            return
        size, stage_of = stages
        passes = [one.facts.get("backward_passes") for one in self.ranks]
        if all(passes):
            ideal = [
                (size - 1) / float(count or 1) * one.times_ns["pipeline_rest"] / NS_PER_MS
                for one, count in zip(self.ranks, passes, strict=True)
            ]
            chunks = _round(float(np.mean([count or 0 for count in passes])))
            self._per_rank(
                "pp_bubble_ideal_ms", ideal, f"{size} stages, {chunks:g} backward passes per step"
            )
        else:
            reason = "whole backward passes are not in the trace of every rank"
            self.found["pp_bubble_ideal_ms"] = _not_measured("pp_bubble_ideal_ms", reason)
        busy: dict[int, list[float]] = {}
        for one, stage in zip(self.ranks, stage_of, strict=True):
            spent = float(one.times_ns["pipeline_compute"].mean()) / NS_PER_MS
            busy.setdefault(stage, []).append(spent)
        if len(busy) < size:
            self.found["pp_stage_imbalance_ms"] = _not_measured(
                "pp_stage_imbalance_ms", f"{len(busy)} of {size} pipeline stages were read"
            )
            return
        means = {stage: float(np.mean(values)) for stage, values in busy.items()}
        slowest = max(sorted(means), key=lambda stage: means[stage])
        excess = means[slowest] - float(np.mean(list(means.values())))
        self.found["pp_stage_imbalance_ms"] = MetricValue(
            status="measured",
            value=_round(excess),
            unit="ms/step",
            basis=f"slowest is stage {slowest} of {size} with {means[slowest]:.1f} ms of compute",
        )


def _passes_per_step(ranks: Sequence[RankPartial]) -> tuple[list[float], str]:
    """Micro-batches from the backward passes; a pipeline's chunks are passes of their own."""
    passes = [one.facts.get("backward_passes") for one in ranks]
    known = [float(count) for count in passes if count]
    if not known or len(known) < len(passes):
        return [], ""
    if not any(Role.PP_P2P.label in one.roles for one in ranks):
        return known, "backward passes per step, from launch order"
    return [], ""


_REASONS = {
    "memory_peak_gib": "no memory events in the trace; give --log or capture again with them",
    "memory_headroom_gib": "no memory events in the trace; give --log or capture again with them",
    "microbatches_per_step": "neither forward ranges nor whole backward passes are in the trace",
    "memory_growth_gib": "needs memory events over two steps or more",
    "memory_fragmentation_gib": "needs allocated and reserved levels (torch profile_memory=True)",
    "gpu_slowness": "needs two ranks that run the same kernels",
    "expert_gemm_imbalance": "needs all ranks of an expert-parallel group",
    "balance_saving_ms": "needs token counts of all ranks of an expert-parallel group",
    "tokens_per_s_per_gpu": "needs the batch from --config and the unprofiled step from --log",
    "model_tflops_per_gpu": "needs the unprofiled step from --log",
    "mfu": "needs the model FLOPs from --config or --log",
}


def _not_measured(name: str, reason: str) -> MetricValue:
    return MetricValue(status="not_measured", value=None, unit=METRICS[name].unit, reason=reason)


def _round(value: float) -> float:
    return round(float(value), DECIMALS)


def _spread(ranks: Sequence[RankPartial], values: Sequence[NDArray[np.float64]]) -> float | None:
    """Median absolute deviation over the steps that all ranks have, scaled to sigma."""
    steps = min(len(one) for one in values)
    if steps < 2:
        return None
    means = mean_steps(ranks, [one[:steps] for one in values])
    return _round(MAD_TO_SIGMA * float(np.median(np.abs(means - np.median(means)))))


def _unknown_ns(one: RankPartial) -> int:
    return sum(ns for _, ns in one.unclassified.values())


def _family_rows(one: RankPartial, family: Family) -> NDArray[np.int64]:
    roles = [role for role in Role if role.family is family]
    return np.flatnonzero(np.isin(one.collectives.role, roles))


def _all_matched(one: RankPartial, waiting: Waiting, family: Family) -> bool:
    return bool(waiting.matched[_family_rows(one, family)].all())


def _whole(one: RankPartial, waiting: Waiting, family: Family) -> NDArray[np.bool_]:
    """Steps of which all of a family's collectives were matched."""
    rows = _family_rows(one, family)
    if waiting.matched[rows].all():
        return np.ones(len(one.step_names), np.bool_)
    unmatched = open_ns(one, rows, waiting.matched)
    return whole_steps(waiting.wait[family], waiting.transfer[family], unmatched)


def _transfer_bounds(
    one: RankPartial, family: Family, hardware: Mapping[str, Any]
) -> tuple[float, float, float] | None:
    """(low, high, whole duration) in ns per step of one rank's collectives, or None."""
    table = one.collectives
    rows = np.isin(table.role, [role for role in Role if role.family is family])
    if not rows.any():
        return None
    rate = hardware.get("nvlink_gbps_per_direction")
    sizes = np.where(table.bytes_sent[rows] >= 0, table.bytes_sent[rows], 0)
    leaving = np.maximum(sizes - np.maximum(table.bytes_self[rows], 0), 0)
    low = float(leaving.sum()) / float(rate) if rate else 0.0
    duration = table.duration_ns[rows].astype(np.float64)
    # Sizes within a factor of 1.1 count as equal.
    bucket = np.round(np.log(np.maximum(sizes, 1)) / np.log(1.1)).astype(np.int64)
    high = 0.0
    for value in np.unique(bucket).tolist():
        equal = duration[bucket == value]
        if len(equal) < MIN_EQUAL_INSTANCES:
            high += float(equal.sum())
        else:
            fast = float(np.percentile(equal, LOW_PERCENTILE))
            high += float(np.minimum(equal, fast).sum())
    steps = len(one.step_names)
    low = min(low, high)
    return low / steps, high / steps, float(duration.sum()) / steps


# --------------------------------------------------------------------------------- bars, views


def part_family(part: str) -> str:
    """The bracket of the stacked bar that a part belongs to."""
    if part.startswith("host_gap") or part == "dependency_idle":
        return "idle"
    if part == "copies":
        return "copies"
    if part == "graph_opaque":
        return "opaque"
    return "exposed_communication" if "_exposed" in part else "compute"


def _split_parts(one: RankPartial, waiting: Waiting) -> dict[str, NDArray[np.int64]]:
    """The rank's parts with exposed EP time divided into wire and waiting, ns per step."""
    parts = dict(one.parts_ns)
    exposed = parts.pop("ep_a2a_exposed", None)
    if exposed is None:
        return parts
    result = {name: values for name, values in parts.items() if part_family(name) == "compute"}
    if _all_matched(one, waiting, Family.EP) and len(one.collectives):
        table = one.collectives
        ep = np.isin(table.role, [role for role in Role if role.family is Family.EP])
        waits = union(table.start_ns[ep], waiting.wait_ends_ns[ep])
        window_end = one.window_start_ns + one.step_ns
        waited = (one.ep_exposed & waits).within(one.window_start_ns, window_end)
        waited = np.minimum(waited, exposed)
        result["ep_a2a_exposed_transfer"] = exposed - waited
        result["ep_a2a_exposed_wait"] = waited
    else:
        result["ep_a2a_exposed"] = exposed
    for name, values in parts.items():
        result.setdefault(name, values)
    return result


_Parts = dict[str, NDArray[np.int64]]


def _rank_parts(one: RankPartial, parts: _Parts, step: int | None) -> RankParts:
    def ms(values: NDArray[np.int64]) -> float:
        chosen = float(values[step]) if step is not None else float(values.mean())
        return _round(chosen / NS_PER_MS)

    return RankParts(
        rank=one.rank,
        step=None if step is None else one.step_names[step],
        step_ms=ms(one.step_ns),
        parts=[
            StepPart(part=name, family=part_family(name), label=PART_LABELS[name], ms=ms(values))  # type: ignore[arg-type]
            for name, values in parts.items()
            if values.any()
        ],
    )


def _mean_parts(ranks: Sequence[RankPartial], by_rank: Sequence[RankParts]) -> list[StepPart]:
    """Means over ranks; a part that a rank lacks counts as zero there."""
    order = list(PART_LABELS)
    totals: dict[str, float] = {}
    shown: dict[str, StepPart] = {}
    for rank, one in zip(ranks, by_rank, strict=True):
        for part in one.parts:
            totals[part.part] = totals.get(part.part, 0.0) + part.ms * rank.weight
            shown[part.part] = part
    rank_of = {
        name: (
            ("compute", "exposed_communication", "opaque", "copies", "idle").index(
                part_family(name)
            ),
            order.index(name),
        )
        for name in totals
    }
    rank_of = {name: ((-1, 0) if name == "expert_gemm" else key) for name, key in rank_of.items()}
    return [
        StepPart(
            part=name,
            family=shown[name].family,
            label=shown[name].label,
            ms=_round(totals[name] / len(by_rank)),
        )
        for name in sorted(totals, key=lambda name: rank_of[name])
    ]


def _parts_by_step(ranks: Sequence[RankPartial], split: Mapping[int, _Parts]) -> list[RankParts]:
    """Every step of every rank if they are few, else evenly spread ones of the first ranks."""
    shown = ranks[:MAX_STEP_ROWS]
    each = max(MAX_STEP_ROWS // max(len(shown), 1), 1)
    return [
        _rank_parts(one, split[one.rank], step)
        for one in shown
        for step in _evenly(len(one.step_names), each)
    ]


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, most)})


def _mean_ms(ranks: Sequence[RankPartial], ns_of: Callable[[RankPartial], float]) -> float:
    """Mean over ranks of a per-rank total divided by that rank's steps."""
    return _round(mean(ranks, [ns_of(one) / len(one.step_names) for one in ranks]) / NS_PER_MS)


def _compute_absent(ranks: Sequence[RankPartial]) -> ComputeAbsent | None:
    if not ranks:
        return None
    keys = sorted({key for one in ranks for key in one.absent_ns})
    labels = {
        "launch_starved": "Launch starved: the next compute kernel was not issued yet",
        "copies": "Copies",
        "opaque": "Opaque CUDA graphs",
        "unresolved": "Issued, and nothing running that explains the delay",
    }
    parts = [
        AbsentPart(
            cause=cause,
            role=family or None,
            label=labels.get(cause) or f"Blocked by {family.replace('_', ' ')}",
            ms=_mean_ms(ranks, lambda one, key=(cause, family): one.absent_ns.get(key, 0)),  # type: ignore[misc]
        )
        for cause, family in keys
    ]
    parts.sort(key=lambda part: (-part.ms, part.cause, part.role or ""))
    total = _mean_ms(ranks, lambda one: float(one.times_ns["compute_absent"].sum()))
    return ComputeAbsent(
        ms=total, parts=parts, residual_ms=_round(total - sum(part.ms for part in parts))
    )


def _idle_causes(ranks: Sequence[RankPartial]) -> list[IdleCause]:
    if not ranks:
        return []
    found = []
    for cause, label in IDLE_LABELS.items():
        ms = _mean_ms(ranks, lambda one, cause=cause: one.cause_ns.get(cause, 0))  # type: ignore[misc]
        if not ms:
            continue
        names = sorted({name for one in ranks for name in one.idle_detail.get(cause, {})})
        detail = [
            {
                "name": name,
                "count": _round(
                    mean(
                        ranks,
                        [_detail(one, cause, name)[0] / len(one.step_names) for one in ranks],
                    )
                ),
                "ms": _mean_ms(ranks, lambda one, c=cause, n=name: _detail(one, c, n)[1]),  # type: ignore[misc]
            }
            for name in names
        ]
        detail.sort(key=lambda row: (-row["ms"], row["name"]))  # type: ignore[operator]
        found.append(IdleCause(cause=cause, label=label, ms=ms, detail=detail))
    return found


def _detail(one: RankPartial, cause: str, name: str) -> tuple[int, int]:
    return one.idle_detail.get(cause, {}).get(name, (0, 0))


def _roles(ranks: Sequence[RankPartial]) -> list[RoleResult]:
    if not ranks:
        return []
    step = mean(ranks, [one.step_ns.mean() for one in ranks]) / NS_PER_MS
    found = []
    for role in Role:
        present = [one for one in ranks if role.label in one.roles]
        if not present:
            continue

        def of(one: RankPartial, name: str, label: str = role.label) -> float:
            return float(getattr(one.roles[label], name)) if label in one.roles else 0.0

        sources = np.sum([one.roles[role.label].sources for one in present], axis=0)
        shares = {
            source.name.lower(): _round(float(value) / max(float(sources.sum()), 1.0))
            for source, value in zip(Source, sources, strict=True)
            if value
        }
        weakest = max(
            (source for source in Source if shares.get(source.name.lower(), 0.0) >= 0.1),
            default=Source.METADATA,
        )
        ms = _mean_ms(ranks, lambda one: of(one, "ns"))
        reason = _open_because(role, shares.get(Source.NAME.name.lower(), 0.0), present)
        communicates = role.family not in (Family.COMPUTE, Family.COPY, Family.OPAQUE)
        found.append(
            RoleResult(
                role=role.label,
                family=str(role.family),
                ms=ms,
                exposed_ms=_mean_ms(ranks, lambda one: of(one, "exposed_ns"))
                if communicates
                else None,
                count=_round(
                    mean(ranks, [of(one, "count") / len(one.step_names) for one in ranks])
                ),
                share=_round(ms / step) if step else 0.0,
                confidence="low" if reason else CONFIDENCE[weakest],  # type: ignore[arg-type]
                sources=shares,
                reason=reason,
            )
        )
    return found


def _open_because(role: Role, share: float, ranks: Sequence[RankPartial]) -> str | None:
    """Why a role that collects what nothing explains is no more than that; None for all others."""
    if role not in (Role.ELEMENTWISE, Role.COMPUTE_OTHER, Role.GEMM_UNATTRIBUTED) or share < 0.1:
        return None
    told = f"{100 * share:.0f} % by kernel names alone, which do not say what these kernels serve: "
    if any(one.facts.get("operators") for one in ranks):
        return told + "open ranges (NVTX, record_function) around the modules to tell"
    return (
        told + "Nsight Systems records no operators, and ranges of forward do not reach backward; "
        "a torch.profiler capture tells more"
    )


UNCLASSIFIED_LIMIT = 0.01
"""Unknown compute kernels are listed from this share of the step on."""

MAX_UNCLASSIFIED = 20


def _unclassified(ranks: Sequence[RankPartial]) -> list[Unclassified]:
    steps = sum(int(one.step_ns.sum()) for one in ranks)
    if not steps or sum(map(_unknown_ns, ranks)) < UNCLASSIFIED_LIMIT * steps:
        return []
    names = sorted({name for one in ranks for name in one.unclassified})
    rows = [
        Unclassified(
            name=name,
            ms=_mean_ms(ranks, lambda one, n=name: one.unclassified.get(n, (0, 0))[1]),  # type: ignore[misc]
            count=_round(
                mean(
                    ranks,
                    [one.unclassified.get(name, (0, 0))[0] / len(one.step_names) for one in ranks],
                )
            ),
        )
        for name in names
    ]
    return sorted(rows, key=lambda row: (-row.ms, row.name))[:MAX_UNCLASSIFIED]


def _rank_summaries(ranks: Sequence[RankPartial], peers: Peers) -> list[RankSummary]:
    def ms(values: NDArray[np.int64]) -> float:
        return _round(float(values.mean()) / NS_PER_MS)

    found = []
    for one in ranks:
        waiting = peers.by_rank[one.rank]
        whole = _whole(one, waiting, Family.EP)
        matched = bool(whole.any()) and waiting.instances > 0
        found.append(
            RankSummary(
                rank=one.rank,
                host=one.host,
                device=one.device.name,
                rank_source=one.rank_source,
                step_ms=ms(one.step_ns),
                compute_ms=ms(one.times_ns["compute"]),
                ep_a2a_wait_ms=ms(waiting.wait[Family.EP][whole]) if matched else None,
                host_gap_ms=ms(one.times_ns["host_gap"]),
                arrived_last=waiting.arrived_last if matched else None,
            )
        )
    return found


def representative_step(one: RankPartial) -> int:
    """The step whose length is nearest to the rank's median: the first of them."""
    middle = float(np.median(one.step_ns))
    return int(np.argmin(np.abs(one.step_ns - middle)))


def _layers(ranks: Sequence[RankPartial]) -> list[dict[str, Any]]:
    """Layer by layer, mean over the ranks of a pipeline stage; layers count from 0 per stage."""
    stages = stages_of(ranks) if any(Role.PP_P2P.label in one.roles for one in ranks) else None
    places = stages[1] if stages else [0] * len(ranks)
    rows: list[dict[str, Any]] = []
    for stage in sorted(set(places)):
        members = [one for one, place in zip(ranks, places, strict=True) if place == stage]
        if len({frozenset(one.layers_ns) for one in members}) != 1:
            continue  # ranks that disagree about the layers say nothing together
        for layer, phase in members[0].layers_ns:
            row: dict[str, Any] = {"stage": stage} if stages else {}
            row |= {"layer": layer, "phase": phase}
            for place, name in enumerate(("forward_ms", "backward_ms")):
                row[name] = _mean_ms(
                    members,
                    lambda one, key=(layer, phase), at=place: one.layers_ns[key][at],  # type: ignore[misc]
                )
            rows.append(row)
    return sorted(rows, key=lambda row: (row.get("stage", 0), row["layer"]))


def _no_layers(ranks: Sequence[RankPartial]) -> str:
    reasons = sorted({reason for one in ranks if (reason := one.facts.get("layers_reason"))})
    return reasons[0] if reasons else "the ranks show different layers"


def _collective_views(ranks: Sequence[RankPartial], peers: Peers) -> list[CollectiveView]:
    """The EP collectives of the representative step, one view per communicator."""
    if not ranks:
        return []
    step = ranks[0].step_names[representative_step(ranks[0])]
    groups: dict[tuple[int, ...], list[Any]] = {}
    for instance in peers.instances(step, Family.EP):
        groups.setdefault(instance.ranks, []).append(instance)
    views = []
    for number, (members, instances) in enumerate(sorted(groups.items()), 1):
        last: dict[str, int] = {str(rank): 0 for rank in members}
        shown: list[CollectiveInstance] = []
        for instance in instances:
            late = members[int(np.argmin(instance.waits_ns))]
            last[str(late)] += 1
            if len(shown) < MAX_INSTANCES:
                shown.append(
                    CollectiveInstance(
                        index=instance.index,
                        role=instance.role.label,
                        transfer_ms=_round(instance.transfer_ns / NS_PER_MS),
                        wait_ms=[_round(ns / NS_PER_MS) for ns in instance.waits_ns],
                        last=late,
                    )
                )
        views.append(
            CollectiveView(
                group=f"EP group {number}",
                step=step,
                ranks=list(members),
                instances=shown,
                arrived_last=last,
            )
        )
    return views


def _wait_causes(
    ranks: Sequence[RankPartial], peers: Peers, metrics: Mapping[str, MetricValue]
) -> dict[str, float] | None:
    """EP waiting by what the late rank was doing, mean ms per step; None if not measured."""
    waited = metrics["ep_a2a_wait_ms"]
    if waited.status != "measured" or waited.value is None or not ranks:
        return None

    whole = {one.rank: _whole(one, peers.by_rank[one.rank], Family.EP) for one in ranks}

    def ms(name: str) -> float:
        values = [getattr(peers.by_rank[rank], name)[steps] for rank, steps in whole.items()]
        return mean(ranks, [one.mean() / NS_PER_MS if len(one) else 0.0 for one in values])

    causes = {
        "host": ms("wait_host"),
        "imbalance": ms("wait_imbalance"),
        "compute": ms("wait_compute"),
    }
    causes["unexplained"] = max(waited.value - sum(causes.values()), 0.0)
    return {cause: _round(ms) for cause, ms in causes.items()}
