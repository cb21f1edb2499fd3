"""Where a step's time goes: bars and tables whose printed parts add up."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_advisor.output.formatting import add_up, count, figure, from_tenths, ms, plural, share
from moe_advisor.output.run_view import ranks_read
from moe_advisor.output.tile_view import value
from moe_advisor.result import RankParts, Result, StepPart

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


THIN = 0.012
"""A compute part below this share of the step is too thin to draw: it goes to "Other compute"."""


MANY_RANKS = 4
"""Up to here every rank has its own rows; above, the extremes by name and the others as one."""


EXTREMES = 8


MANY_STEPS = 3


SHORT_LABELS = {
    "Expert GEMM": "Experts",
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


def _segments(parts: Sequence[StepPart], total_ms: float, layout: _Layout) -> tuple[Segment, ...]:
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


def _joined(title: str, subtitle: str, note: str, own: Sequence[RankParts], layout: _Layout) -> Bar:
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
    waits = {one.rank: one.ep_a2a_wait_ms for one in result.ranks}
    shown = []
    for rank in named:
        wait = waits.get(rank)
        note = "mean" if wait is None else f"waits {ms(wait)}"
        shown.append(_joined(f"Rank {rank}", note, "", [by_rank[rank]], layout))
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
        value(result.metrics, "ep_a2a_ms"),
        value(result.metrics, "ep_a2a_exposed_ms"),
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
