"""How unevenly the experts are loaded, per rank and layer, and what a perfect balance would save.

Tokens come from the split sizes of the dispatch. Where profilers cut those off, the rows of the
expert GEMMs' shapes stand for them, and where there are no shapes, the GEMMs' durations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.gemms import rate_tflops
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.registry import METRICS
from moe_advisor.result import ExpertLoad, LayerLoad, MetricValue, RankValue
from moe_advisor.roles.roles import Role

NS_PER_MS = 1e6


@dataclass
class Dispatches:
    """Bytes that every rank of a group received in each forward dispatch; filled in any order."""

    received: dict[tuple[int, ...], dict[str, NDArray[np.int64]]] = field(default_factory=dict)
    """Ranks of the group -> step -> [member, dispatch]; sizes that are not known are left out."""

    def add(self, ranks: tuple[int, ...], step: str, received: NDArray[np.int64]) -> None:
        """The forward dispatches of one group in one step, in launch order."""
        if received.shape[1] and (received >= 0).all() and (received.sum(axis=0) > 0).all():
            steps = self.received.setdefault(ranks, {})
            before = steps.get(step)
            both = received if before is None else np.concatenate([before, received], axis=1)
            steps[step] = both


def imbalance_metrics(
    partials: Sequence[RankPartial], dispatches: Dispatches, found: Mapping[str, MetricValue]
) -> dict[str, MetricValue]:
    """expert_gemm_imbalance, expert_token_imbalance where it needs its fallbacks, and the saving.

    `found` are the metrics so far; what needs several ranks of an EP group is left out without
    them, so that the caller's reason stands.
    """
    result: dict[str, MetricValue] = {}
    groups = _groups(partials, dispatches)
    gemm = {one.rank: one.times_ns["expert_gemm"] for one in partials}
    ratios = [
        ratio
        for group in groups
        if all(gemm[rank].any() for rank in group)
        and (count := _steps(group, gemm))
        and (ratio := _ratio(np.stack([gemm[rank][:count] for rank in group]))) is not None
    ]
    if ratios:
        result["expert_gemm_imbalance"] = MetricValue(
            status="measured",
            value=_round(float(np.mean(ratios))),
            unit="max/mean",
            per_rank=[
                RankValue(rank=rank, value=_round(gemm[rank].mean() / mean))
                for group in groups
                if (mean := float(np.mean([gemm[r].mean() for r in group]))) > 0
                for rank in group
            ],
        )
    tokens = found["expert_token_imbalance"]
    if tokens.status == "not_measured":
        by_shape = _by_shapes(partials, groups)
        if by_shape is not None:
            result["expert_token_imbalance"] = MetricValue(
                status="measured",
                value=_round(by_shape),
                unit="max/mean",
                basis="from the rows of the expert GEMMs' shapes: the trace holds no split sizes",
            )
        elif ratios:
            value = _round(float(np.mean(ratios)))
            result["expert_token_imbalance"] = MetricValue(
                status="estimated",
                value=value,
                unit="max/mean",
                low=1.0,
                high=float(max(map(len, groups))),
                basis="from the expert GEMMs' time per rank, which small GEMMs understate: the "
                "trace holds neither split sizes nor shapes",
            )
    saving = _saving(partials, dispatches)
    if saving is not None:
        low, high = saving
        result["balance_saving_ms"] = MetricValue(
            status="estimated",
            value=_round((low + high) / 2),
            unit=METRICS["balance_saving_ms"].unit,
            low=_round(low),
            high=_round(high),
            basis="tokens of the fullest rank above the mean, dispatch by dispatch, at the run's "
            "time per token: expert GEMMs alone below, with permutation and activation above",
        )
    return result


def _groups(partials: Sequence[RankPartial], dispatches: Dispatches) -> list[tuple[int, ...]]:
    """The EP groups by their ranks: as matched, else all ranks that name the same EP group."""
    if dispatches.received:
        return sorted(dispatches.received)
    members: dict[str, list[int]] = {}
    for one in partials:
        for name, family in one.facts.get("groups", {}).items():
            if family == "ep":
                members.setdefault(name, []).append(one.rank)
    whole = {tuple(sorted(ranks)) for ranks in members.values() if len(ranks) > 1}
    dispatching = Role.EP_DISPATCH.label
    if not whole and len(partials) > 1 and all(dispatching in one.roles for one in partials):
        worlds = {one.world_size for one in partials}
        if worlds <= {None, len(partials)}:
            whole = {tuple(sorted(one.rank for one in partials))}
    return sorted(whole)


def _steps(group: Sequence[int], values: Mapping[int, NDArray[np.int64]]) -> int:
    return min(len(values[rank]) for rank in group)


def _ratio(table: NDArray[np.int64]) -> float | None:
    """Mean over columns of max / mean over rows; columns of zeros don't count."""
    mean = table.mean(axis=0)
    used = mean > 0
    return float((table.max(axis=0)[used] / mean[used]).mean()) if used.any() else None


