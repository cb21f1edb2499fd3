"""Waiting and transfer where some communication of a family found no counterpart."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import PerStep, RankPartial
from moe_advisor.measure.registry import METRICS
from moe_advisor.measure.stages import mean
from moe_advisor.result import MetricValue, RankValue

NS_PER_MS = 1e6

MATCHED_ENOUGH = 0.5
"""From this share of a family's time on that was matched, what was not is bounded beside it; below,
the bounds would say nothing."""


EVIDENCE = {
    "number": "the operations' numbers",
    "time": "kind, size and time",
    "size": "kind, size and order",
}
"""What realigned collectives are tied together by, in words."""


def open_ns(one: RankPartial, rows: NDArray[np.int64], matched: NDArray[np.bool_]) -> PerStep:
    """Durations per step of those of a rank's collectives `rows` that were not matched."""
    total = np.zeros(len(one.step_names), np.int64)
    left = rows[~matched[rows]]
    np.add.at(total, one.collectives.step[left], one.collectives.duration_ns[left])
    return total


def whole_steps(wait: PerStep, transfer: PerStep, open_ns: PerStep) -> NDArray[np.bool_]:
    """Steps of which everything was matched."""
    return np.asarray((open_ns == 0) & (wait + transfer > 0))


def partly_matched(
    name: str,
    partials: Sequence[RankPartial],
    wait: Mapping[int, PerStep],
    transfer: Mapping[int, PerStep],
    open_ns: Mapping[int, PerStep],
    basis: str,
) -> dict[str, MetricValue] | None:
    """`NAME_wait_ms` and `NAME_transfer_ms`, by rank and step in ns; None: too little matched.

    Over the steps that are whole, where every rank has one; else all steps, what is unmatched
    bounded: it may have been all waiting or all transfer.
    """
    total = {rank: wait[rank] + transfer[rank] + open_ns[rank] for rank in wait}
    involved = [rank for rank in total if total[rank].any()]
    whole = {rank: whole_steps(wait[rank], transfer[rank], open_ns[rank]) for rank in total}
    if involved and all(whole[rank].any() for rank in involved):
        left = sum(int((total[rank] > 0).sum() - whole[rank].sum()) for rank in involved)
        steps = sum(int((total[rank] > 0).sum()) for rank in involved)
        told = f"{basis}; without {left} of {steps} steps (all ranks) that are not matched whole"
        return {
            f"{name}_{part}_ms": _mean(f"{name}_{part}_ms", partials, values, whole, told)
            for part, values in (("wait", wait), ("transfer", transfer))
        }
    unmatched = sum(float(open_ns[rank].sum()) for rank in involved)
    everything = sum(float(total[rank].sum()) for rank in involved)
    if not everything or 1 - unmatched / everything < MATCHED_ENOUGH:
        return None
    found = {}
    for part, values in (("wait", wait), ("transfer", transfer)):
        key = f"{name}_{part}_ms"
        low = _per_step(partials, values)
        rest = _per_step(partials, open_ns)
        sums = [float(one[rank].sum()) for one in (wait, transfer) for rank in involved]
        share = sum(float(values[rank].sum()) for rank in involved) / max(sum(sums), 1.0)
        found[key] = MetricValue(
            status="estimated",
            value=_round(low + rest * share),
            unit=METRICS[key].unit,
            low=_round(low),
            high=_round(low + rest),
            basis=f"{basis}; {100 * unmatched / everything:.0f} % of the time is not matched",
        )
    return found


def _mean(
    key: str,
    partials: Sequence[RankPartial],
    values: Mapping[int, PerStep],
    whole: Mapping[int, NDArray[np.bool_]],
    basis: str,
) -> MetricValue:
    per_rank = [
        RankValue(
            rank=one.rank,
            value=_round(
                float(values[one.rank][whole[one.rank]].mean()) / NS_PER_MS
                if whole[one.rank].any()
                else 0.0
            ),
        )
        for one in partials
    ]
    return MetricValue(
        status="measured",
        value=_round(mean(partials, [one.value or 0.0 for one in per_rank])),
        unit=METRICS[key].unit,
        basis=basis,
        per_rank=per_rank,
    )


def _per_step(partials: Sequence[RankPartial], values: Mapping[int, PerStep]) -> float:
    return mean(partials, [values[one.rank].mean() for one in partials]) / NS_PER_MS


def _round(value: float) -> float:
    return round(float(value), 6)
