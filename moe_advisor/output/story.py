"""What all outputs tell, in the order they tell it: figures already printed, words chosen once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moe_advisor.output.formatting import (
    NOT_MEASURED,
    Figure,
    add_up,
    count,
    figure,
    from_tenths,
    gain,
    has_gain,
    headline_tokens,
    ms,
    number,
    plural,
    share,
    significant,
    span,
)
from moe_advisor.result import (
    Estimate,
    MetricValue,
    RankParts,
    Recommendation,
    Result,
    StepPart,
    WallPart,
)

WALLS = ("communication", "compute_host", "memory")
WALL_TITLES = {
    "memory": "Memory",
    "communication": "Communication",
    "compute_host": "Compute & host",
    "capture": "Capture",
}
LIMITERS = {
    "ep_a2a": "EP all-to-all",
    "dp_collective": "DP collectives",
    "tp_collective": "TP collectives",
    "cp_collective": "CP collectives",
    "pp": "pipeline",
    "imbalance": "imbalance",
    "host": "host",
    "compute": "compute",
    "slow_gpu": "a slow GPU",
    "recompute": "recompute",
    "allocator": "allocator",
    "capacity": "capacity",
}
VERDICTS = {
    "memory": "Memory wall",
    "communication": "Communication wall",
    "compute_host": "Compute & host wall",
    "mixed": "Mixed: no single wall",
    "inconclusive": "Inconclusive",
}
FAMILY_TITLES = {
    "compute": "Compute",
    "exposed_communication": "Exposed communication",
    "rest": "Idle, other",
}
KIND_TITLES = {
    "expert": "Expert GEMM",
    "compute": "Other compute",
    "wire": "EP exposed, on the wire",
    "wait": "EP exposed, waiting",
    "unsplit": "EP exposed, wire or waiting",
    "hidden": "EP hidden under compute",
    "comm": "Other communication",
    "host": "Host gap",
    "idle": "Dependency idle",
    "opaque": "Opaque graph",
    "other": "Other",
    "memory": "Memory",
}

LITTLE = 0.05
"""Below this share of the step no wall limits a run much (the threshold the walls use)."""

THIN = 0.012
"""A compute part below this share of the step is too thin to draw: it goes to "Other compute"."""

MANY_RANKS = 4
"""Up to here every rank has its own rows; above, the extremes by name and the others as one."""

EXTREMES = 8
MANY_STEPS = 3

SHORT_LABELS = {
    "Permutation": "Permute",
    "Dense GEMM": "Dense",
    "Elementwise": "Elem.",
    "EP all-to-all, on the wire": "EP all-to-all, on the wire",
    "EP all-to-all, waiting": "waiting",
    "Host gap, synchronising call": "Host gaps",
    "Host gap, launching": "Host gaps",
    "Host gap, allocator": "Host gaps",
    "Host gap, data loading": "Host gaps",
    "Dependency idle": "idle",
    "Other compute": "Other",
    "Casts, quantisation": "Casts",
    "Embedding and loss": "Loss",
    "Optimizer": "Optim.",
    "Attention": "Attn.",
}

HOLDS = {
    "expert_gemm": "routed experts",
    "dense_gemm": "QKV, output, LM head",
    "gemm_unattributed": "no evidence assigns",
    "attention": "fused or not",
    "router": "gating, top-k",
    "permute": "sort, pad, layout",
    "activation": "of the experts",
    "norm": "normalisation",
    "embedding_loss": "logits, loss",
    "optimizer": "update",
    "cast_quantize": "casts, quantisation",
    "elementwise": "adds, reductions",
    "ep_a2a_exposed_transfer": "bytes on the wire",
    "ep_a2a_exposed_wait": "a peer is not there yet",
    "ep_a2a_exposed": "wire or waiting, not told apart",
    "dp_collective_exposed": "gradients, parameters",
    "tp_collective_exposed": "tensor parallel",
    "cp_collective_exposed": "context parallel",
    "pp_p2p_exposed": "pipeline sends and receives",
    "other_collective_exposed": "purpose not in the trace",
    "graph_opaque": "kernels not recorded",
    "copies": "memcpy, memset",
    "host_gap_sync": "synchronising call",
    "host_gap_alloc": "cudaMalloc, cudaFree",
    "host_gap_data": "data loading",
    "host_gap_launch": "next launch not ready",
    "dependency_idle": "stream, peer or copy",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar; `tenths` is the printed value times ten, so that printed parts add up."""

    key: str
    label: str
    kind: str
    family: str
    ms: float
    tenths: int
    share: float

    @property
    def printed(self) -> str:
        """Milliseconds with one decimal."""
        return from_tenths(self.tenths)

    @property
    def short(self) -> str:
        """A label for the place above the bar."""
        return SHORT_LABELS.get(self.label, self.label)


