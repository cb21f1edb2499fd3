"""Where a series of runs changed its level."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moe_advisor.compare.floors import Floor, floor
from moe_advisor.result import Result

MIN_RUNS = 3
"""Runs on each side of a change point: two could be one bad machine."""

SIGMAS = 4.0
"""Distance of the levels in standard errors of a median: at the thousands of places that a
project's charts have, three would mark chance every week."""

MAD_TO_SIGMA = 1.4826
MEDIAN_ERROR = 1.2533
"""Standard error of a median is this times that of a mean, for normal values."""


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """The first run of a new level; `before` and `after` are the levels' medians."""

    index: int
    before: float
    after: float


def change_points(values: Sequence[float], floor: Floor) -> list[ChangePoint]:
    """Changes of level in a series, by recursive halving at the best place, in order.

    A change counts beyond the floor and beyond SIGMAS standard errors of the two medians.
    """
    series = np.asarray(values, dtype=np.float64)
    places = sorted(_split(series, 0, len(series), floor))
    edges = [0, *places, len(series)]
    medians = [float(np.median(series[a:b])) for a, b in pairwise(edges) if b > a]
    return [
        ChangePoint(place, medians[number], medians[number + 1])
        for number, place in enumerate(places)
    ]


def since_change(results: Sequence[Result]) -> int:
    """Index of the first result of the last level of the step time; 0 where it never changed.

    A run is compared with the level that holds now: the levels before it would hide a regression
    to one of them, and pass for spread.
    """
    known = [
        (index, metric.value)
        for index, one in enumerate(results)
        if (metric := one.metrics.get("step_ms")) is not None and metric.value is not None
    ]
    if not known:
        return 0
    values = [value for _, value in known]
    limit = floor("step_ms", "ms/step", float(np.median(values)), len(values), False)
    marks = change_points(values, limit)
    return known[marks[-1].index][0] if marks else 0


def _split(series: NDArray[np.float64], start: int, end: int, floor: Floor) -> list[int]:
    best, gain = None, 0.0
    whole = _cost(series[start:end])
    for place in range(start + MIN_RUNS, end - MIN_RUNS + 1):
        saved = whole - _cost(series[start:place]) - _cost(series[place:end])
        if saved > gain:
            best, gain = place, saved
    if best is None or not _clear(series[start:best], series[best:end], floor):
        return []
    return [*_split(series, start, best, floor), best, *_split(series, best, end, floor)]


def _cost(part: NDArray[np.float64]) -> float:
    """Sum of distances to the median: one wild run costs its distance once, not squared."""
    return float(np.abs(part - np.median(part)).sum())


def _clear(before: NDArray[np.float64], after: NDArray[np.float64], floor: Floor) -> bool:
    levels = float(np.median(before)), float(np.median(after))
    change = abs(levels[1] - levels[0])
    error = float(np.hypot(_error(before), _error(after)))
    return change > floor.of(levels[0]) and change > SIGMAS * error


def _error(part: NDArray[np.float64]) -> float:
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(part - np.median(part))))
    return MEDIAN_ERROR * sigma / float(np.sqrt(len(part)))
