"""What the trace itself shows of the run's configuration: `t` in rules."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_advisor.measure.health import SLOW_GPU
from moe_advisor.measure.pairs import stage_places
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.summary import Summary

OVERLAP_SHARE = 0.05
"""EP communication counts as overlapped from this hidden share on: chance overlap of notify
kernels stays below 2 % in our captures without overlap."""

SLOW_LINK_SHARE = 0.25
"""A transfer rate below this share of NVLink's is another wire: NCCL reaches 60 % and more of it
with the message sizes of MoE layers, host memory and networks less than 15 %."""

FORCED_BALANCE = 1.0005
"""Token counts that differ by less than this come from forced balancing, not from a router."""

STICKY_SHARE = 0.7
"""One rank that arrives last in more of the collectives than this is the straggler itself."""

OFFLOAD_COPIES_PER_STEP = 2
"""More large copies between host and device than this per step are offloading, not data input."""

RECURRING_STEPS = 0.6
"""A pause that comes in more than this share of the steps belongs to the loop."""

QUIET_SHARE = 0.3
"""Long pauses without any call or operator that make up this share of the host gaps look like
garbage collection; the trace can't prove it."""

_DISPATCHERS = (
    ("hybridep", ("hybridep-dispatch", "hybridep-combine")),
    ("ncclep", ("nccl-ep-dispatch", "nccl-ep-combine")),
    ("deepep", ("deepep-dispatch", "deepep-combine")),
)


def trace_facts(
    partials: Sequence[RankPartial], summary: Summary, hardware: Mapping[str, Any], profiler: str
) -> dict[str, Any]:
    """Facts by name; what the trace can't show is left out, never false."""
    ranks = [one for one in partials if len(one.step_names)]
    t: dict[str, Any] = {
        "profiler": profiler,
        "ranks_read": len(partials),
        "steps": max((len(one.step_names) for one in ranks), default=0),
        "capture_complete": not any(
            issue.severity == "error" for one in partials for issue in one.issues
        ),
    }
    if not ranks:
        return t
    first = ranks[0].facts
    world = max((one.world_size or 0 for one in ranks), default=0) or (
        len(ranks) if all(one.rank_source == "communicator" for one in ranks) else 0
    )
    if world:
        t["world_size"] = world
        t["single_rank"] = len(ranks) == 1 and world > 1
    metric = {
        name: value.value for name, value in summary.metrics.items() if value.value is not None
    }
    step = metric["step_ms"]
    families = {family for one in ranks for family in one.facts["families"]}
    has_ep = metric.get("ep_a2a_ms", 0.0) > 0
    _dispatcher(t, ranks, families, has_ep)
    _parallelism(t, ranks, metric)
    experts, grouped = (
        sum(one.facts[name] for one in ranks) for name in ("expert_gemms", "grouped_expert_gemms")
    )
    if experts:
        by_library = any(one.facts.get("grouped_linear", False) for one in ranks)
        t["grouped_gemm"] = by_library or grouped * 2 > experts
        t["sequential_experts"] = grouped == 0 and not by_library
        if first["dispatches"]:
            per_rank = first["expert_gemms"] / max(len(ranks[0].step_names), 1)
            t["expert_gemm_launches_per_layer"] = per_rank / first["dispatches"]
    t["cuda_graphs"] = (
        metric.get("graph_kernel_share", 0.0) > 0 or metric.get("graph_opaque_share", 0.0) > 0
    )
    t["graph_opaque"] = metric.get("graph_opaque_share", 0.0) > 0
    t["graph_node_tracing"] = metric.get("graph_kernel_share", 0.0) > 0
    for name in ("graphed_attention", "graphed_router"):
        if first[name] is not None and not t["graph_opaque"]:
            t[name] = first[name]
    if "recompute_ms" in metric:
        if metric["recompute_ms"] < 0.002 * step:
            t["recompute"] = "none"
        else:
            whole = first["recomputes_experts"] and first["recomputes_attention"]
            t["recompute"] = "full" if whole else "selective"
    if first["fp8_kernels"]:
        t["precision"] = "fp8"
    elif first["bf16_kernels"]:
        t["precision"] = "bf16"
    slowness = metric.get("gpu_slowness")
    if slowness is not None:
        t["slow_gpu"] = slowness > SLOW_GPU
    if profiler == "nsys":
        t["emit_nvtx"] = any(one.facts["operators"] for one in ranks)
    if first["attention"]:
        t["fused_attention"] = first["fused_attention"]
    if metric.get("permute_ms", 0.0) > 0:
        t["fused_permute"] = "te-permute" in families or "hybridep-permute" in families
    if metric.get("router_ms", 0.0) > 0:
        t["fused_router"] = "te-router" in families
    imbalance = metric.get("expert_token_imbalance")
    if imbalance is not None and summary.metrics["expert_token_imbalance"].status == "measured":
        t["forced_balance_suspected"] = imbalance < FORCED_BALANCE
    if has_ep and "ep_a2a_exposed_ms" in metric:
        hidden = 1.0 - metric["ep_a2a_exposed_ms"] / metric["ep_a2a_ms"]
        t["hidden_a2a_share"] = max(hidden, 0.0)
        t["ep_overlap_active"] = hidden > OVERLAP_SHARE
    merged = _merged_schedule(ranks)
    if merged is not None:
        t["merged_schedule"] = merged
    if metric.get("dp_collective_ms", 0.0) > 0 and "dp_collective_exposed_ms" in metric:
        hidden = 1.0 - metric["dp_collective_exposed_ms"] / metric["dp_collective_ms"]
        t["dp_overlap_active"] = hidden > OVERLAP_SHARE
    hosts = {one.host for one in ranks}
    if profiler == "nsys" and len(hosts) == 1 and world == len(ranks):
        t["nodes"] = 1
    _shares(t, summary, metric, step)
    _host(t, ranks, metric, step)
    _link(t, metric, hardware)
    return t