@dataclass(frozen=True, slots=True)
class Bar:
    """A step as one stacked bar; the printed parts add up to the printed total."""

    title: str
    subtitle: str
    note: str
    segments: tuple[Segment, ...]
    total_ms: float

    @property
    def total(self) -> str:
        """The step time as printed: the sum of the printed parts."""
        return from_tenths(sum(segment.tenths for segment in self.segments))

    def families(self) -> list[tuple[str, int, float, float]]:
        """Brackets: title, printed tenths, start and length in ms."""
        found: list[tuple[str, int, float, float]] = []
        at = 0.0
        for family, title in FAMILY_TITLES.items():
            own = [s for s in self.segments if s.family == family]
            length = sum(s.ms for s in own)
            if own:
                found.append((title, sum(s.tenths for s in own), at, length))
            at += length
        return found


@dataclass(frozen=True, slots=True)
class PartRow:
    """A row of the parts table: printed values per rank and for the mean."""

    segment: Segment
    per_rank: tuple[str, ...]
    holds: str


@dataclass(frozen=True, slots=True)
class WallRow:
    """One wall: its score, its parts, what of it is not measured."""

    wall: str
    title: str
    score: float
    limiter: str
    tag: str
    segments: tuple[tuple[str, str, float], ...]
    """Label, kind and share of each part."""
    missing: str | None


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure with its denominator; `metric` is the definition it links to."""

    metric: str
    title: str
    figure: Figure
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation with its place in the plan: `1`, or `A` where it replaces another."""

    mark: str
    found: Recommendation
    instead_of: str | None
    expected: str
    of_step: str
    range: str
    range_low_is_loss: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan in the order to try it, the alternatives, what has to wait, and the total."""

    main: tuple[Advice, ...]
    instead: tuple[Advice, ...]
    waiting: tuple[Advice, ...]
    combined: str
    combined_note: str

    def all(self) -> tuple[Advice, ...]:
        """Every recommendation in the order shown."""
        return self.main + self.instead + self.waiting


# ------------------------------------------------------------------------------------ identity


def step_ms(result: Result) -> float | None:
    """The run's step time in ms, or None where no step was measured."""
    metric = result.metrics.get("step_ms")
    return metric.value if metric is not None and metric.value else None


def run_name(result: Result) -> str:
    """What the run is called: the common start of the input names."""
    names = [one.name for one in result.inputs]
    if not names:
        return "run"
    shortest = min(len(name) for name in names)
    same = 0
    while same < shortest and len({name[same] for name in names}) == 1:
        same += 1
    base = names[0] if len(names) == 1 else names[0][:same]
    for ending in (".gz", ".json", ".sqlite", ".nsys-rep", ".moe"):
        base = base.removesuffix(ending)
    base = base.removesuffix(".rank0").rstrip("._- ").removesuffix(".rank").removesuffix("_rank")
    return base or names[0]


def identity(result: Result) -> list[str]:
    """The run in a few words: GPUs, parallelism, dispatcher, model."""
    run = result.run
    words = []
    if run.gpu:
        words.append(f"{run.world_size} × {run.gpu}" if run.world_size else run.gpu)
    sizes = {
        "EP": "expert_model_parallel_size",
        "TP": "tensor_model_parallel_size",
        "PP": "pipeline_model_parallel_size",
        "CP": "context_parallel_size",
    }
    for short, key in sizes.items():
        value = config(result, key)
        if isinstance(value, int | float) and (value > 1 or short == "EP"):
            words.append(f"{short} {count(value)}")
    if run.dispatcher:
        words.append(f"dispatcher {run.dispatcher}")
    layers, experts, topk = (
        config(result, key) for key in ("num_layers", "num_moe_experts", "moe_router_topk")
    )
    model = [
        text
        for value, text in (
            (layers, f"{layers} layers"),
            (experts, f"{experts} experts"),
            (topk, f"top-{topk}"),
        )
        if isinstance(value, int)
    ]
    if model:
        words.append(", ".join(model))
    return words


def config(result: Result, key: str) -> Any:
    """A value of the run configuration, or None."""
    entry = result.run.config.get(key)
    return entry.value if entry else None


def capture_state(result: Result) -> tuple[str, str]:
    """The badge of the capture: `good`, `warn` or `bad`, and its words."""
    ranks = len(ranks_read(result))
    world = result.run.world_size
    worst = {issue.severity for issue in result.capture.issues}
    if "error" in worst:
        return "bad", "Damaged"
    if world and ranks < world:
        return "warn", f"Partial: {ranks} of {plural(world, 'rank')}"
    if not result.capture.complete:
        return "warn", "Partial"
    if "warning" in worst:
        return "warn", "Complete, with warnings"
    return "good", "Complete"


def ranks_read(result: Result) -> list[int]:
    """The ranks that any input held."""
    return sorted({rank for one in result.inputs for rank in one.ranks})


