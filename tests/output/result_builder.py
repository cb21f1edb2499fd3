"""Hand-made results: realistic, skewed, hostile, empty, one rank, many ranks and steps.

The figures of `balanced` follow a capture of two H200 GPUs with a slow link between them; gains
and evidence are made up to exercise every state that an output has.
"""

from typing import Any

import msgspec

from moe_advisor.measure.registry import METRICS
from moe_advisor.result import (
    AbsentPart,
    Capture,
    Change,
    ClockPair,
    CollectiveInstance,
    CollectiveRate,
    CollectiveView,
    ComputeAbsent,
    Condition,
    ConfigValue,
    Definition,
    DroppedStep,
    Estimate,
    Evidence,
    ExpertLoad,
    IdleCause,
    Input,
    Issue,
    Kernel,
    Lateness,
    LayerLoad,
    MetricValue,
    PlanChange,
    PlanStep,
    RankParts,
    RankSummary,
    RankValue,
    Recommendation,
    RecomputePart,
    Result,
    Role,
    RuleOutcome,
    Run,
    SlowGpu,
    SlowKernel,
    StepPart,
    Steps,
    Timeline,
    TimelineSlices,
    Tool,
    Unclassified,
    WallPart,
    Walls,
    WhatIf,
    Why,
)

HOSTILE = (
    "</script><script>alert(1)</script><!--\"'`|*_[x](javascript:alert(1))@all "
    "{{7*7}}{% raw %}\u2028\u2029\u202eRTL\u202c שלום \x00\x07\x1b[31mred\x1b[0m\r\n\t&amp;https://evil.example/"
)

_LABELS = {
    "expert_gemm": ("compute", "Expert GEMM"),
    "permute": ("compute", "Permutation"),
    "dense_gemm": ("compute", "Dense GEMM"),
    "elementwise": ("compute", "Elementwise"),
    "attention": ("compute", "Attention"),
    "optimizer": ("compute", "Optimizer"),
    "norm": ("compute", "Norms"),
    "compute_other": ("compute", "Other compute"),
    "ep_a2a_exposed_transfer": ("exposed_communication", "EP all-to-all, on the wire"),
    "ep_a2a_exposed_wait": ("exposed_communication", "EP all-to-all, waiting"),
    "ep_a2a_exposed": ("exposed_communication", "EP all-to-all, exposed"),
    "dp_collective_exposed": ("exposed_communication", "DP collectives"),
    "copies": ("copies", "Copies"),
    "host_gap_sync": ("idle", "Host gap, synchronising call"),
    "host_gap_launch": ("idle", "Host gap, launching"),
    "dependency_idle": ("idle", "Dependency idle"),
}

_BALANCED = {
    "expert_gemm": 27.24,
    "permute": 30.02,
    "dense_gemm": 16.24,
    "elementwise": 15.61,
    "attention": 7.96,
    "optimizer": 3.21,
    "norm": 1.83,
    "compute_other": 8.12,
    "ep_a2a_exposed_transfer": 181.12,
    "ep_a2a_exposed_wait": 2.27,
    "dp_collective_exposed": 28.64,
    "copies": 0.57,
    "host_gap_sync": 1.8,
    "host_gap_launch": 5.47,
    "dependency_idle": 2.56,
}


def definitions() -> dict[str, Definition]:
    """All metrics of the registry."""
    return {
        name: Definition(
            title=metric.title,
            unit=metric.unit,
            definition=metric.definition,
            better=metric.better,
            pitfall=metric.pitfall,
        )
        for name, metric in METRICS.items()
    }


def parts(values: dict[str, float]) -> list[StepPart]:
    """Parts of a bar from their lengths in ms."""
    return [
        StepPart(part=name, family=_LABELS[name][0], label=_LABELS[name][1], ms=ms)  # type: ignore[arg-type]
        for name, ms in values.items()
    ]


def bar(rank: int, step: str | None, values: dict[str, float]) -> RankParts:
    """A bar whose length is the sum of its parts."""
    return RankParts(rank=rank, step=step, step_ms=sum(values.values()), parts=parts(values))


def measured(name: str, value: float, **more: Any) -> MetricValue:
    """A measured metric with the registry's unit."""
    return MetricValue(status="measured", value=value, unit=METRICS[name].unit, **more)


def absent(name: str, reason: str) -> MetricValue:
    """A metric that could not be measured."""
    return MetricValue(status="not_measured", value=None, unit=METRICS[name].unit, reason=reason)


