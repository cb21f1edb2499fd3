"""Which of the Three Walls a run stands at: disjoint recoverable time, wall by wall.

The walls are those of the Megatron-Core MoE paper: memory, communication, compute and host. A
score is the share of the step that would come back if that wall were gone; nothing is counted
twice. In words: docs/explanation/three-walls.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from moe_advisor.measure.health import SLOW_GPU
from moe_advisor.result import Issue, MetricValue, StepPart, WallPart, Walls

MARGIN = 0.03
"""The first wall must lead by this share of the step: two captures of one job by different
profilers move a score by up to 2 points in our pairs."""

WORTHWHILE = 0.05
"""A wall below this share of the step limits little: less than the profiler's own overhead on
most captures."""

WALLS = ("memory", "communication", "compute_host")

_TITLES = {
    "memory": "Memory",
    "communication": "Communication",
    "compute_host": "Compute and host",
}


@dataclass(frozen=True)
class _Share:
    """One recoverable part: `low_ms` is what is certain, `ms` what is likely, both per step."""

    wall: str
    part: str
    label: str
    ms: float
    low_ms: float


def judge(
    metrics: Mapping[str, MetricValue],
    step_parts: list[StepPart],
    wait_causes_ms: Mapping[str, float] | None,
    recompute_inside_ms: Mapping[str, float],
) -> Walls:
    """The verdict on a run.

    `recompute_inside_ms` tells how much exposed communication (`comm`) and permutation
    (`permute`) the recompute time holds: that time counts for memory only.
    """
    step = _value(metrics, "step_ms")
    if not step:
        return _nothing("no step was measured: there is nothing to judge")
    parts = {part.part: part.ms for part in step_parts}
    shares = [
        *_memory(metrics),
        *_communication(metrics, parts, wait_causes_ms, recompute_inside_ms.get("comm", 0.0)),
        *_compute_host(metrics, parts, wait_causes_ms, recompute_inside_ms.get("permute", 0.0)),
    ]
    scores = {w: sum(s.ms for s in shares if s.wall == w) / step for w in WALLS}
    certain = {w: sum(s.low_ms for s in shares if s.wall == w) / step for w in WALLS}
    unsplit = "ep_a2a_exposed" in parts and parts["ep_a2a_exposed"] > 0
    verdict, margin = _verdict(scores, certain, unsplit)
    hidden = _unmeasured_excess(metrics) / step
    if verdict not in ("compute_host", "inconclusive", "mixed"):
        # What the floor of compute could add must not turn the order around.
        doubt = scores[verdict] - scores["compute_host"] - hidden
        verdict = verdict if doubt >= MARGIN else "mixed"
    ordered = sorted(WALLS, key=lambda w: -scores[w])
    leader = verdict if verdict in WALLS else ordered[0]
    limiter = _limiter(leader, shares, scores[leader]) if verdict != "inconclusive" else None
    others = [w for w in ordered if w != leader]
    next_wall = others[0] if scores[others[0]] > 0 else None
    headline, cause = _sentences(verdict, limiter, metrics, shares, scores, step)
    return Walls(
        verdict=verdict,  # type: ignore[arg-type]
        limiter=limiter,
        margin=round(margin, 6),
        threshold=MARGIN,
        next=next_wall,  # type: ignore[arg-type]
        scores={w: round(scores[w], 6) for w in WALLS},
        parts=[
            WallPart(
                wall=s.wall,  # type: ignore[arg-type]
                part=s.part,
                label=s.label,
                ms=round(s.ms, 6),
                share=round(s.ms / step, 6),
            )
            for s in sorted(shares, key=lambda s: (WALLS.index(s.wall), -s.ms, s.part))
            if s.ms > 0
        ],
        not_measured=_gaps(metrics, unsplit),
        reasons=_reasons(verdict, scores, shares, step, margin, unsplit, hidden),
        headline=headline,
        cause=cause,
    )


LOSSES = frozenset(
    {
        "clock-jump",
        "clock-skew",
        "gpu-work-without-launch",
        "kernels-without-launch",
        "launches-missing",
        "rank-shorter",
        "rows-dropped",
        "uneven-steps",
    }
)
"""Warnings about lost or doubtful data that numbers of the verdict rest on."""


def doubted(walls: Walls, issues: Sequence[Issue], metrics: Mapping[str, MetricValue]) -> Walls:
    """The verdict with what the capture's damage and hidden kernels mean for it, said in words."""
    broken = [one for one in issues if one.severity == "error"]
    shaky = [one for one in issues if one.severity == "warning" and one.id in LOSSES]
    reasons = list(walls.reasons)
    if broken or shaky:
        names = ", ".join(dict.fromkeys(one.id for one in (*broken, *shaky)))
        reasons.append(f"Drawn from a damaged capture ({names}): capture again to be sure.")
    hidden = _value(metrics, "graph_opaque_share")
    if hidden > 0:
        reasons.append(
            f"{100 * hidden:.1f} % of the step lies in CUDA graphs recorded as a whole: gaps "
            "and kernels inside them are not seen; capture with --cuda-graph-trace=node."
        )
    headline = walls.headline
    if broken and walls.verdict != "inconclusive":
        headline = f"From a damaged capture: {headline}"
    return msgspec.structs.replace(walls, reasons=reasons, headline=headline)