def capture_rows(result: Result) -> list[tuple[str, str]]:
    """Label and value of the capture-quality box."""
    ranks, world = len(ranks_read(result)), result.run.world_size
    lost = [issue for issue in result.capture.issues if issue.id == "profiler-dropped-events"]
    dropped = len(result.steps.dropped)
    rows = [
        ("Ranks read", f"{ranks} of {world}" if world else f"{ranks}, world size unknown"),
        ("Steps kept", f"{result.steps.count}, {f'{dropped} dropped' if dropped else 'none dropped'}"),
        ("Events lost by profiler", count(sum(issue.count for issue in lost)) if lost else "none reported"),
    ]
    unclassified = result.metrics.get("unclassified_share")
    rows.append(
        ("Unclassified compute", f"{share(unclassified.value)} of step")
        if unclassified is not None and unclassified.value is not None
        else ("Unclassified compute", NOT_MEASURED)
    )
    overhead = profiler_overhead(result)
    rows.append(
        ("Profiler overhead", f"{share(overhead)} of step" if overhead is not None else NOT_MEASURED)
    )
    return rows


def unprofiled_ms(result: Result) -> float | None:
    """The step without the profiler where a log gave it."""
    for place in (result.run.facts, {k: v.value for k, v in result.run.config.items()}):
        for key in ("unprofiled_step_ms", "step_ms_unprofiled"):
            value = place.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(value)
    return None


def profiler_overhead(result: Result) -> float | None:
    """How much longer the traced step is, as a share of it; None where no log gave the other."""
    bare, traced = unprofiled_ms(result), step_ms(result)
    return (traced - bare) / traced if bare and traced else None


# ------------------------------------------------------------------------------------- verdict


def verdict_label(result: Result) -> str:
    """The verdict in a word or two."""
    if little(result):
        return "No wall near"
    return VERDICTS[result.walls.verdict]


def verdict_tone(result: Result) -> str:
    """`bad` for a wall, `warn` for an open verdict, `good` where nothing limits much."""
    if result.walls.verdict in ("mixed", "inconclusive"):
        return "warn"
    return "good" if little(result) else "bad"


def little(result: Result) -> bool:
    """Whether nothing limits the run much."""
    walls = result.walls
    return walls.verdict == "compute_host" and max(walls.scores.values(), default=0.0) < LITTLE


def verdict_detail(result: Result) -> str:
    """Limiter and margin in a few words."""
    walls = result.walls
    words = []
    if walls.limiter:
        words.append(f"limiter {limiter(walls.limiter)}")
    if step_ms(result) and walls.verdict != "inconclusive":
        words.append(f"margin {number(walls.margin * 100)} points")
    return " · ".join(words)


def limiter(name: str) -> str:
    """A limiter in words."""
    return LIMITERS.get(name, name.replace("_", " "))


def partial_prefix(result: Result) -> str:
    """What opens the verdict where ranks are missing."""
    ranks, world = ranks_read(result), result.run.world_size
    if world and 0 < len(ranks) < world:
        return f"From {plural(len(ranks), 'rank')} of {world} only: "
    return ""


def wall_rows(result: Result) -> list[WallRow]:
    """The walls, highest score first."""
    walls = result.walls
    ordered = sorted(WALLS, key=lambda wall: -walls.scores.get(wall, 0.0))
    if walls.verdict in WALLS:
        ordered.sort(key=lambda wall: wall != walls.verdict)
    rows = []
    for wall in ordered:
        parts = [part for part in walls.parts if part.wall == wall and part.share > 0]
        missing = walls.not_measured.get(wall)
        if wall == walls.verdict and walls.limiter:
            what = f"limiter: {limiter(walls.limiter)}"
        elif parts:
            what = f"limiter: {limiter(max(parts, key=lambda part: part.share).part)}"
        else:
            what = "partly measured" if missing else "nothing found"
        if missing and parts:
            what += ", partly measured"
        mixed = walls.verdict == "mixed" and wall in ordered[:2]
        tag = "level" if mixed else "next wall" if wall == walls.next else ""
        rows.append(
            WallRow(
                wall=wall,
                title=WALL_TITLES[wall],
                score=walls.scores.get(wall, 0.0),
                limiter=what,
                tag=tag,
                segments=tuple((part.label, _wall_kind(part), part.share) for part in parts),
                missing=missing,
            )
        )
    return rows


def judged(result: Result) -> bool:
    """Whether the walls hold anything measured: without it a score of 0 means nothing."""
    return bool(result.walls.parts) or any(result.walls.scores.values()) or bool(step_ms(result))


def wall_score(result: Result, row: WallRow) -> str:
    """A wall's score as printed; a dash where nothing of it was measured."""
    return share(row.score) if judged(result) else "–"