def metrics(values: dict[str, float], **absent_reasons: str) -> dict[str, MetricValue]:
    """Every metric of the registry: the given ones measured, the rest not."""
    found = {}
    for name in METRICS:
        if name in values:
            per_rank = [RankValue(rank=rank, value=values[name]) for rank in (0, 1)]
            found[name] = measured(
                name, values[name], spread=0.02 * values[name] / 10, per_rank=per_rank
            )
        else:
            found[name] = absent(name, absent_reasons.get(name, "no event in the trace says so"))
    return found


def recommendation(rule: str, rank: int, title: str, **more: Any) -> Recommendation:
    """A recommendation with plain texts; fields can be replaced."""
    fields: dict[str, Any] = {
        "rule": rule,
        "whatif": None,
        "rank": rank,
        "title": title,
        "wall": "communication",
        "severity": "high",
        "confidence": "medium",
        "finding": "183.4 ms of the 332.7 ms step (55.1 %) is exposed.",
        "why": "Dispatch and combine run four times per layer.",
        "changes": [],
        "requires": [],
        "conflicts": [],
        "estimate": Estimate(status="not_measured", reason="no what-if for this change"),
        "evidence": [],
        "counter_evidence": [],
        "verify": "Two runs of 50 steps with only this changed.",
        "known_problems": [],
        "references": [],
    }
    return Recommendation(**(fields | more))


def _recommendations() -> list[Recommendation]:
    overlap = recommendation(
        "exposed-expert-all-to-all",
        1,
        "Overlap EP all-to-all with compute",
        whatif="ep-overlap",
        changes=[
            Change(
                framework="megatron-bridge",
                key="comm_overlap.overlap_moe_expert_parallel_comm",
                from_=False,
                to=True,
                note="alone first",
            ),
            Change(
                framework="megatron-lm",
                key="--overlap-moe-expert-parallel-comm",
                from_=False,
                to=True,
                since="0.14",
            ),
            Change(framework="env", key="CUDA_DEVICE_MAX_CONNECTIONS", from_="1", to="8"),
        ],
        requires=[
            Condition(text="EP > 1", state="met", consequence="stops at start", source="the trace"),
            Condition(
                text="VPP set when PP > 1",
                state="unknown",
                consequence="stops at start",
                source="megatron-core",
                question="give --set pp=1",
            ),
            Condition(
                text="4 micro-batches", state="unmet", consequence="slower", source="megatron-core"
            ),
        ],
        conflicts=[
            Condition(
                text="moe_shared_expert_overlap on",
                state="unknown",
                consequence="stops at start",
                source="megatron-core",
                question="give --config FILE",
            )
        ],
        estimate=Estimate(
            status="estimated",
            low_ms=6.7,
            expected_ms=26.6,
            high_ms=47.0,
            basis="low: only the other half-batch's GEMM hides it",
            dominant_assumption="how much compute slows down",
        ),
        evidence=[
            Evidence(
                text="Qwen3-30B-A3B, 16 H100: 41.25 s to 31.31 s",
                source="docs",
                change_share=-0.241,
            )
        ],
        counter_evidence=[
            Evidence(text="EP 2 over NVLink: 137.2 to 148.3 ms", source="lab", change_share=0.081),
            Evidence(text="no figure was published", source="notes"),
        ],
        known_problems=["Overlap raises the memory peak."],
        references=["docs/training/communication-overlap.md"],
    )
    fuse = recommendation(
        "unfused-token-permutation",
        2,
        "Fuse token permutation",
        whatif="permute-fusion",
        wall="compute_host",
        severity="medium",
        changes=[
            Change(
                framework="megatron-bridge", key="model.moe_permute_fusion", from_=False, to=True
            ),
            Change(framework="megatron-lm", key="--moe-permute-fusion", to=True),
            Change(framework="pytorch", key="index_select and argsort", to="a fused kernel"),
        ],
        estimate=Estimate(status="measured", low_ms=12.0, expected_ms=18.0, high_ms=22.0),
    )
    delay = recommendation(
        "delayed-weight-gradient",
        3,
        "Delay expert weight gradients",
        severity="low",
        confidence="low",
        estimate=Estimate(status="estimated", low_ms=-16.0, expected_ms=0.4, high_ms=12.0),
    )
    dispatcher = recommendation(
        "row-expanding-dispatch",
        4,
        "Faster dispatcher: flex with DeepEP",
        confidence="low",
        alternative_to="exposed-expert-all-to-all",
        estimate=Estimate(status="estimated", low_ms=-6.7, expected_ms=9.8, high_ms=136.0),
    )
    later = recommendation(
        "launch-bound-host",
        5,
        "Capture attention in CUDA graphs",
        wall="compute_host",
        severity="low",
        whatif="cuda-graphs",
        withheld="host gaps are 2.2 % of the step: not worth it before step 1",
    )
    return [overlap, fuse, delay, dispatcher, later]