def _value(metrics: Mapping[str, MetricValue], name: str) -> float:
    found = metrics.get(name)
    return found.value if found is not None and found.value is not None else 0.0


def _unmeasured_excess(metrics: Mapping[str, MetricValue]) -> float:
    """What compute above its floor may be at most where the floor is not known, ms."""
    known = metrics["compute_excess_ms"].status != "not_measured"
    return 0.0 if known else _value(metrics, "permute_ms")


def _memory(metrics: Mapping[str, MetricValue]) -> list[_Share]:
    names = (
        ("recompute", "Recompute", "recompute_ms"),
        ("allocator", "Allocator calls", "host_gap_alloc_ms"),
        ("offload", "Exposed offload", "offload_exposed_ms"),
    )
    values = [(part, label, _value(metrics, name)) for part, label, name in names]
    return [_Share("memory", part, label, ms, ms) for part, label, ms in values]


def _communication(
    metrics: Mapping[str, MetricValue],
    parts: Mapping[str, float],
    causes: Mapping[str, float] | None,
    inside_recompute: float,
) -> list[_Share]:
    found: list[_Share] = []
    if "ep_a2a_exposed" in parts:  # one rank: the wire's share is bounded only
        exposed = max(parts["ep_a2a_exposed"] - inside_recompute, 0.0)
        transfer = metrics.get("ep_a2a_transfer_ms")
        high = low = 0.0
        if transfer is not None and transfer.status == "estimated":
            high = min(transfer.high or 0.0, exposed)
            low = min(transfer.low or 0.0, exposed)
        elif transfer is not None and transfer.status == "not_measured":
            high, low = exposed, 0.0
        found.append(
            _Share("communication", "ep_a2a", "EP all-to-all on the wire, at most", high, low)
        )
    else:
        wire = max(parts.get("ep_a2a_exposed_transfer", 0.0) - inside_recompute, 0.0)
        waiting = parts.get("ep_a2a_exposed_wait", 0.0)
        found.append(_Share("communication", "ep_a2a", "EP all-to-all on the wire", wire, wire))
        for cause, part, label in (
            ("imbalance", "imbalance", "Waiting for ranks with more tokens"),
            ("unexplained", "ep_a2a", "EP waiting, unexplained"),
        ):
            ms = waiting * _cause_share(causes, cause)
            found.append(_Share("communication", part, label, ms, ms))
    for family, label in (
        ("dp_collective", "DP collectives"),
        ("tp_collective", "TP collectives"),
        ("cp_collective", "CP collectives"),
        ("pp_p2p", "Pipeline P2P"),
    ):
        exposed = parts.get(f"{family}_exposed", 0.0)
        if family == "pp_p2p":
            exposed -= _behind_receives(metrics, parts)
        transfer_ms, wait_ms = (
            _value(metrics, f"{family}_transfer_ms"),
            _value(metrics, f"{family}_wait_ms"),
        )
        if transfer_ms + wait_ms > 0 and family != "pp_p2p":  # its waiting is the bubble
            exposed *= transfer_ms / (transfer_ms + wait_ms)
        found.append(
            _Share("communication", "pp" if family == "pp_p2p" else family, label, exposed, exposed)
        )
    slowdown = _value(metrics, "overlap_slowdown_ms")
    # Beside which communication compute ran slower is not recorded: the longest is named.
    beside = max(_FAMILIES, key=lambda family: _value(metrics, f"{family}_ms"))
    part = "pp" if beside == "pp_p2p" else beside
    found.append(_Share("communication", part, SLOWED, slowdown, slowdown))
    return found