def not_recoverable(result: Result) -> float:
    """The share of the step that no wall claims."""
    return max(0.0, 1.0 - sum(max(0.0, score) for score in result.walls.scores.values()))


def _wall_kind(part: WallPart) -> str:
    if part.wall == "memory":
        return "memory"
    if part.part in ("imbalance", "slow_gpu") or "waiting" in part.label.lower():
        return "wait"
    if part.part == "ep_a2a":
        return "hidden" if "slowed" in part.label.lower() else "wire"
    if part.wall == "communication":
        return "comm"
    return "host" if part.part == "host" else "compute"


# --------------------------------------------------------------------------------------- tiles


def tiles(result: Result) -> list[Tile]:
    """The six headline figures."""
    m = result.metrics
    step = step_ms(result)
    return [
        _step_tile(result, step),
        _exposed_tile(m, step),
        _ratio_tile(m),
        _rate_tile(result),
        _throughput_tile(result),
        _memory_tile(m),
    ]


def _value(metrics: dict[str, MetricValue], name: str) -> float | None:
    metric = metrics.get(name)
    return None if metric is None or metric.status == "not_measured" else metric.value


def _absent(metric: MetricValue | None) -> tuple[str, ...]:
    return (metric.reason or "the reason is not recorded",) if metric else ("not in this result",)


def _step_tile(result: Result, step: float | None) -> Tile:
    metric = result.metrics.get("step_ms")
    shown = figure(metric)
    if not shown.measured:
        return Tile("step_ms", "Step time", shown, _absent(metric))
    ranks = len(result.ranks) or len(ranks_read(result))
    lines = [f"{plural(result.steps.count, 'step')} × {plural(ranks, 'rank')}"]
    if shown.note:
        lines[0] += f", {shown.note} ms"
    bare = unprofiled_ms(result)
    lines.append(f"{ms(bare)} without profiler" if bare else "with the profiler running")
    return Tile("step_ms", "Step time", Figure(shown.text, "ms"), tuple(lines))


def _exposed_tile(m: dict[str, MetricValue], step: float | None) -> Tile:
    metric = m.get("ep_a2a_exposed_ms")
    shown = figure(metric)
    title = "Exposed EP all-to-all"
    if not shown.measured or metric is None or metric.value is None:
        return Tile("ep_a2a_exposed_ms", title, shown, _absent(metric))
    lines = [f"{share(metric.value / step)} of {ms(step)} ms"] if step else []
    transfer, wait = m.get("ep_a2a_transfer_ms"), m.get("ep_a2a_wait_ms")
    if transfer and wait and transfer.status == wait.status == "measured":
        lines.append(f"transfer {ms(transfer.value or 0)}, wait {ms(wait.value or 0)}")
    elif transfer and transfer.low is not None and transfer.high is not None:
        lines.append(f"transfer ≈ {span(transfer.low, transfer.high)} ms")
    return Tile("ep_a2a_exposed_ms", title, Figure(shown.text, "ms/step"), tuple(lines))


def _ratio_tile(m: dict[str, MetricValue]) -> Tile:
    metric = m.get("a2a_to_expert_gemm")
    shown = figure(metric)
    title = "All-to-all : expert GEMM"
    if not shown.measured:
        return Tile("a2a_to_expert_gemm", title, shown, _absent(metric))
    exposed, gemm = _value(m, "ep_a2a_exposed_ms"), _value(m, "expert_gemm_ms")
    lines = (
        (f"{ms(exposed)} ms exposed", f"÷ {ms(gemm)} ms expert GEMM")
        if exposed is not None and gemm is not None
        else ()
    )
    return Tile("a2a_to_expert_gemm", title, shown, lines)


def _rate_tile(result: Result) -> Tile:
    m = result.metrics
    metric = m.get("ep_a2a_bus_gbps")
    shown = figure(metric)
    if not shown.measured or metric is None or metric.value is None:
        return Tile("ep_a2a_bus_gbps", "EP wire rate", shown, _absent(metric))
    lines = []
    transfer = _value(m, "ep_a2a_transfer_ms")
    if transfer:
        lines.append(f"{number(metric.value * transfer / 1e3, 2)} GB ÷ {ms(transfer)} ms")
    link = result.run.hardware.get("nvlink_gbps_per_direction")
    if isinstance(link, int | float) and link > 0:
        lines.append(f"{share(metric.value / link)} of NVLink's {count(link)}")
    return Tile(
        "ep_a2a_bus_gbps", "EP wire rate", Figure(shown.text, "GB/s per GPU"), tuple(lines)
    )