def timeline(steps: int = 12, step_ms: float = 332.66) -> Timeline:
    """A step of alternating expert work and all-to-all, half of it hidden, with gaps."""
    lane, start, length, name, role = [], [], [], [], []
    exposed, hidden, gaps, host = [], [], [], []
    block = step_ms * 1000 / steps
    for i in range(steps):
        at = i * block
        for j, (kind, share) in enumerate(((0, 0.2), (1, 0.1), (0, 0.1))):
            lane.append(0)
            start.append(at + block * (0.3 * j))
            length.append(block * share)
            name.append(kind)
            role.append(kind)
        gaps.append(
            [at + block * 0.9, block * 0.05, "host_gap_launch" if i % 2 else "dependency_idle"]
        )
        host.append([at, block * 0.95, f"layer{i}", 0])
        host.append([at, block * 0.4, "moe.dispatch", 1])
        exposed.append([at + block * 0.4, at + block * 0.6])
        hidden.append([at + block * 0.3, at + block * 0.4])
    for i in range(steps):
        at = i * block + block * 0.3
        lane.append(1)
        start.append(at)
        length.append(block * 0.3)
        name.append(2)
        role.append(2)
    return Timeline(
        rank=0,
        step="2",
        step_ms=step_ms,
        lanes=["stream 7", "stream 29"],
        names=["grouped_gemm_kernel<bf16>", "permute_kernel", "ncclDevKernel_SendRecv"],
        roles=["expert_gemm", "permute", "ep_dispatch"],
        slices=TimelineSlices(lane=lane, start_us=start, dur_us=length, name=name, role=role),
        host=host,
        exposed=exposed,
        hidden=hidden,
        gaps=gaps,
        omitted=0,
    )


def layers(count: int) -> list[dict[str, Any]]:
    """Each layer a little slower than the one before."""
    return [
        {"layer": i, "phase": phase, "forward_ms": ms + i / 10, "backward_ms": 2 * ms}
        for i in range(count)
        for phase, ms in (("attention", 0.5), ("dispatch", 11.4), ("expert_gemm", 2.3))
    ]


def grounds(ranks: int, layer_count: int) -> Why:
    """Bandwidth, late ranks, expert load, a slow GPU, recompute and clocks, of every state."""
    return Why(
        rates=[
            CollectiveRate(
                family="ep_a2a",
                kind="all_to_all",
                ranks=ranks,
                span="intra-node, by rank numbers",
                status="measured",
                count=32.0,
                gb_per_step=8.59,
                transfer_ms=181.1,
                alg_gbps=47.4,
                bus_gbps=23.7,
                link_gbps=450.0,
                link_share=0.0527,
                remark="24 of 120 are below 1 MiB and not counted in the rate",
            ),
            CollectiveRate(
                family="dp_collective",
                kind="all_reduce",
                ranks=None,
                span="unknown",
                status="not_measured",
                count=1.0,
                gb_per_step=0.79,
                transfer_ms=None,
                alg_gbps=None,
                bus_gbps=None,
                link_gbps=None,
                link_share=None,
                remark=None,
            ),
        ],
        clocks=[
            ClockPair(rank=1, reference=0, status="measured", offset_us=-0.9, matches=120),
            ClockPair(rank=2, reference=0, status="not_measured", reason="no match"),
        ],
        lateness=[
            Lateness(
                family="ep_a2a",
                group=f"ranks 0 to {ranks - 1}",
                rank=rank,
                arrived_last=76,
                of=101,
                share=0.752,
                pattern="sticky",
                caused_wait_ms=87.6 / (rank + 1),
                why={"tokens": 86.6 / (rank + 1), "host": 0.3, "unexplained": 0.01},
            )
            for rank in range(ranks)
        ],
        slow_gpus=[
            SlowGpu(
                rank=1,
                slowness=1.082,
                kernels=[SlowKernel(name="grouped", ms=0.61, peers_ms=0.56, slowness=1.08)],
            )
        ],
        recompute=[RecomputePart(module="experts", ms=24.9)],
        experts=[
            ExpertLoad(
                rank=rank,
                gemm_ms=27.2 + rank,
                rows=65_536.0,
                tokens_received=1 / ranks,
                tflops=None if rank else 701.0,
            )
            for rank in range(ranks)
        ],
        layers=[
            LayerLoad(layer=i, max_over_mean=1.0 + i / 10, fullest=1, of=1.0)
            for i in range(layer_count)
        ],
    )