def _merged_schedule(ranks: Sequence[RankPartial]) -> bool | None:
    """Whether one micro-batch's forward is merged with another's backward; None when not seen.

    Its own ranges prove it. Whole backward passes, one after the other, prove that it is off, and
    that what hides communication is something else: shared experts, another stream's work.
    """
    if any(one.facts.get("merged_schedule", False) for one in ranks):
        return True
    passes = [one.facts.get("backward_passes") for one in ranks]
    return False if passes and None not in passes else None


def _dispatcher(
    t: dict[str, Any], ranks: Sequence[RankPartial], families: set[str], has_ep: bool
) -> None:
    for name, ids in _DISPATCHERS:
        if families & set(ids):
            t["dispatcher"] = name
            return
    if not has_ep:
        return
    kinds = {role for one in ranks for role in one.roles}
    if {"ep_dispatch", "ep_combine"} & kinds:
        gathers = all(one.facts.get("allgather_dispatch", False) for one in ranks)
        t["dispatcher"] = "allgather" if gathers else "alltoall"


def _parallelism(
    t: dict[str, Any], ranks: Sequence[RankPartial], metric: Mapping[str, float]
) -> None:
    """Group sizes by family, from process groups; a size of 1 only where the trace proves it."""
    sizes: dict[str, int] = {}
    for one in ranks:
        for group, family in one.facts["groups"].items():
            size = one.facts["group_sizes"].get(group, 0)
            sizes[family] = max(sizes.get(family, 0), size)
    for family, name in (
        ("ep", "ep_size"),
        ("tp", "tp_size"),
        ("cp", "cp_size"),
        ("pp", "pp_size"),
    ):
        if sizes.get(family, 0) > 0:
            t[name] = sizes[family]
    dispatches = metric.get("ep_a2a_ms", 0.0) > 0
    if "ep_size" not in t and dispatches and len(ranks) == t.get("world_size") == 2:
        t["ep_size"] = 2  # two ranks that dispatch to each other are one EP group
    stages = [len(found[0]) for one in ranks if (found := one.facts.get("stage"))]
    stages += [size for size, _ in stage_places(ranks).values()]
    if stages:
        t.setdefault("pp_size", max(stages))
    elif metric.get("pp_p2p_ms", 0.0) > 0 and len(ranks) == t.get("world_size") == 2:
        t.setdefault("pp_size", 2)
    for family, name in (
        ("tp", "tp_collective_ms"),
        ("cp", "cp_collective_ms"),
        ("pp", "pp_p2p_ms"),
    ):
        if metric.get(name) == 0.0 and all(one.facts["described_groups"] for one in ranks):
            t.setdefault(f"{family}_size", 1)