def _throughput_tile(result: Result) -> Tile:
    metric = result.metrics.get("tokens_per_s_per_gpu")
    shown = figure(metric)
    if not shown.measured or metric is None or metric.value is None:
        return Tile("tokens_per_s_per_gpu", "Throughput", shown, _absent(metric))
    text, unit = headline_tokens(metric.value)
    bare = unprofiled_ms(result)
    lines = []
    if bare:
        lines.append(f"{count(round(metric.value * bare / 1e3))} tokens ÷ {ms(bare)} ms")
        lines.append("per GPU, unprofiled step")
    else:
        lines.append(f"per GPU: {metric.basis}" if metric.basis else "per GPU")
    approx = "≈ " if metric.status == "estimated" else ""
    return Tile("tokens_per_s_per_gpu", "Throughput", Figure(approx + text, unit), tuple(lines))


def _memory_tile(m: dict[str, MetricValue]) -> Tile:
    metric, headroom = m.get("memory_peak_gib"), m.get("memory_headroom_gib")
    shown = figure(metric)
    if not shown.measured or metric is None or metric.value is None:
        return Tile("memory_peak_gib", "Peak memory", shown, _absent(metric))
    lines = []
    if headroom is not None and headroom.value is not None:
        total = metric.value + headroom.value
        lines.append(f"{share(metric.value / total)} of {number(total)} GiB")
        lines.append(f"{number(headroom.value)} GiB free")
    return Tile("memory_peak_gib", "Peak memory", shown, tuple(lines))


def ranks_line(result: Result) -> str:
    """Who arrives last, and which stage or rank is the slowest."""
    words = []
    totals: dict[str, int] = {}
    for view in result.collectives:
        for rank, times in view.arrived_last.items():
            totals[rank] = totals.get(rank, 0) + times
    known = {str(r.rank): r.arrived_last for r in result.ranks if r.arrived_last is not None}
    late = known or totals
    if late and sum(late.values()):
        first = min(late, key=lambda rank: (-late[rank], rank))
        words.append(
            f"Last to arrive: rank {first}, in {count(late[first])} of "
            f"{count(sum(late.values()))} matched collectives."
        )
    stages = config(result, "pipeline_model_parallel_size")
    if stages == 1:
        words.append("One pipeline stage, so no slowest stage.")
    if len(result.ranks) > 1:
        slow = max(result.ranks, key=lambda r: (r.step_ms, -r.rank))
        words.append(f"Slowest: rank {slow.rank}, {ms(slow.step_ms)} ms.")
    return " ".join(words)


# ------------------------------------------------------------------------------ parts of a step


def kind_of(part: str, family: str) -> str:
    """The colour and pattern of a part."""
    named = {
        "expert_gemm": "expert",
        "ep_a2a_exposed_transfer": "wire",
        "ep_a2a_exposed_wait": "wait",
        "ep_a2a_exposed": "unsplit",
        "dependency_idle": "idle",
        "graph_opaque": "opaque",
    }
    if part in named:
        return named[part]
    if family == "idle":
        return "host"
    return {"compute": "compute", "exposed_communication": "comm"}.get(family, "other")