def collectives(ranks: int, count: int, late: int, wait_ms: float) -> CollectiveView:
    """Everyone waits for the rank `late`, in every second collective."""
    instances = []
    for i in range(count):
        roles = ("ep_notify", "ep_dispatch", "ep_combine")
        waits = [0.0 if rank == late or i % 2 else wait_ms for rank in range(ranks)]
        instances.append(
            CollectiveInstance(
                index=i, role=roles[i % 3], transfer_ms=5.66, wait_ms=waits, last=late
            )
        )
    arrived = {str(rank): count if rank == late else 0 for rank in range(ranks)}
    return CollectiveView(
        group="EP group 1",
        step="2",
        ranks=list(range(ranks)),
        instances=instances,
        arrived_last=arrived,
    )


def _rules() -> list[RuleOutcome]:
    def rule(name: str, topic: str, outcome: str, reason: str) -> RuleOutcome:
        return RuleOutcome(
            id=name,
            title=name.replace("-", " ").capitalize(),
            topic=topic,
            wall="communication",
            severity="high",
            outcome=outcome,  # type: ignore[arg-type]
            reason=reason,
        )

    return [
        rule("exposed-expert-all-to-all", "overlap", "finding", "183.4 ms of 332.7 ms is exposed."),
        rule("unfused-token-permutation", "permutation", "finding", "30.0 ms against 27.2 ms."),
        rule("imbalanced-experts", "balance", "pass", "Tokens are even."),
        rule("full-recompute-with-headroom", "recompute", "not_measured", "give --log FILE"),
        rule("sequential-expert-gemms", "host", "not_applicable", "The experts are grouped."),
        rule("broken-rule", "host", "error", "m.nothing is no metric"),
    ]