_FAMILIES = ("ep_a2a", "dp_collective", "tp_collective", "cp_collective", "pp_p2p")

SLOWED = "Compute slowed by overlap"


def _compute_host(
    metrics: Mapping[str, MetricValue],
    parts: Mapping[str, float],
    causes: Mapping[str, float] | None,
    permute_in_recompute: float,
) -> list[_Share]:
    gaps = _value(metrics, "host_gap_ms") - _value(metrics, "host_gap_alloc_ms")
    waiting = parts.get("ep_a2a_exposed_wait", 0.0)
    excess = _value(metrics, "compute_excess_ms")
    permute = _value(metrics, "permute_ms")
    if permute > 0:
        excess *= 1.0 - min(permute_in_recompute / permute, 1.0)
    slow = _value(metrics, "gpu_slowness") > SLOW_GPU
    found = [
        ("host", "Host gaps", gaps),
        ("host", "Launching late beside a receive", _behind_receives(metrics, parts)),
        ("host", "Waiting for a rank held by its host", waiting * _cause_share(causes, "host")),
        (
            "slow_gpu" if slow else "compute",
            "Waiting for a slower GPU" if slow else "Waiting for a rank with more compute",
            waiting * _cause_share(causes, "compute"),
        ),
        ("compute", "Compute above its floor", excess),
    ]
    return [_Share("compute_host", part, label, ms, ms) for part, label, ms in found]


def _behind_receives(metrics: Mapping[str, MetricValue], parts: Mapping[str, float]) -> float:
    """Exposed pipeline time that is no bubble, ms: a transfer was resident, but the host was late.

    Nothing where the bubble is not measured.
    """
    bubble = metrics.get("pp_bubble_ms")
    if bubble is None or bubble.value is None:
        return 0.0
    return max(parts.get("pp_p2p_exposed", 0.0) - bubble.value, 0.0)


def _cause_share(causes: Mapping[str, float] | None, cause: str) -> float:
    if not causes:
        return 1.0 if cause == "unexplained" else 0.0
    total = sum(causes.values())
    return causes[cause] / total if total > 0 else 0.0


def _verdict(
    scores: Mapping[str, float], certain: Mapping[str, float], unsplit: bool
) -> tuple[str, float]:
    """The verdict and its margin. From one rank, communication must win by its certain part."""
    ordered = sorted(WALLS, key=lambda w: -scores[w])
    margin = scores[ordered[0]] - scores[ordered[1]]
    if scores[ordered[0]] < WORTHWHILE:
        return "compute_host", margin
    if unsplit:
        others = max(scores["memory"], scores["compute_host"])
        if certain["communication"] - others >= MARGIN:
            return "communication", certain["communication"] - others
        if ordered[0] == "communication" or scores["communication"] > others - MARGIN:
            return "inconclusive", margin
    return (ordered[0] if margin >= MARGIN else "mixed"), margin


def _limiter(wall: str, shares: list[_Share], score: float) -> str:
    """The largest part of the wall; `compute` where nothing limits much."""
    if score < WORTHWHILE and wall == "compute_host":
        return "compute"
    sums: dict[str, float] = {}
    for share in shares:
        if share.wall == wall:
            sums[share.part] = sums.get(share.part, 0.0) + share.ms
    largest = max(sorted(sums), key=lambda part: sums[part])
    return "capacity" if largest == "offload" else largest


def _gaps(metrics: Mapping[str, MetricValue], unsplit: bool) -> dict[str, str]:
    found = {}
    if metrics["memory_peak_gib"].status == "not_measured":
        found["memory"] = f"Peak memory: {metrics['memory_peak_gib'].reason}"
    if metrics["recompute_ms"].status == "not_measured":
        found["memory"] = f"Recompute: {metrics['recompute_ms'].reason}"
    if unsplit:
        found["communication"] = (
            "Waiting can't be told from transfer with these ranks: capture all ranks of an EP group"
        )
    if metrics["compute_excess_ms"].status == "not_measured":
        found["compute_host"] = f"Compute above its floor: {metrics['compute_excess_ms'].reason}"
    if metrics["host_gap_ms"].status == "not_measured":
        found["compute_host"] = f"Host gaps: {metrics['host_gap_ms'].reason}"
    return found