def _family(part: StepPart) -> str:
    return part.family if part.family in ("compute", "exposed_communication") else "rest"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which parts a view shows on their own, in order; the rest is merged, so rows line up."""

    shown: tuple[tuple[str, str, str, str], ...]
    """Key, label, kind and family."""
    merged_into: dict[str, str]


def _layout(result: Result) -> _Layout:
    total = sum(part.ms for part in result.step_parts) or 1.0
    shown: list[tuple[str, str, str, str]] = []
    merged: dict[str, str] = {}
    # The order of the parts is fixed by who made the result; a family stays together.
    ordered = sorted(result.step_parts, key=lambda part: list(FAMILY_TITLES).index(_family(part)))
    known: dict[str, StepPart] = {part.part: part for part in ordered}
    for bar in (*result.parts_by_rank, *result.parts_by_step):
        for part in bar.parts:
            known.setdefault(part.part, part)
    for part in sorted(known.values(), key=lambda p: list(FAMILY_TITLES).index(_family(p))):
        own = next((p.ms for p in result.step_parts if p.part == part.part), 0.0)
        thin = own < THIN * total
        if part.part == "compute_other" or (
            _family(part) == "compute" and part.part != "expert_gemm" and thin
        ):
            merged[part.part] = "compute_other"
            continue
        kind = kind_of(part.part, part.family)
        shown.append((part.part, part.label, kind, _family(part)))
    if merged:
        at = sum(1 for row in shown if row[3] == "compute")
        shown.insert(at, ("compute_other", "Other compute", "compute", "compute"))
    return _Layout(tuple(shown), merged)


def _segments(
    parts: Sequence[StepPart], total_ms: float, layout: _Layout
) -> tuple[Segment, ...]:
    sums: dict[str, float] = {}
    for part in parts:
        key = layout.merged_into.get(part.part, part.part)
        sums[key] = sums.get(key, 0.0) + part.ms
    keys = [row[0] for row in layout.shown]
    values = [sums.get(key, 0.0) for key in keys]
    absorbing = keys.index("compute_other") if "compute_other" in keys else None
    printed = add_up(values, total_ms, absorbing)
    return tuple(
        Segment(key, label, kind, family, value, tenths, value / total_ms if total_ms else 0.0)
        for (key, label, kind, family), value, tenths in zip(
            layout.shown, values, printed, strict=True
        )
    )


def mean_bar(result: Result) -> Bar | None:
    """The mean over ranks and steps, or None where no step was measured."""
    if not result.step_parts:
        return None
    total = sum(part.ms for part in result.step_parts)
    ranks = len(result.parts_by_rank) or len(ranks_read(result))
    note = f"{plural(ranks, 'rank')}, {plural(result.steps.count, 'step')}"
    return Bar("Mean", note, "", _segments(result.step_parts, total, _layout(result)), total)


def bars(result: Result) -> list[list[Bar]]:
    """Bars per rank and step below the mean, one group a rank; many are shortened."""
    layout = _layout(result)
    if len(result.parts_by_rank) > MANY_RANKS:
        return [_many_ranks(result, layout)]
    groups = []
    for rank in result.parts_by_rank:
        steps = [bar for bar in result.parts_by_step if bar.rank == rank.rank]
        title, note = f"Rank {rank.rank}", _rank_note(result, rank.rank)
        chosen = _some_steps(steps) if len(steps) > 1 else [("mean", [rank])]
        groups.append(
            [
                _joined(title if i == 0 else "", name, note if i == 0 else "", own, layout)
                for i, (name, own) in enumerate(chosen)
            ]
        )
    return groups


def _some_steps(steps: Sequence[RankParts]) -> list[tuple[str, list[RankParts]]]:
    """All of a few steps; of many the first, the median, the worst and the mean of the rest."""
    if len(steps) <= MANY_STEPS:
        return [(_step_name(bar), [bar]) for bar in steps]
    by_length = sorted(steps, key=lambda bar: bar.step_ms)
    picks = {
        id(steps[0]): ("first", steps[0]),
        id(by_length[len(steps) // 2]): ("median", by_length[len(steps) // 2]),
        id(by_length[-1]): ("worst", by_length[-1]),
    }
    rest = [bar for bar in steps if id(bar) not in picks]
    named = [(f"{word}: {_step_name(bar)}", [bar]) for word, bar in picks.values()]
    return [*named, (f"mean of {len(rest)} others", rest)]


def _step_name(bar: RankParts) -> str:
    name = bar.step or "mean"
    return f"step {name}" if name.isdigit() else name


def _rank_note(result: Result, rank: int) -> str:
    summary = next((one for one in result.ranks if one.rank == rank), None)
    if summary is None:
        return ""
    known = [one.arrived_last for one in result.ranks if one.arrived_last is not None]
    if summary.arrived_last is not None and known and summary.arrived_last == max(known) > 0:
        return f"last to arrive {count(summary.arrived_last)} of {count(sum(known))}"
    if summary.ep_a2a_wait_ms:
        return f"waits {ms(summary.ep_a2a_wait_ms)} ms per step"
    return ""


def _joined(
    title: str, subtitle: str, note: str, own: Sequence[RankParts], layout: _Layout
) -> Bar:
    """The mean of several bars as one."""
    parts = [
        StepPart(part=p.part, family=p.family, label=p.label, ms=p.ms / len(own))
        for bar in own
        for p in bar.parts
    ]
    total = sum(bar.step_ms for bar in own) / len(own)
    return Bar(title, subtitle, note, _segments(parts, total, layout), total)


def extremes(result: Result) -> list[int]:
    """The ranks worth naming: those that cause most waiting, then the slowest; at most eight."""
    late = {rank.rank: rank.arrived_last or 0 for rank in result.ranks}
    waits = {rank.rank: rank.ep_a2a_wait_ms or 0.0 for rank in result.ranks}
    steps = {bar.rank: bar.step_ms for bar in result.parts_by_rank}
    ordered = sorted(
        steps, key=lambda rank: (-late.get(rank, 0), waits.get(rank, 0.0), -steps[rank], rank)
    )
    half = EXTREMES // 2
    most_waiting = sorted(steps, key=lambda rank: (-waits.get(rank, 0.0), -steps[rank], rank))
    chosen = ordered[:half]
    chosen += [rank for rank in most_waiting if rank not in chosen][: EXTREMES - half]
    return sorted(chosen)


def _many_ranks(result: Result, layout: _Layout) -> list[Bar]:
    named = extremes(result)
    by_rank = {bar.rank: bar for bar in result.parts_by_rank}
    shown = [
        _joined(f"Rank {rank}", "mean", _rank_note(result, rank), [by_rank[rank]], layout)
        for rank in named
    ]
    rest = [bar for bar in result.parts_by_rank if bar.rank not in named]
    if rest:
        shown.append(_joined(plural(len(rest), "other"), "mean", "", rest, layout))
    return shown


def part_rows(result: Result) -> tuple[list[str], list[PartRow]]:
    """Column titles of the ranks shown, and the table that adds up column by column."""
    mean = mean_bar(result)
    if mean is None:
        return [], []
    layout = _layout(result)
    columns = result.parts_by_rank if 1 < len(result.parts_by_rank) <= MANY_RANKS else []
    titles = [f"Rank {bar.rank}" for bar in columns]
    by_rank = [_segments(bar.parts, bar.step_ms, layout) for bar in columns]
    rows = [
        PartRow(
            segment,
            tuple(column[i].printed for column in by_rank),
            _holds(result, segment, layout),
        )
        for i, segment in enumerate(mean.segments)
        if segment.tenths or any(column[i].tenths for column in by_rank)
    ]
    return titles, rows


def rank_totals(result: Result) -> list[str]:
    """Printed step time per rank column: the sums of the printed parts."""
    if not 1 < len(result.parts_by_rank) <= MANY_RANKS:
        return []
    layout = _layout(result)
    return [
        from_tenths(sum(s.tenths for s in _segments(bar.parts, bar.step_ms, layout)))
        for bar in result.parts_by_rank
    ]


def _holds(result: Result, segment: Segment, layout: _Layout) -> str:
    if segment.key == "compute_other":
        merged = [
            part for part in result.step_parts if layout.merged_into.get(part.part) == segment.key
        ]
        merged.sort(key=lambda part: (-part.ms, part.part))
        listed = [f"{part.label.lower()} {ms(part.ms)}" for part in merged if part.ms >= 0.05]
        return " · ".join(listed[:4]) or "small kernels"
    role = next((one for one in result.roles if one.role == segment.key), None)
    text = HOLDS.get(segment.key, "")
    if role is not None and segment.family == "compute":
        return f"{plural(role.count, 'kernel')}, {text}" if text else plural(role.count, "kernel")
    if segment.key == "ep_a2a_exposed_transfer":
        calls = sum(r.count for r in result.roles if r.role in ("ep_dispatch", "ep_combine"))
        rate = figure(result.metrics.get("ep_a2a_bus_gbps"))
        words = [plural(calls, "call")] if calls else []
        words += [str(rate)] if rate.measured else []
        return ", ".join(words) or text
    return text


def hidden_ms(result: Result) -> float | None:
    """EP all-to-all that runs under compute, ms per step; None where it can't be known."""
    total, exposed = (
        _value(result.metrics, "ep_a2a_ms"),
        _value(result.metrics, "ep_a2a_exposed_ms"),
    )
    return None if total is None or exposed is None else max(0.0, total - exposed)