def balanced() -> Result:
    """Two ranks with a slow link: the wire is the wall."""
    step = sum(_BALANCED.values())
    second = _BALANCED | {"ep_a2a_exposed_wait": 4.04, "host_gap_launch": 3.7}
    first = _BALANCED | {"ep_a2a_exposed_wait": 0.5, "host_gap_launch": 7.24}
    steps = [
        bar(rank, name, values | {"ep_a2a_exposed_transfer": values["ep_a2a_exposed_transfer"] + d})
        for rank, values in ((0, first), (1, second))
        for name, d in (("1", -0.6), ("2", 0.2), ("3", 0.4))
    ]
    values = {
        "step_ms": step,
        "gpu_idle_ms": 9.83,
        "compute_ms": 110.23,
        "compute_absent_ms": 222.43,
        "comm_exposed_ms": 212.03,
        "ep_a2a_ms": 183.39,
        "ep_a2a_exposed_ms": 183.39,
        "ep_a2a_exposed_share": 183.39 / step,
        "ep_a2a_transfer_ms": 181.12,
        "ep_a2a_wait_ms": 2.27,
        "ep_a2a_bus_gbps": 23.71,
        "dp_collective_exposed_ms": 28.64,
        "expert_gemm_ms": 27.24,
        "a2a_to_expert_gemm": 6.73,
        "permute_ms": 30.02,
        "host_gap_ms": 7.27,
        "dependency_idle_ms": 2.56,
        "recompute_ms": 0.0,
        "kernels_per_step": 1412.0,
        "unclassified_share": 0.001,
        "tokens_per_s_per_gpu": 49_602.0,
        "pp_p2p_ms": 0.0,
    }
    no_memory = "no memory events in the trace; give --log or recapture"
    found = metrics(values, memory_peak_gib=no_memory, memory_headroom_gib=no_memory)
    walls = Walls(
        verdict="communication",
        limiter="ep_a2a",
        margin=0.548,
        threshold=0.1,
        next="compute_host",
        scores={"memory": 0.0, "communication": 0.631, "compute_host": 0.083},
        parts=[
            WallPart(
                wall="communication",
                part="ep_a2a",
                label="EP all-to-all on the wire",
                ms=181.1,
                share=0.545,
            ),
            WallPart(
                wall="communication",
                part="dp_collective",
                label="DP collectives",
                ms=28.6,
                share=0.086,
            ),
            WallPart(
                wall="compute_host",
                part="compute",
                label="Compute above its floor",
                ms=18.0,
                share=0.054,
            ),
            WallPart(wall="compute_host", part="host", label="Host gaps", ms=7.3, share=0.022),
            WallPart(
                wall="compute_host",
                part="host",
                label="Waiting for a rank held by its host",
                ms=2.3,
                share=0.007,
            ),
        ],
        not_measured={"memory": f"Peak memory: {no_memory}"},
        reasons=["Communication: 63.1 % of the 332.7 ms step."],
        headline="More than half of every step is expert all-to-all that nothing hides: 183.4 of 332.7 ms.",
        cause="It is the wire, not waiting: 181.1 ms transfer, 2.3 ms wait.",
    )
    names = ("expert_gemm", "permute", "dense_gemm", "elementwise", "attention")
    roles = [
        Role(
            role=name,
            family="compute",
            ms=_BALANCED[name],
            exposed_ms=None,
            count=48.0,
            share=_BALANCED[name] / step,
            confidence="high",
            sources={"annotation": 0.75, "name": 0.25},
        )
        for name in names
    ] + [
        Role(
            role="ep_dispatch",
            family="ep_a2a",
            ms=91.7,
            exposed_ms=91.7,
            count=16.0,
            share=91.7 / step,
            confidence="high",
            sources={"metadata": 1.0},
        ),
        Role(
            role="ep_combine",
            family="ep_a2a",
            ms=91.7,
            exposed_ms=91.7,
            count=16.0,
            share=91.7 / step,
            confidence="high",
            sources={"metadata": 1.0},
        ),
    ]
    return Result(
        tool=Tool(version="0.1.0"),
        inputs=[
            Input(
                name=f"shm_balanced.rank{rank}.json.gz",
                format="kineto",
                producer="PyTorch profiler",
                ranks=[rank],
            )
            for rank in (0, 1)
        ],
        run=Run(
            gpu="NVIDIA H200",
            world_size=2,
            dispatcher="alltoall",
            config={
                "expert_model_parallel_size": ConfigValue(value=2, source="trace"),
                "pipeline_model_parallel_size": ConfigValue(value=1, source="trace"),
                "num_layers": ConfigValue(value=4, source="config"),
                "num_moe_experts": ConfigValue(value=32, source="config"),
                "moe_router_topk": ConfigValue(value=8, source="config"),
            },
            facts={"unprofiled_step_ms": 330.3},
            hardware={"nvlink_gbps_per_direction": 450.0},
        ),
        capture=Capture(
            complete=True,
            issues=[
                Issue(
                    id="profiler-shapes-on",
                    severity="info",
                    count=2,
                    message="Shapes were recorded.",
                )
            ],
        ),
        steps=Steps(
            count=3, source="annotation", pattern="step", dropped=[], names=["1", "2", "3"]
        ),
        walls=walls,
        metrics=found,
        step_parts=parts(_BALANCED),
        parts_by_rank=[bar(0, None, first), bar(1, None, second)],
        parts_by_step=steps,
        compute_absent=ComputeAbsent(
            ms=222.43,
            parts=[
                AbsentPart(cause="blocked", role="ep_a2a", label="Blocked by ep a2a", ms=181.5),
                AbsentPart(cause="blocked", role="dp_collective", label="Blocked by dp", ms=28.7),
                AbsentPart(cause="launch_starved", role=None, label="Launch starved", ms=8.6),
                AbsentPart(cause="unresolved", role=None, label="Unresolved", ms=3.63),
            ],
            residual_ms=0.0,
        ),
        idle_causes=[
            IdleCause(
                cause="sync",
                label="In a synchronising call",
                ms=1.8,
                detail=[{"name": "cudaStreamSynchronize", "count": 16.0, "ms": 1.5}],
            ),
            IdleCause(cause="launch", label="Getting to the next launch", ms=5.47),
            IdleCause(cause="dependency", label="Waiting for another stream", ms=2.56),
        ],
        roles=roles,
        unclassified=[Unclassified(name="mystery_kernel<float>", ms=0.3, count=4.0)],
        ranks=[
            RankSummary(
                rank=0,
                host=1,
                device="NVIDIA H200",
                rank_source="metadata",
                step_ms=332.7,
                compute_ms=110.4,
                ep_a2a_wait_ms=0.5,
                host_gap_ms=9.04,
                arrived_last=91,
            ),
            RankSummary(
                rank=1,
                host=1,
                device="NVIDIA H200",
                rank_source="metadata",
                step_ms=332.6,
                compute_ms=110.1,
                ep_a2a_wait_ms=4.04,
                host_gap_ms=5.5,
                arrived_last=29,
            ),
        ],
        collectives=[collectives(2, 24, 0, 0.4)],
        layers=layers(4),
        why=grounds(2, 4),
        kernels=[
            Kernel(role="permute", name="at::native::index_kernel", ms=20.0, count=64.0),
            Kernel(role="permute", name="", ms=10.0, count=400.0),
            Kernel(role="expert_gemm", name="cutlass::device_kernel", ms=27.24, count=48.0),
        ],
        rules=_rules(),
        recommendations=_recommendations(),
        plan_change=PlanChange(
            megatron_bridge=["cfg.comm_overlap.overlap_moe_expert_parallel_comm = True"],
            bridge_overrides=["comm_overlap.overlap_moe_expert_parallel_comm=true"],
            megatron_lm=["--overlap-moe-expert-parallel-comm", "# remove: --recompute-method"],
            environment=["export CUDA_DEVICE_MAX_CONNECTIONS=8"],
            remarks=["a recipe without cfg.comm_overlap needs one first"],
            checked=12,
            passed=10,
            unknown=["needs torch 2.6.0 or newer: give --config FILE, or --set torch_version=X.Y"],
            broken=["needs virtual pipeline stages: raises"],
        ),
        plan=[
            PlanStep(
                rules=["exposed-expert-all-to-all"],
                title="Overlap EP all-to-all with compute",
                combined=Estimate(status="estimated", low_ms=6.7, expected_ms=26.6, high_ms=47.0),
            ),
            PlanStep(
                rules=["unfused-token-permutation"],
                title="Fuse token permutation",
                combined=Estimate(
                    status="estimated",
                    low_ms=17.0,
                    expected_ms=40.9,
                    high_ms=65.0,
                    basis="less than the sum: permutation is part of what hides the wire",
                ),
            ),
        ],
        whatif=[
            WhatIf(
                name="ep-overlap",
                title="Overlap",
                assumptions=["compute slows down by 40 %"],
                estimate=Estimate(status="estimated", low_ms=6.7, expected_ms=26.6, high_ms=47.0),
            ),
            WhatIf(
                name="recompute",
                title="No recompute",
                assumptions=[],
                estimate=Estimate(status="not_measured", reason="nothing is recomputed"),
            ),
        ],
        timeline=timeline(),
        definitions=definitions(),
    )


