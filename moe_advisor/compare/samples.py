"""The values of one metric on one side: by run, by step and by rank."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from moe_advisor.result import MetricValue, Result

ROUNDS = 2000
"""Resamples: the 2.5 % ends of 2,000 move by under a tenth of their width between seeds."""

SEED = 20240607
"""Fixed, so that the same two results always give the same verdict."""

NORMAL_975 = 1.96
STUDENT_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Quantiles of Student's t for 1, 2 ... degrees of freedom; above them 1.96 + 2.4 / freedom is
within 1 %. Resampling two or three values shows too little of how far the next could be."""


@dataclass(frozen=True)
class Samples:
    """`runs` are whole-window values, `steps` the per-step means over ranks of each run."""

    runs: NDArray[np.float64]
    steps: tuple[NDArray[np.float64], ...]
    ranks: dict[int, float]

    @property
    def count(self) -> int:
        """Number of steps over all runs."""
        return sum(len(one) for one in self.steps)


def of(results: Sequence[Result], name: str, only: Collection[int] | None = None) -> Samples | None:
    """The samples of a metric that every run measured, else None.

    `only` limits them to these ranks, where each run keeps the metric by rank.
    """
    found = [one.metrics.get(name) for one in results]
    values = [one for one in found if one is not None and one.value is not None]
    if len(values) != len(results) or any(one.status != "measured" for one in values):
        return None
    if only is not None and all(one.per_rank for one in values):
        values = [_limited(one, only) for one in values]
    by_rank: dict[int, list[float]] = {}
    for one in values:
        for rank in one.per_rank:
            if rank.value is not None:
                by_rank.setdefault(rank.rank, []).append(rank.value)
    return Samples(
        np.array([one.value for one in values], dtype=np.float64),
        tuple(_steps(one) for one in values),
        {rank: float(np.median(all_runs)) for rank, all_runs in sorted(by_rank.items())},
    )


def _limited(metric: MetricValue, only: Collection[int]) -> MetricValue:
    kept = [one for one in metric.per_rank if one.rank in only]
    known = [one.value for one in kept if one.value is not None]
    value = sum(known) / len(known) if known else metric.value
    return structs.replace(metric, value=value, per_rank=kept)


def _steps(metric: MetricValue) -> NDArray[np.float64]:
    """Mean over ranks for each step; without values per step, the run's own value."""
    series = [one.steps for one in metric.per_rank if one.steps]
    shortest = min((len(one) for one in series), default=0)
    if not shortest:
        return np.array([metric.value], dtype=np.float64)
    table = np.array([one[:shortest] for one in series], dtype=np.float64)
    return np.asarray(table.mean(axis=0))


def interval(base: Samples, new: Samples) -> tuple[float, float]:
    """95 % bounds of the change of the median, from resampled runs and their steps.

    They are widened as Student's t is for as few values as there are. A side of one run borrows
    the spread between runs of the other where that has several, and a side of one step that
    between steps: one value says nothing of how far the next would be.
    """
    generator = np.random.default_rng(SEED)
    total = np.zeros(ROUNDS)
    middle, freedom = 0.0, 0
    for sign, side, other in ((-1.0, base, new), (1.0, new, base)):
        count = len(side.runs) if len(side.runs) > 1 else side.count
        own = float(np.median([np.median(one) for one in side.steps]))
        medians = _resampled(side, generator)
        if count > 1:
            medians = own + (medians - own) * sqrt(count / (count - 1))
            freedom += count - 1
        middle += sign * own
        if len(side.runs) == 1 and len(other.runs) > 1:
            medians = medians + generator.choice(_between(other), ROUNDS)
        elif side.count == 1 and other.count > 1:
            medians = medians + generator.choice(_within(other), ROUNDS)
        total += sign * medians
    low, high = np.percentile(total, [2.5, 97.5])
    wider = _student(freedom) / NORMAL_975 if freedom else 1.0
    return middle + (float(low) - middle) * wider, middle + (float(high) - middle) * wider


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    if freedom <= len(STUDENT_975):
        return STUDENT_975[freedom - 1]
    return NORMAL_975 + 2.4 / freedom


def _within(side: Samples) -> NDArray[np.float64]:
    """Deviations of the steps from the median of their run."""
    return np.concatenate([one - np.median(one) for one in side.steps])


def _between(side: Samples) -> NDArray[np.float64]:
    """Deviations of the runs from their median."""
    medians = np.array([np.median(one) for one in side.steps])
    return np.asarray(medians - np.median(medians), dtype=np.float64)


def _resampled(side: Samples, generator: np.random.Generator) -> NDArray[np.float64]:
    """Medians over runs of medians over steps, ROUNDS times."""
    per_run = np.empty((len(side.steps), ROUNDS))
    for row, steps in enumerate(side.steps):
        picked = generator.integers(0, len(steps), (ROUNDS, len(steps)))
        per_run[row] = np.median(steps[picked], axis=1)
    runs = generator.integers(0, len(side.steps), (len(side.steps), ROUNDS))
    return np.asarray(np.median(np.take_along_axis(per_run, runs, axis=0), axis=0))