def time_lead(result: Result) -> str:
    """What the bar of the step shows, in a sentence."""
    mean = mean_bar(result)
    if mean is None or not mean.total_ms:
        return "No step was measured, so there is nothing to divide."
    by_family = {title: tenths for title, tenths, _, _ in mean.families()}
    exposed = by_family.get(FAMILY_TITLES["exposed_communication"], 0) / 10
    experts = next((s for s in mean.segments if s.key == "expert_gemm"), None)
    words = [f"{share(exposed / mean.total_ms)} of the step is communication that no kernel hides"]
    waiting = sum(s.ms for s in mean.segments if s.kind == "wait")
    wire = sum(s.ms for s in mean.segments if s.kind == "wire")
    if wire > 2 * waiting and wire > 0.5 * exposed:
        words[0] += ", most of it bytes on the wire"
    elif waiting > wire and waiting > 0.5 * exposed:
        words[0] += ", most of it waiting for a peer"
    words[0] += "."
    if experts is not None and experts.tenths:
        words.append(
            f"Expert GEMM, the work this model exists for, is {experts.printed} ms, "
            f"{share(experts.share)}."
        )
    idle = sum(s.ms for s in mean.segments if s.kind == "host")
    if idle > 0.1 * mean.total_ms:
        words.append(f"The GPU waits {ms(idle)} ms for the host.")
    return " ".join(words)


# ---------------------------------------------------------------------------------------- plan


def plan(result: Result) -> Plan:
    """The recommendations in the order to show them."""
    step = step_ms(result)
    ordered = sorted(result.recommendations, key=lambda found: (found.rank, found.rule))
    waiting = [found for found in ordered if found.withheld]
    instead = [found for found in ordered if found.alternative_to and not found.withheld]
    main = [found for found in ordered if not found.alternative_to and not found.withheld]
    marks = {found.rule: str(i) for i, found in enumerate(main, start=1)}
    alternatives = [
        _advice(chr(ord("A") + i) if i < 26 else f"A{i}", found, step, marks)
        for i, found in enumerate(instead)
    ]
    combined, note = _combined(result, step)
    return Plan(
        main=tuple(_advice(marks[found.rule], found, step, marks) for found in main),
        instead=tuple(alternatives),
        waiting=tuple(_advice("–", found, step, marks) for found in waiting),
        combined=combined,
        combined_note=note,
    )


