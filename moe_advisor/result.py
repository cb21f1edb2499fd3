"""The result document: the product. Every output is a pure rendering of it.

`Result` is what `result.json` holds; its JSON Schema is generated from these classes. Milliseconds
are per step, shares run from 0 to 1, times of the timeline are microseconds from the start of the
step shown. No host, user, path or environment value is in here unless `privacy` allows it.
"""

from typing import Any, Literal

import msgspec

SCHEMA_VERSION = "1.0"

Status = Literal["measured", "estimated", "not_measured"]
Outcome = Literal["finding", "pass", "not_measured", "not_applicable", "error"]
Verdict = Literal["memory", "communication", "compute_host", "mixed", "inconclusive"]


class _Part(msgspec.Struct, frozen=True, gc=False):
    """Base of all parts: immutable, written in field order."""


class Tool(_Part, frozen=True, kw_only=True):
    version: str
    name: str = "moe-advisor"


class Input(_Part, frozen=True, kw_only=True):
    name: str
    format: Literal["nsys-sqlite", "nsys-rep", "nsys-parquet", "kineto", "result"]
    producer: str | None
    ranks: list[int]


class ConfigValue(_Part, frozen=True, kw_only=True):
    """A value of the run configuration; source is trace, config, log, command-line or default."""

    value: Any
    source: str


class Run(_Part, frozen=True, kw_only=True):
    gpu: str | None
    world_size: int | None
    dispatcher: str | None
    config: dict[str, ConfigValue]
    facts: dict[str, Any]
    """What the trace itself shows (`t` in rules)."""
    hardware: dict[str, Any]
    """What is known of the GPU and its links (`hw` in rules)."""


class Issue(_Part, frozen=True, kw_only=True):
    id: str
    severity: Literal["info", "warning", "error"]
    count: int
    message: str
    rank: int | None = None


class Capture(_Part, frozen=True, kw_only=True):
    complete: bool
    issues: list[Issue]


class DroppedStep(_Part, frozen=True, kw_only=True):
    rank: int
    step: str
    reason: str


class Steps(_Part, frozen=True, kw_only=True):
    count: int
    source: Literal["annotation", "optimizer", "repetition", "whole-trace"]
    pattern: str | None
    dropped: list[DroppedStep]
    names: list[str]


class RankValue(_Part, frozen=True, kw_only=True):
    rank: int
    value: float | None
    steps: list[float] = []