def skewed() -> Result:
    """One rank gets most tokens; the other waits."""
    first = {
        "expert_gemm": 2.1,
        "permute": 20.4,
        "dense_gemm": 16.5,
        "elementwise": 31.9,
        "ep_a2a_exposed_transfer": 22.9,
        "ep_a2a_exposed_wait": 89.5,
        "dp_collective_exposed": 2.4,
        "host_gap_launch": 11.9,
        "dependency_idle": 3.1,
    }
    second = first | {
        "expert_gemm": 56.5,
        "permute": 42.6,
        "elementwise": 43.8,
        "ep_a2a_exposed_wait": 0.2,
        "host_gap_launch": 11.5,
        "dependency_idle": 4.2,
    }
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    base = balanced()
    values = {
        "step_ms": sum(mean.values()),
        "ep_a2a_exposed_ms": 67.75,
        "ep_a2a_transfer_ms": 22.9,
        "ep_a2a_wait_ms": 44.85,
        "expert_gemm_ms": 29.3,
        "a2a_to_expert_gemm": 2.31,
        "expert_token_imbalance": 1.98,
        "memory_peak_gib": 10.7,
        "memory_headroom_gib": 129.1,
        "host_gap_ms": 11.7,
        "ep_a2a_ms": 67.75,
    }
    return msgspec.structs.replace(
        base,
        inputs=[
            Input(
                name="skew.sqlite",
                format="nsys-sqlite",
                producer="Nsight Systems 2025.3.2",
                ranks=[0, 1],
            )
        ],
        metrics=metrics(values),
        step_parts=parts(mean),
        parts_by_rank=[bar(0, None, first), bar(1, None, second)],
        parts_by_step=[],
        walls=msgspec.structs.replace(
            base.walls,
            limiter="imbalance",
            margin=0.2,
            scores={"memory": 0.0, "communication": 0.36, "compute_host": 0.16},
            parts=[
                WallPart(
                    wall="communication",
                    part="imbalance",
                    label="Waiting for ranks with more tokens",
                    ms=44.8,
                    share=0.223,
                ),
                WallPart(
                    wall="communication",
                    part="ep_a2a",
                    label="EP all-to-all on the wire",
                    ms=27.4,
                    share=0.137,
                ),
                WallPart(
                    wall="compute_host",
                    part="compute",
                    label="Compute above its floor",
                    ms=32.0,
                    share=0.16,
                ),
            ],
            headline="44.8 of 200.6 ms ranks wait for the one that got the most tokens.",
            cause="The fullest EP rank receives 1.98 × the mean; the wire itself takes 22.9 ms.",
        ),
        ranks=[
            RankSummary(
                rank=0,
                host=1,
                device="NVIDIA H200",
                rank_source="communicator",
                step_ms=200.7,
                compute_ms=70.9,
                ep_a2a_wait_ms=89.5,
                host_gap_ms=11.9,
                arrived_last=2,
            ),
            RankSummary(
                rank=1,
                host=1,
                device="NVIDIA H200",
                rank_source="communicator",
                step_ms=200.6,
                compute_ms=159.4,
                ep_a2a_wait_ms=0.2,
                host_gap_ms=11.5,
                arrived_last=30,
            ),
        ],
        collectives=[collectives(2, 40, 1, 7.4)],
        recommendations=[],
        plan=[],
        whatif=[],
    )