def _advice(
    mark: str, found: Recommendation, step: float | None, marks: dict[str, str]
) -> Advice:
    estimate = found.estimate
    expected = of_step = reach = ""
    if has_gain(estimate):
        about = "≈ " if estimate.status == "estimated" else ""
        if estimate.expected_ms is not None:
            expected = f"{about}{ms(estimate.expected_ms)} ms"
            of_step = share(estimate.expected_ms / step) if step else ""
        if estimate.low_ms is not None and estimate.high_ms is not None:
            reach = f"{span(estimate.low_ms, estimate.high_ms)} ms"
    other = found.alternative_to
    return Advice(
        mark=mark,
        found=found,
        instead_of=marks.get(other, other) if other else None,
        expected=expected,
        of_step=of_step,
        range=reach,
        range_low_is_loss=(estimate.low_ms or 0.0) < 0,
    )


def _combined(result: Result, step: float | None) -> tuple[str, str]:
    if len(result.plan) < 2:
        return "", ""
    last = result.plan[-1].combined
    if not has_gain(last) or last.expected_ms is None:
        return "", ""
    of = f" ({share(last.expected_ms / step)})" if step else ""
    text = f"Steps 1 to {len(result.plan)} together: {ms(last.expected_ms)} ms{of}"
    if last.low_ms is not None and last.high_ms is not None:
        text += f", {span(last.low_ms, last.high_ms)}"
    if step:
        text += f" → step {ms(step - last.expected_ms)} ms"
    return text, last.basis or ""


def gain_domain(result: Result) -> tuple[float, float]:
    """The common scale of all range bars, in ms: whole ticks around every range and zero."""
    low, high = 0.0, 0.0
    for found in result.recommendations:
        for value in _bounds(found.estimate):
            low, high = min(low, value), max(high, value)
    return low, high or 1.0


def _bounds(estimate: Estimate) -> list[float]:
    if not has_gain(estimate):
        return []
    values = (estimate.low_ms, estimate.expected_ms, estimate.high_ms)
    return [value for value in values if value is not None]


def nothing_to_do(result: Result) -> str:
    """What to say where there is no recommendation."""
    passed = sum(rule.outcome == "pass" for rule in result.rules)
    unknown = sum(rule.outcome == "not_measured" for rule in result.rules)
    mean = mean_bar(result)
    words = ["Nothing to change was found."]
    if mean is not None and mean.segments:
        largest = max(mean.segments, key=lambda s: s.ms)
        words.append(
            f"The largest part of the step is {largest.label} with {largest.printed} of "
            f"{mean.total} ms."
        )
    words.append(f"{plural(passed, 'rule')} passed, {count(unknown)} could not be measured.")
    return " ".join(words)


def open_questions(result: Result) -> list[str]:
    """What could not be measured among headlines and walls, each with the way to get it."""
    found = [
        f"{tile.title}: {tile.lines[0]}"
        for tile in tiles(result)
        if not tile.figure.measured and tile.lines
    ]
    for wall in WALLS:
        text = result.walls.not_measured.get(wall)
        if text:
            line = f"{WALL_TITLES[wall]} wall: {text}"
            # The wall repeats what its headline figure says already.
            if not any(text.partition(": ")[2] and text.partition(": ")[2] in one for one in found):
                found.append(line)
    return list(dict.fromkeys(found))


GAP_CAUSES = {
    "host_gap_sync": "host gap: the host stood in a synchronising call",
    "host_gap_alloc": "host gap: the host stood in the allocator",
    "host_gap_data": "host gap: the host loaded data",
    "host_gap_launch": "host gap: the host was on its way to the next launch",
    "dependency_idle": "issued, waits for another stream, a peer or a copy",
}


def gap_cause(cause: str) -> str:
    """The cause of an idle gap in words."""
    return GAP_CAUSES.get(cause, cause.replace("_", " "))


def gain_text(advice: Advice, step: float | None) -> str:
    """What the first step of the plan is expected to bring."""
    return gain(advice.found.estimate, step)


def gap_of(result: Result, name: str) -> str:
    """A metric on one line for tables: value, unit and spread, or why not."""
    metric = result.metrics.get(name)
    shown = figure(metric)
    if not shown.measured:
        return f"{NOT_MEASURED}: {shown.note}" if shown.note else NOT_MEASURED
    return f"{shown} {shown.note}".strip()


def ratio_text(value: float) -> str:
    """A ratio with its sign: `6.7 ×`."""
    return f"{significant(value)} ×"