def _by_shapes(partials: Sequence[RankPartial], groups: Sequence[tuple[int, ...]]) -> float | None:
    """Max / mean of the expert GEMMs' rows over the ranks, forward product by product."""
    rows = {one.rank: one.facts.get("gemms", {}).get("rows", []) for one in partials}
    ratios = []
    for group in groups:
        counts = [np.asarray([row[1] for row in rows[rank]], np.int64) for rank in group]
        if len({len(one) for one in counts}) == 1 and len(counts[0]):
            ratio = _ratio(np.stack(counts))
            if ratio is not None:
                ratios.append(ratio)
    return float(np.mean(ratios)) if ratios else None


def _saving(partials: Sequence[RankPartial], dispatches: Dispatches) -> tuple[float, float] | None:
    """(low, high) ms per step that even dispatches would save, mean over the EP groups."""
    by_rank = {one.rank: one for one in partials}
    found = []
    for ranks, steps in sorted(dispatches.received.items()):
        members = [by_rank[rank] for rank in ranks]
        spare = sum(float((one.max(axis=0) - one.mean(axis=0)).sum()) for one in steps.values())
        whole = sum(float(one.sum()) for one in steps.values())
        if not whole:
            continue
        used = [
            sum(float(one.times_ns[name].sum()) for one in members)
            for name in ("expert_gemm", "permute", "activation")
        ]
        count = max(len(steps), 1)
        low = spare * used[0] / whole / count
        high = spare * sum(used) / whole / count
        found.append((low / NS_PER_MS, high / NS_PER_MS))
    if not found:
        return None
    low, high = np.mean(found, axis=0).tolist()
    return low, high


def expert_loads(partials: Sequence[RankPartial], dispatches: Dispatches) -> list[ExpertLoad]:
    """Per rank: expert GEMM time, rows of its shapes, share of its group's tokens, TFLOP/s."""
    share: dict[int, float] = {}
    for ranks, steps in dispatches.received.items():
        sums = np.sum([one.sum(axis=1) for one in steps.values()], axis=0).astype(np.float64)
        share |= {rank: float(value / sums.sum()) for rank, value in zip(ranks, sums, strict=True)}
    found = []
    for rank in partials:
        if not rank.times_ns["expert_gemm"].any():
            continue
        work = rank.facts.get("gemms", {})
        rows = work.get("rows", [])
        count = max(len(rank.step_names), 1)
        rate = rate_tflops(work, Role.EXPERT_GEMM)
        # The products of one expert layer run over the same rows: their mean is a dispatch's.
        mean = float(np.mean([row[1] for row in rows])) if rows else None
        found.append(
            ExpertLoad(
                rank=rank.rank,
                gemm_ms=_round(rank.times_ns["expert_gemm"].sum() / count / NS_PER_MS),
                rows=None if mean is None else _round(mean),
                tokens_received=_round(share[rank.rank]) if rank.rank in share else None,
                tflops=None if rate is None else _round(rate),
            )
        )
    return found


def layer_loads(partials: Sequence[RankPartial], dispatches: Dispatches) -> list[LayerLoad]:
    """Imbalance per layer; empty where layers or passes don't divide the dispatches evenly."""
    layers = {len({layer for layer, _ in one.layers_ns}) for one in partials}
    passes = {one.facts.get("backward_passes") for one in partials}
    if len(layers) != 1 or len(passes) != 1 or None in passes:
        return []
    count, each = next(iter(layers)), round(next(iter(passes)) or 0)
    if not count or not each:
        return []
    ratios: dict[int, list[float]] = {}
    fullest: dict[int, list[int]] = {}
    for ranks, steps in sorted(dispatches.received.items()):
        for received in steps.values():
            number = received.shape[1]
            if number % (count * each):
                return []
            layer = np.arange(number) % (number // each) // (number // each // count)
            ratio = received.max(axis=0) / received.mean(axis=0)
            last = np.asarray(ranks)[received.argmax(axis=0)]
            for one in range(count):
                ratios.setdefault(one, []).extend(ratio[layer == one].tolist())
                fullest.setdefault(one, []).extend(last[layer == one].tolist())
    found = []
    for one in sorted(ratios):
        values, counts = np.unique(fullest[one], return_counts=True)
        top = int(np.argmax(counts))
        found.append(
            LayerLoad(
                layer=one,
                max_over_mean=_round(float(np.mean(ratios[one]))),
                fullest=int(values[top]),
                of=_round(counts[top] / counts.sum()),
            )
        )
    return found


def _round(value: float) -> float:
    return round(float(value), 6)