def one_rank() -> Result:
    """One of sixteen ranks: wire and waiting can't be told apart."""
    values = {name: ms for name, ms in _BALANCED.items() if not name.startswith("ep_a2a")}
    values = {**values, "ep_a2a_exposed": 183.4}
    base = balanced()
    step = sum(values.values())
    found = metrics(
        {
            "step_ms": step,
            "ep_a2a_exposed_ms": 183.4,
            "ep_a2a_ms": 183.4,
            "expert_gemm_ms": 27.2,
            "a2a_to_expert_gemm": 6.7,
        },
        ep_a2a_wait_ms="one rank of an EP group of 16 was read",
        ep_a2a_bus_gbps="one rank of an EP group of 16 was read",
    )
    found["ep_a2a_transfer_ms"] = MetricValue(
        status="estimated",
        value=None,
        unit="ms/step",
        low=9.5,
        high=170.0,
        basis="bytes over the link's rate, and the fastest of its size",
    )
    return msgspec.structs.replace(
        base,
        inputs=[
            Input(name="rank3.json.gz", format="kineto", producer="PyTorch profiler", ranks=[3])
        ],
        run=msgspec.structs.replace(base.run, world_size=16, facts={}),
        capture=Capture(
            complete=False,
            issues=[
                Issue(
                    id="ranks-missing",
                    severity="warning",
                    count=15,
                    message="15 of 16 ranks were not read.",
                )
            ],
        ),
        metrics=found,
        step_parts=parts(values),
        parts_by_rank=[bar(3, None, values)],
        parts_by_step=[bar(3, str(i), values) for i in (1, 2)],
        walls=Walls(
            verdict="inconclusive",
            limiter=None,
            margin=0.1,
            threshold=0.03,
            next=None,
            scores={"memory": 0.0, "communication": 0.511, "compute_host": 0.083},
            parts=[
                WallPart(
                    wall="communication",
                    part="ep_a2a",
                    label="EP all-to-all on the wire, at most",
                    ms=170.0,
                    share=0.511,
                )
            ],
            not_measured={
                "communication": "Waiting can't be told from transfer: capture all ranks of an EP group"
            },
            reasons=["Only part of the EP group was read."],
            headline="The walls can't be told apart from this capture: 183.4 of 332.7 ms may be wire or waiting.",
            cause="Capture all ranks of one EP group.",
        ),
        ranks=[
            RankSummary(
                rank=3,
                host=1,
                device="NVIDIA H100",
                rank_source="metadata",
                step_ms=step,
                compute_ms=110.0,
                ep_a2a_wait_ms=None,
                host_gap_ms=7.3,
                arrived_last=None,
            )
        ],
        collectives=[],
        recommendations=[],
        plan=[],
        whatif=[],
    )


def empty() -> Result:
    """Readable, but without GPU work."""
    reason = "no GPU activity in the trace"
    base = balanced()
    return msgspec.structs.replace(
        base,
        inputs=[Input(name="cpu_only.json", format="kineto", producer=None, ranks=[])],
        run=Run(gpu=None, world_size=None, dispatcher=None, config={}, facts={}, hardware={}),
        capture=Capture(
            complete=False,
            issues=[
                Issue(
                    id="no-gpu-activity",
                    severity="error",
                    count=1,
                    message="No kernel, copy or memset was recorded: capture with CUDA tracing on.",
                )
            ],
        ),
        steps=Steps(
            count=0,
            source="whole-trace",
            pattern=None,
            names=[],
            dropped=[DroppedStep(rank=0, step="1", reason="no GPU activity")],
        ),
        walls=Walls(
            verdict="inconclusive",
            limiter=None,
            margin=0.0,
            threshold=0.03,
            next=None,
            scores={"memory": 0.0, "communication": 0.0, "compute_host": 0.0},
            parts=[],
            not_measured=dict.fromkeys(("memory", "communication", "compute_host"), reason),
            reasons=[f"Inconclusive: {reason}."],
            headline=f"Inconclusive: {reason}.",
            cause="",
        ),
        metrics={name: absent(name, reason) for name in METRICS},
        step_parts=[],
        parts_by_rank=[],
        parts_by_step=[],
        compute_absent=None,
        idle_causes=[],
        roles=[],
        unclassified=[],
        ranks=[],
        collectives=[],
        layers=[],
        rules=[rule for rule in _rules() if rule.outcome == "not_measured"],
        recommendations=[],
        plan=[],
        whatif=[],
        timeline=None,
    )