def _reasons(
    verdict: str,
    scores: Mapping[str, float],
    shares: list[_Share],
    step: float,
    margin: float,
    unsplit: bool,
    hidden: float,
) -> list[str]:
    lines = []
    for wall in sorted(WALLS, key=lambda w: -scores[w]):
        parts = [s for s in shares if s.wall == wall and s.ms >= 0.001 * step]
        listed = ", ".join(
            f"{_lower(s.label)} {s.ms:.1f} ms" for s in sorted(parts, key=lambda s: -s.ms)
        )
        detail = f": {listed}" if listed else ""
        lines.append(
            f"{_TITLES[wall]}: {100 * scores[wall]:.1f} % of the {step:.1f} ms step{detail}."
        )
    if verdict == "mixed" and margin < MARGIN:
        lines.append(
            f"The first two walls are {margin * 100:.1f} points apart; {MARGIN * 100:.0f} are "
            "needed to name one."
        )
    if hidden >= MARGIN:
        lines.append(
            f"Permutation takes {100 * hidden:.1f} % of the step; what a fused kernel would save "
            "of it is not measured: that could be the larger wall."
        )
    if unsplit:
        lines.append(
            "Only part of the EP group was read, so the wire's share is bounded, not measured: "
            "capture all ranks of one EP group."
        )
    return lines


def _lower(label: str) -> str:
    """A label inside a sentence: abbreviations keep their capitals."""
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def _sentences(
    verdict: str,
    limiter: str | None,
    metrics: Mapping[str, MetricValue],
    shares: list[_Share],
    scores: Mapping[str, float],
    step: float,
) -> tuple[str, str]:
    """The headline and its cause, each one sentence with the number and its denominator."""
    of = f"of {step:.1f} ms"
    if verdict == "inconclusive":
        exposed = _value(metrics, "ep_a2a_exposed_ms")
        return (
            f"The walls can't be told apart from this capture: {exposed:.1f} {of} is exposed EP "
            "all-to-all that may be wire or waiting.",
            "Capture all ranks of one EP group: only then can waiting be told from transfer.",
        )
    if verdict == "mixed":
        first, second = sorted(WALLS, key=lambda w: -scores[w])[:2]
        if scores[first] - scores[second] >= MARGIN:
            return (
                f"{_TITLES[first]} leads with {100 * scores[first]:.1f} % {of}, but part of the "
                "compute wall is not measured.",
                f"Permutation takes {_value(metrics, 'permute_ms'):.1f} ms; what a fused kernel "
                "would save of it is not in this trace.",
            )
        return (
            f"Two walls stand equally close: {_TITLES[first].lower()} "
            f"{100 * scores[first]:.1f} % and "
            f"{_TITLES[second].lower()} {100 * scores[second]:.1f} % {of}.",
            "Start with the plan's first step; their order is within the noise of a capture.",
        )
    if max(scores.values()) < WORTHWHILE:
        idle = _value(metrics, "gpu_idle_ms")
        if metrics["host_gap_ms"].status == "not_measured" and idle >= WORTHWHILE * step:
            return (
                "Whether the host holds this run up is not in the capture: the GPU idles "
                f"{idle:.1f} {of}.",
                "Capture with -t cuda,nvtx or ProfilerActivity.CPU: launch calls tell host gaps "
                "from dependencies.",
            )
        return (
            "Nothing limits this run much: the largest recoverable part is "
            f"{100 * max(scores.values()):.1f} % {of}.",
            "Compute sets the pace; faster kernels or lower precision are what is left.",
        )
    tell = {"memory": _memory_story, "communication": _communication_story}
    return tell.get(verdict, _compute_host_story)(str(limiter), metrics, shares, step)


def _sum_of(shares: list[_Share], wall: str, part: str) -> float:
    return sum(s.ms for s in shares if s.wall == wall and s.part == part)


def _memory_story(
    limiter: str, _: Mapping[str, MetricValue], shares: list[_Share], step: float
) -> tuple[str, str]:
    of = f"of {step:.1f} ms"
    if limiter == "recompute":
        return (
            f"{_sum_of(shares, 'memory', 'recompute'):.1f} {of} is forward work done again.",
            "Recomputation frees memory; with headroom left it only costs time.",
        )
    if limiter == "allocator":
        return (
            f"{_sum_of(shares, 'memory', 'allocator'):.1f} {of} the GPU idles while the host "
            "allocates memory.",
            "The allocator gives memory back and asks again: the run is near the device's limit.",
        )
    return (
        f"{_sum_of(shares, 'memory', 'offload'):.1f} {of} is offload traffic that nothing hides.",
        "Activations move to the host and back on the critical path.",
    )