def _shares(t: dict[str, Any], summary: Summary, metric: Mapping[str, float], step: float) -> None:
    for name, source in (
        ("host_gap_share", "host_gap_ms"),
        ("compute_share", "compute_ms"),
        ("dp_exposed_share", "dp_collective_exposed_ms"),
        ("permute_share", "permute_ms"),
        ("attention_share", "attention_ms"),
        ("optimizer_share", "optimizer_ms"),
        ("recompute_share", "recompute_ms"),
    ):
        if source in metric:
            t[name] = metric[source] / step
    for name in ("wait", "transfer"):
        found = summary.metrics[f"ep_a2a_{name}_ms"]
        if found.status == "measured" and found.value is not None:
            t[f"a2a_{name}_share"] = found.value / step
    if summary.wait_causes_ms is not None:
        for cause, ms in summary.wait_causes_ms.items():
            t[f"wait_{cause}_share"] = ms / step
    last = [one.arrived_last for one in summary.ranks if one.arrived_last is not None]
    total = sum(last)
    if total and len(last) == len(summary.ranks):
        t["imbalance_sticky"] = max(last) > STICKY_SHARE * total


def _host(
    t: dict[str, Any], ranks: Sequence[RankPartial], metric: Mapping[str, float], step: float
) -> None:
    t["kernels_per_ms"] = metric.get("kernels_per_step", 0.0) / step
    copies = float(np.mean([one.counts["dtoh_copies"].mean() for one in ranks]))
    t["dtoh_copies_per_step"] = copies
    microbatches = metric.get("microbatches_per_step")
    if microbatches:
        t["microbatches"] = microbatches
        if "syncs_per_step" in metric:
            t["syncs_per_microbatch"] = metric["syncs_per_step"] / microbatches
    gap_ns = sum(
        one.idle_ns[cause] for one in ranks for cause in ("sync", "alloc", "data", "launch")
    )
    if gap_ns and "host_gap_ms" in metric:
        long = [one.facts["long_gap_ns"] for one in ranks]
        t["long_gap_share"] = sum(one["long"] for one in long) / gap_ns
        recurs = all(
            gaps["steps"] >= RECURRING_STEPS * len(one.step_names)
            for gaps, one in zip(long, ranks, strict=True)
        )
        quiet = sum(one["quiet"] for one in long)
        t["gc_suspected"] = recurs and quiet > QUIET_SHARE * gap_ns
    if microbatches and t["profiler"] == "torch":
        items = sum(one.facts["item_calls"] for one in ranks)
        t["item_calls_per_microbatch"] = (
            items / sum(len(one.step_names) for one in ranks) / microbatches
        )
    t["data_loading"] = any(one.facts["data_ranges"] for one in ranks)
    if "alloc_retries" in metric:
        t["allocator_thrash"] = metric["alloc_retries"] >= 1.0
    large = float(np.mean([one.facts["large_host_copies"] / len(one.step_names) for one in ranks]))
    t["offload"] = large > OFFLOAD_COPIES_PER_STEP


def _link(t: dict[str, Any], metric: Mapping[str, float], hardware: Mapping[str, Any]) -> None:
    rate, peak = metric.get("ep_a2a_bus_gbps"), hardware.get("nvlink_gbps_per_direction")
    if rate and peak:
        slow = rate < SLOW_LINK_SHARE * float(peak)
        t["a2a_slow_link"] = slow
        if not slow:
            t["link"] = "nvlink"