def mixed() -> Result:
    """Two walls level, and an allocator part in memory."""
    base = balanced()
    walls = msgspec.structs.replace(
        base.walls,
        verdict="mixed",
        limiter="ep_a2a",
        margin=0.012,
        threshold=0.03,
        scores={"memory": 0.05, "communication": 0.262, "compute_host": 0.25},
        parts=[
            WallPart(
                wall="communication",
                part="ep_a2a",
                label="EP all-to-all on the wire",
                ms=87.2,
                share=0.262,
            ),
            WallPart(wall="compute_host", part="host", label="Host gaps", ms=83.2, share=0.25),
            WallPart(wall="memory", part="allocator", label="Allocator calls", ms=16.6, share=0.05),
        ],
        not_measured={},
        headline="Two walls stand equally close.",
        cause="Start with the first step.",
    )
    return msgspec.structs.replace(base, walls=walls)


def many() -> Result:
    """64 ranks, 100 steps each; a node of late ranks."""
    base = balanced()
    by_rank, ranks = [], []
    for rank in range(64):
        late = 40 <= rank < 48
        values = _BALANCED | {
            "ep_a2a_exposed_wait": 0.1 if late else 30.0 + rank % 7,
            "host_gap_launch": 36.0 if late else 5.5,
        }
        by_rank.append(bar(rank, None, values))
        ranks.append(
            RankSummary(
                rank=rank,
                host=1 + rank // 8,
                device="NVIDIA H100",
                rank_source="metadata",
                step_ms=sum(values.values()),
                compute_ms=110.2,
                ep_a2a_wait_ms=values["ep_a2a_exposed_wait"],
                host_gap_ms=values["host_gap_launch"],
                arrived_last=100 + rank if late else 0,
            )
        )
    steps = [bar(0, str(i), _BALANCED | {"host_gap_launch": 5.0 + i % 9}) for i in range(100)]
    instances = [
        CollectiveInstance(
            index=i,
            role=("ep_dispatch", "ep_combine")[i % 2],
            transfer_ms=2.0,
            wait_ms=[
                0.0 if 40 <= rank < 48 else 0.2 + (rank * 7 + i * 3) % 11 for rank in range(64)
            ],
            last=40 + i % 8,
        )
        for i in range(100)
    ]
    view = CollectiveView(
        group="EP group 1", step="7", ranks=list(range(64)), instances=instances, arrived_last={}
    )
    return msgspec.structs.replace(
        base,
        inputs=[
            Input(name=f"rank{r}.json.gz", format="kineto", producer="PyTorch profiler", ranks=[r])
            for r in range(64)
        ],
        run=msgspec.structs.replace(base.run, world_size=64),
        steps=Steps(
            count=100,
            source="annotation",
            pattern="iteration",
            dropped=[
                DroppedStep(rank=r, step="0", reason="cut by the start of the capture")
                for r in range(64)
            ],
            names=[str(i) for i in range(100)],
        ),
        parts_by_rank=by_rank,
        parts_by_step=steps,
        ranks=ranks,
        collectives=[view],
    )


def hostile() -> Result:
    """`balanced` with markup, direction marks, escape codes and 10 kB in every free string."""
    return msgspec.convert(_poison(msgspec.to_builtins(balanced()), ()), Result)


_CLOSED = frozenset(
    {
        "schema",
        "schema_version",
        "format",
        "severity",
        "status",
        "outcome",
        "verdict",
        "confidence",
        "family",
        "framework",
        "state",
        "wall",
        "next",
        "source",
        "part",
        "cause",
        "role",
        "limiter",
        "topic_",
        "arrived_last",
        "unit",
    }
)


def _poison(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        key = path[-1] if path else ""
        if key in _CLOSED and not (key in ("cause", "source") and "walls" in path):
            return value if key != "source" or path[0] == "steps" else HOSTILE
        if key in ("id", "rule", "rules") or (key == "pattern" and "lateness" in path):
            return value
        return HOSTILE + "x" * 10_000 if key in ("names", "name", "message") else value + HOSTILE
    if isinstance(value, dict):
        return {
            (key + HOSTILE if path[-1:] in (("config",), ("sources",)) else key): _poison(
                item, (*path, str(key))
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_poison(item, path) for item in value]
    return value


ALL = {
    "balanced": balanced,
    "skewed": skewed,
    "one_rank": one_rank,
    "empty": empty,
    "mixed": mixed,
    "many": many,
    "hostile": hostile,
}