_COLLECTIVE_NAMES = {
    "ep_a2a": "the expert all-to-all",
    "dp_collective": "data-parallel communication",
    "tp_collective": "tensor-parallel communication",
    "cp_collective": "context-parallel communication",
    "pp": "pipeline communication",
}


def _communication_story(
    limiter: str, metrics: Mapping[str, MetricValue], shares: list[_Share], step: float
) -> tuple[str, str]:
    of = f"of {step:.1f} ms"
    transfer, wait = metrics["ep_a2a_transfer_ms"], metrics["ep_a2a_wait_ms"]
    if limiter == "imbalance":
        return (
            f"{_sum_of(shares, 'communication', 'imbalance'):.1f} {of} ranks wait for the one that "
            "got the most tokens.",
            f"The fullest EP rank receives {_value(metrics, 'expert_token_imbalance'):.2f} × the "
            f"mean; the wire itself takes {transfer.value or 0:.1f} ms.",
        )
    ms = _sum_of(shares, "communication", limiter)
    slowed = sum(one.ms for one in shares if one.label == SLOWED)
    if slowed > ms / 2:
        return (
            f"Compute runs slower beside {_COLLECTIVE_NAMES[limiter]}: {slowed:.1f} {of}.",
            "Both share the multiprocessors and the memory.",
        )
    if limiter != "ep_a2a":
        return (
            f"{ms:.1f} {of} is {_COLLECTIVE_NAMES[limiter]} that nothing hides.",
            "No compute kernel runs beside it.",
        )
    exposed = _value(metrics, "ep_a2a_exposed_ms")
    half = "More than half of every step" if exposed > 0.5 * step else "The largest part to recover"
    moved, waited = transfer.value or 0.0, wait.value or 0.0
    if transfer.status == "measured" and moved >= waited:
        cause = f"It is the wire, not waiting: {moved:.1f} ms transfer, {waited:.1f} ms wait."
    elif transfer.value is None or wait.value is None:
        cause = "How much of it is the wire and how much waiting for other ranks is not measured."
    else:
        cause = f"Transfer takes {moved:.1f} ms, waiting {waited:.1f} ms."
    return f"{half} is expert all-to-all that nothing hides: {exposed:.1f} {of}.", cause


def _compute_host_story(
    limiter: str, metrics: Mapping[str, MetricValue], shares: list[_Share], step: float
) -> tuple[str, str]:
    of = f"of {step:.1f} ms"
    if limiter == "host":
        gaps = _value(metrics, "host_gap_ms")
        waits = (
            _sum_of(shares, "compute_host", "host") - gaps + _value(metrics, "host_gap_alloc_ms")
        )
        late = f", and {waits:.1f} ms are waits for a rank whose host was late"
        sync, data = _value(metrics, "host_gap_sync_ms"), _value(metrics, "host_gap_data_ms")
        largest, where = max(
            (sync, "in synchronising calls"),
            (data, "in data loading"),
            (_value(metrics, "host_gap_launch_ms"), "on the way to the next launch"),
        )
        return (
            f"The GPU waits for the host: {gaps:.1f} {of} is idle with nothing launched"
            f"{late if waits >= 0.1 else ''}.",
            f"Most of it, {largest:.1f} ms, the host spent {where}.",
        )
    if limiter == "slow_gpu":
        ms = _sum_of(shares, "compute_host", "slow_gpu")
        return (
            f"{ms:.1f} {of} ranks wait for one whose compute takes longer.",
            "Tokens are even, so the GPU or its work differs.",
        )
    return (
        f"Compute sets the pace: {_value(metrics, 'compute_ms'):.1f} {of}, of which only "
        f"{_value(metrics, 'expert_gemm_ms'):.1f} ms is expert GEMM.",
        f"{_value(metrics, 'compute_excess_ms'):.1f} ms lie above what fused kernels need; "
        f"permutation alone takes {_value(metrics, 'permute_ms'):.1f} ms.",
    )


def _nothing(reason: str) -> Walls:
    return Walls(
        verdict="inconclusive",
        limiter=None,
        margin=0.0,
        threshold=MARGIN,
        next=None,
        scores=dict.fromkeys(WALLS, 0.0),
        parts=[],
        not_measured=dict.fromkeys(WALLS, reason),
        reasons=[f"Inconclusive: {reason}."],
        headline=f"Inconclusive: {reason}.",
        cause="",
    )