class MetricValue(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """One metric. `reason` says why it was not measured, `basis` how an estimate was made."""

    status: Status
    value: float | None
    unit: str
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    basis: str | None = None
    per_rank: list[RankValue] = []


class Role(_Part, frozen=True, kw_only=True, omit_defaults=True):
    role: str
    family: str
    ms: float
    exposed_ms: float | None
    count: float
    share: float
    confidence: Literal["high", "medium", "low"]
    sources: dict[str, float]
    """Share of this role's time decided by each kind of evidence."""
    reason: str | None = None
    """Why the confidence is low."""


class Unclassified(_Part, frozen=True, kw_only=True):
    name: str
    ms: float
    count: float


class Kernel(_Part, frozen=True, kw_only=True):
    """Kernels of one short name in one role, mean per step; name is "" for the role's others."""

    role: str
    name: str
    ms: float
    """Summed durations: kernels that run side by side are both counted."""
    count: float


class StepPart(_Part, frozen=True, kw_only=True):
    """A segment of the stacked bar; the parts of a step add up to it exactly."""

    part: str
    family: Literal["compute", "exposed_communication", "copies", "idle", "opaque"]
    label: str
    ms: float


class RankParts(_Part, frozen=True, kw_only=True):
    rank: int
    step: str | None
    """Name of the step, or None for the rank's mean."""
    step_ms: float
    parts: list[StepPart]


class AbsentPart(_Part, frozen=True, kw_only=True):
    """Part of the compute-absent time: cause launch_starved, blocked, copies or unresolved."""

    cause: str
    role: str | None
    label: str
    ms: float


class ComputeAbsent(_Part, frozen=True, kw_only=True):
    ms: float
    parts: list[AbsentPart]
    residual_ms: float


class IdleCause(_Part, frozen=True, kw_only=True):
    """Device idle time of one cause, with the calls or ranges that held the host."""

    cause: str
    label: str
    ms: float
    detail: list[dict[str, Any]] = []


class WallPart(_Part, frozen=True, kw_only=True):
    wall: Literal["memory", "communication", "compute_host"]
    part: str
    label: str
    ms: float
    share: float


class Walls(_Part, frozen=True, kw_only=True):
    verdict: Verdict
    limiter: str | None
    margin: float
    threshold: float
    next: Literal["memory", "communication", "compute_host"] | None
    scores: dict[str, float]
    parts: list[WallPart]
    not_measured: dict[str, str]
    """Wall -> what of it could not be measured and how to measure it."""
    reasons: list[str]
    headline: str
    cause: str


class RuleOutcome(_Part, frozen=True, kw_only=True):
    id: str
    title: str
    topic: str
    wall: str
    severity: Literal["low", "medium", "high"]
    outcome: Outcome
    reason: str


class Change(_Part, frozen=True, kw_only=True):
    """One setting to change. `old_key` is an older spelling that means the same."""

    framework: Literal["megatron-bridge", "megatron-lm", "env", "pytorch", "job"]
    key: str
    from_: Any = msgspec.field(name="from", default=None)
    to: Any = None
    since: str | None = None
    until: str | None = None
    old_key: str | None = None
    note: str | None = None


class Condition(_Part, frozen=True, kw_only=True):
    """A prerequisite or conflict. state: met, unmet or unknown (then `question` is set)."""

    text: str
    state: Literal["met", "unmet", "unknown"]
    consequence: str
    source: str
    question: str | None = None


class Evidence(_Part, frozen=True, kw_only=True):
    text: str
    source: str
    change_share: float | None = None
    """Measured change of the step time, negative is faster."""


class Estimate(_Part, frozen=True, kw_only=True, omit_defaults=True):
    status: Status
    low_ms: float | None = None
    expected_ms: float | None = None
    high_ms: float | None = None
    basis: str | None = None
    dominant_assumption: str | None = None
    reason: str | None = None
    next_wall: str | None = None


class Recommendation(_Part, frozen=True, kw_only=True):
    rule: str
    whatif: str | None
    rank: int
    title: str
    wall: str
    severity: Literal["low", "medium", "high"]
    confidence: Literal["low", "medium", "high"]
    finding: str
    """What was measured, in one sentence with its numbers."""
    why: str
    changes: list[Change]
    requires: list[Condition]
    conflicts: list[Condition]
    estimate: Estimate
    evidence: list[Evidence]
    counter_evidence: list[Evidence]
    verify: str
    known_problems: list[str]
    references: list[str]
    alternative_to: str | None = None
    """Rule id of the recommendation this one replaces, if they exclude each other."""
    withheld: str | None = None
    """Why the change should not be made yet, although the finding stands."""


class PlanStep(_Part, frozen=True, kw_only=True):
    rules: list[str]
    title: str
    combined: Estimate
    """Gain of this step together with all before it."""


class PlanChange(_Part, frozen=True, kw_only=True):
    """All settings of the plan's steps as one change, in lines to paste, and its check.

    `checked` counts the frameworks' validations that concern a changed setting, on the
    configuration after the plan: `passed` hold, `unknown` depend on a value that is not known
    (each with the question), `broken` do not hold.
    """

    megatron_bridge: list[str]
    bridge_overrides: list[str]
    megatron_lm: list[str]
    environment: list[str]
    remarks: list[str]
    """What a Bridge recipe may lack before the statements hold."""
    checked: int
    passed: int
    unknown: list[str]
    broken: list[str]


class TimelineSlices(_Part, frozen=True, kw_only=True):
    """Columns of equal length, sorted by lane and start."""

    lane: list[int]
    start_us: list[float]
    dur_us: list[float]
    name: list[int]
    role: list[int]


class Timeline(_Part, frozen=True, kw_only=True):
    """One representative step of one rank, down-sampled to a bounded size."""

    rank: int
    step: str
    step_ms: float
    lanes: list[str]
    names: list[str]
    roles: list[str]
    slices: TimelineSlices
    host: list[list[Any]]
    """Annotations of the launching thread: [start_us, dur_us, name, depth]."""
    exposed: list[list[float]]
    hidden: list[list[float]]
    gaps: list[list[Any]]
    """Idle gaps: [start_us, dur_us, cause]."""
    omitted: int
    """Number of activities merged or left out to keep the size bounded."""


class CollectiveInstance(_Part, frozen=True, kw_only=True):
    index: int
    role: str
    transfer_ms: float
    wait_ms: list[float]
    last: int
    """The rank that arrived last (waited least)."""


class CollectiveView(_Part, frozen=True, kw_only=True):
    """Matched collectives of one communicator in one step, for the heat map."""

    group: str
    step: str
    ranks: list[int]
    instances: list[CollectiveInstance]
    arrived_last: dict[str, int]


class RankSummary(_Part, frozen=True, kw_only=True):
    rank: int
    host: int
    device: str | None
    rank_source: str
    step_ms: float
    compute_ms: float
    ep_a2a_wait_ms: float | None
    host_gap_ms: float
    arrived_last: int | None


class WhatIf(_Part, frozen=True, kw_only=True):
    name: str
    title: str
    estimate: Estimate
    assumptions: list[str]


class Replay(_Part, frozen=True, kw_only=True):
    """How well the model that what-ifs are simulated on repeats the measured step, unchanged."""

    step: str
    """Name of the step that the model holds."""
    ranks: int
    step_ms: float
    error_share: float
    """Replayed against measured step, worst rank."""
    unexplained_share: float
    """Fixed delays that no launch, dependency or usual latency explains, over the step."""
    modelled_share: float
    """Part of the step that the model holds; the rest is taken to repeat it."""


class Reference(_Part, frozen=True, kw_only=True):
    """A published run of the same model on the same GPU; `differences` are [there, here]."""

    model: str
    gpu: str
    precision: str
    tokens_per_s_per_gpu: float
    tflops_per_gpu: float
    release: str
    source: str
    differences: dict[str, list[Any]]
    remark: str


class Definition(_Part, frozen=True, kw_only=True):
    title: str
    unit: str
    definition: str
    better: str | None
    pitfall: str


class CollectiveRate(_Part, frozen=True, kw_only=True):
    """What one kind of collective achieves, per group and step; GB are decimal."""

    family: str
    kind: str
    ranks: int | None
    span: str
    """intra-node or across nodes, `by rank numbers` where only those tell; or unknown."""
    status: Status
    count: float
    gb_per_step: float
    """Sizes as nccl-tests counts them, collectives of 1 MiB and more."""
    transfer_ms: float | None
    alg_gbps: float | None
    bus_gbps: float | None
    link_gbps: float | None
    """The link's figure of this GPU in one direction, for the span."""
    link_share: float | None
    remark: str | None


class ClockPair(_Part, frozen=True, kw_only=True):
    """The clock of `rank` against that of `reference`: subtract `offset_us` from its times."""

    rank: int
    reference: int
    status: Literal["measured", "not_measured"]
    offset_us: float | None = None
    drift_ppm: float | None = None
    residual_us: float | None = None
    """Half the span from the 5th to the 95th percentile of the ends' differences, after the fit."""
    matches: int = 0
    anchors: str | None = None
    """Whose ends were compared."""
    reason: str | None = None


class Lateness(_Part, frozen=True, kw_only=True):
    """How often a rank arrives last in its group's collectives and why, ms per step."""

    family: str
    group: str
    """The ranks of the group."""
    rank: int
    arrived_last: int
    of: int
    """Collectives in which somebody waited for longer than the starts scatter."""
    share: float
    pattern: Literal["sticky", "rotating", "mixed"]
    """Of the group: one rank is last most of the time, all take turns, or neither."""
    caused_wait_ms: float
    """Waiting of the other ranks for this one, all of them together."""
    why: dict[str, float]
    """The same ms by cause: tokens, slow_gpu, compute, host, garbage_collection, unexplained."""


class SlowKernel(_Part, frozen=True, kw_only=True):
    name: str
    ms: float
    peers_ms: float
    slowness: float


class SlowGpu(_Part, frozen=True, kw_only=True):
    """A GPU that runs the same kernels, grids and numbers of runs slower than its peers."""

    rank: int
    slowness: float
    kernels: list[SlowKernel]
    """The kernels with the most time, median ms of one run here and on the peers."""


class RecomputePart(_Part, frozen=True, kw_only=True):
    """Forward work of one module run again in backward, ms per step (modules may overlap)."""

    module: str
    ms: float


class ExpertLoad(_Part, frozen=True, kw_only=True):
    """What the experts of one rank had to do; `gemm_ms` is per step."""

    rank: int
    gemm_ms: float
    rows: float | None
    """Token rows of a forward expert GEMM, after top-k expansion: mean over layers, from shapes."""
    tokens_received: float | None
    """Share of its EP group's received bytes, 1 / ranks if balanced."""
    tflops: float | None


class LayerLoad(_Part, frozen=True, kw_only=True):
    """Token imbalance of one layer: max / mean over the EP ranks, mean over micro-batches."""

    layer: int
    max_over_mean: float
    fullest: int
    """The rank that was fullest most often."""
    of: float
    """Share of the micro-batches in which it was."""


class Why(_Part, frozen=True, kw_only=True):
    """What the causes rest on: rates, clocks, who was late, slow GPUs, recompute, balance."""

    rates: list[CollectiveRate] = []
    clocks: list[ClockPair] = []
    lateness: list[Lateness] = []
    slow_gpus: list[SlowGpu] = []
    recompute: list[RecomputePart] = []
    experts: list[ExpertLoad] = []
    layers: list[LayerLoad] = []


class Result(_Part, frozen=True, kw_only=True):
    schema: str = "moe-advisor/result"
    schema_version: str = SCHEMA_VERSION
    tool: Tool
    inputs: list[Input]
    run: Run
    capture: Capture
    steps: Steps
    walls: Walls
    metrics: dict[str, MetricValue]
    step_parts: list[StepPart]
    parts_by_rank: list[RankParts]
    parts_by_step: list[RankParts]
    compute_absent: ComputeAbsent | None
    idle_causes: list[IdleCause]
    roles: list[Role]
    unclassified: list[Unclassified]
    ranks: list[RankSummary]
    collectives: list[CollectiveView]
    layers: list[dict[str, Any]]
    rules: list[RuleOutcome]
    recommendations: list[Recommendation]
    plan: list[PlanStep]
    whatif: list[WhatIf]
    timeline: Timeline | None
    definitions: dict[str, Definition]
    references: list[Reference] = []
    """Published throughput of the run's model on its GPU, fewest differences first."""
    plan_violations: list[str] = []
    """Validations of the framework that the configuration after the whole plan would break."""
    kernels: list[Kernel] = []
    """What each role's time is made of, longest first; empty in results of older versions."""
    plan_change: PlanChange | None = None
    """The whole plan as one change to paste; None where no step changes a setting."""
    why: Why | None = None
    """Bandwidth, clocks, late ranks, slow GPUs, recompute by module, expert load; older: None."""
    replay: Replay | None = None
    """The model behind `whatif`; None without one and in results of older versions."""
    layers_reason: str | None = None
    """Why `layers` is empty."""
    redaction: str | None = None
    """What `--redact` has hidden; None where nothing was."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `result.json`."""
    schema = msgspec.json.schema(Result)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"moe-advisor result {SCHEMA_VERSION}",
        **schema,
    }
