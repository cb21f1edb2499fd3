"""Verdicts and attribution of a comparison.

A change counts when it exceeds an absolute and a relative floor in the whole window and in the
median over steps alike, and when resampled runs and steps keep its sign. What the two readings
disagree on, or what the spread could turn, is "can't tell".
"""

from collections.abc import Collection, Sequence

import numpy as np

from moe_advisor import __version__
from moe_advisor.compare import attribution, checks, samples
from moe_advisor.compare.attribution import median, value_of
from moe_advisor.compare.floors import BLIND, MEASURED_REPEATS, family, floor, profiler_free
from moe_advisor.compare.kernels import kernel_changes
from moe_advisor.compare.model import (
    Comparison,
    Delta,
    Side,
    Verdict,
    WallChange,
)
from moe_advisor.compare.promises import promises
from moe_advisor.errors import InputError
from moe_advisor.measure.registry import METRICS, Metric
from moe_advisor.result import MetricValue, Result

WIDE = 2.0
"""A change is "unchanged" only if its 95 % bounds stay within this many floors, or within BLIND."""

_TWO_PROFILERS = "the two profilers stretch or name this differently"


def compare(
    base: Sequence[Result],
    new: Sequence[Result],
    names: tuple[str, str],
    allow: Collection[str] = (),
) -> Comparison:
    """Compares the repeats of two runs. Raises InputError where they may not be compared."""
    if not base or not new:
        raise InputError("nothing to compare: a side holds no result")
    for side, label in ((base, names[0]), (new, names[1])):
        for other in side[1:]:
            try:
                checks.refuse(checks.compare_runs(side[0], other, allow))
            except InputError as error:
                raise InputError(f"the repeats of {label} differ: {error}") from None
    found = checks.compare_runs(base[0], new[0], allow)
    checks.refuse(found)
    cross = checks.profiler(base[0]) != checks.profiler(new[0])
    step_ms = median(base, lambda one: value_of(one, "step_ms"))
    only = checks.common_ranks(base[0], new[0])
    deltas = [_delta(metric, base, new, step_ms, cross, only) for metric in METRICS.values()]
    step = next(one for one in deltas if one.name == "step_ms")
    parts = attribution.parts(base, new)
    ranks = attribution.ranks(base, new)
    layers = attribution.layers(base, new)
    config = checks.config_changes(base[0], new[0])
    return Comparison(
        tool_version=__version__,
        base=_side(base, names[0]),
        new=_side(new, names[1]),
        headline=_headline(step, names),
        verdict=step.verdict,
        checks=found,
        deltas=deltas,
        parts=parts,
        roles=attribution.roles(base, new),
        layers=layers,
        causes=attribution.causes(base, new),
        ranks=ranks,
        config=config,
        cause=attribution.cause(step, parts, layers, ranks, config, names),
        walls=_walls(base[0], new[0]),
        kernels=kernel_changes(base, new),
        promises=promises(base, config, step),
    )


def _walls(base: Result, new: Result) -> list[WallChange]:
    """The walls of the first run of each side, the base's highest first."""
    found = [
        WallChange(
            wall=wall,
            base=score,
            new=new.walls.scores.get(wall, 0.0),
            base_limits=base.walls.verdict == wall,
            new_limits=new.walls.verdict == wall,
            base_missing=wall in base.walls.not_measured,
            new_missing=wall in new.walls.not_measured,
        )
        for wall, score in base.walls.scores.items()
    ]
    return sorted(found, key=lambda one: (-one.base, one.wall))


def _side(results: Sequence[Result], name: str) -> Side:
    first = results[0]
    world = f"{first.run.world_size} × " if first.run.world_size else ""
    identity = [f"{world}{first.run.gpu or 'unknown GPU'}"]
    if first.run.dispatcher:
        identity.append(f"dispatcher {first.run.dispatcher}")
    identity.append(f"profiler {checks.profiler(first)}")
    return Side(
        name=name,
        repeats=len(results),
        steps=sum(one.steps.count for one in results),
        verdict=first.walls.verdict,
        identity=identity,
    )


# ------------------------------------------------------------------------------------- verdicts


def _delta(
    metric: Metric,
    base: Sequence[Result],
    new: Sequence[Result],
    step_ms: float,
    cross: bool,
    only: Collection[int] | None,
) -> Delta:
    sides = samples.of(base, metric.name, only), samples.of(new, metric.name, only)
    if sides[0] is None or sides[1] is None:
        return _bounded(metric, base, new, step_ms, cross, only is not None)
    a, b = sides[0], sides[1]
    low, high = samples.interval(a, b)
    window = float(np.median(b.runs) - np.median(a.runs))
    stepwise = float(
        np.median([np.median(one) for one in b.steps])
        - np.median([np.median(one) for one in a.steps])
    )
    value = float(np.median(a.runs))
    repeats = max(len(a.runs), len(b.runs))
    waiting = _waiting_share(base, metric.name)
    host = _host_share(base)
    limit = floor(metric.name, metric.unit, step_ms, repeats, cross, waiting, host)
    least = limit.of(value)
    wide = max(WIDE * least, BLIND * abs(value))
    verdict, reason = _verdict(metric, window, stepwise, (low, high), least, wide)
    blind = limit.blind(value)
    if verdict == "unchanged" and blind is not None and max(abs(window), abs(stepwise)) > blind:
        verdict = "cant_tell"
        reason = (
            f"{100 * host:.0f} % of the step is host time, which differs from run to run: below "
            f"{100 * limit.relative:.0f} % one run a side can't tell; "
            f"give {MEASURED_REPEATS} repeats"
        )
    by_rank = {str(rank): b.ranks[rank] - a.ranks[rank] for rank in a.ranks if rank in b.ranks}
    if verdict != "cant_tell" and (window or stepwise):
        counts = min(a.count, b.count), max(a.count, b.count)
        # One value can lie near a known distribution; to call it off takes a measured one.
        if counts[1] < 2 or (
            counts[0] < 2 and verdict != "unchanged" and repeats < MEASURED_REPEATS
        ):
            verdict, reason = "cant_tell", "one value on a side: its spread is not known"
    if verdict == "unchanged" and metric.better is not None:
        sign = 1.0 if metric.better == "lower" else -1.0
        rank, change = max(by_rank.items(), key=lambda row: sign * row[1], default=("", 0.0))
        if sign * change > least:
            reason += f", but rank {rank} alone is worse by {abs(change):.3g}"
    if cross and verdict not in ("unchanged", "cant_tell") and not profiler_free(metric.name):
        verdict = "cant_tell"
        reason = _TWO_PROFILERS
    return Delta(
        name=metric.name,
        title=metric.title,
        unit=metric.unit,
        better=metric.better,
        verdict=verdict,
        reason=reason,
        base=value,
        new=float(np.median(b.runs)),
        window_change=window,
        step_change=stepwise,
        low=low,
        high=high,
        floor=least,
        relative=window / value if value else None,
        by_rank=by_rank,
    )


def _host_share(side: Sequence[Result]) -> float:
    """Host gaps, and the waiting for other ranks' hosts, as a share of the step."""

    def one(result: Result) -> float:
        step = value_of(result, "step_ms")
        gaps = value_of(result, "host_gap_ms") / step if step else 0.0
        waits = result.run.facts.get("wait_host_share", 0.0)
        return min(gaps + float(waits), 1.0)

    return median(side, one)


def _waiting_share(side: Sequence[Result], name: str) -> float:
    """Waiting over waiting plus transfer of the collectives a metric is about; 1 if unknown."""
    one = family(name)
    families = (one,) if one else ("ep_a2a", "dp_collective", "tp_collective", "cp_collective")
    wait = transfer = 0.0
    for result in side:
        for kind in families:
            metrics = [result.metrics.get(f"{kind}_{part}_ms") for part in ("wait", "transfer")]
            if any(found is None or found.status != "measured" for found in metrics):
                return 1.0
            wait += value_of(result, f"{kind}_wait_ms")
            transfer += value_of(result, f"{kind}_transfer_ms")
    return wait / (wait + transfer) if wait + transfer else 1.0


def _verdict(
    metric: Metric,
    window: float,
    stepwise: float,
    bounds: tuple[float, float],
    least: float,
    wide: float,
) -> tuple[Verdict, str]:
    readings = [_direction(change, least) for change in (window, stepwise)]
    low, high = bounds
    if readings[0] != readings[1]:
        return "cant_tell", "the whole window and the median step disagree"
    if readings[0] == 0:
        if low < -wide or high > wide:
            return "cant_tell", "the spread over steps and runs hides a change of this size"
        return "unchanged", "below the floor in the whole window and in the median step"
    if (readings[0] > 0 and low <= 0) or (readings[0] < 0 and high >= 0):
        return "cant_tell", "the spread over steps and runs could turn its sign"
    return _worth(metric, readings[0]), "beyond floor and spread"


def _direction(change: float, least: float) -> int:
    return 0 if abs(change) <= least else (1 if change > 0 else -1)


def _worth(metric: Metric, direction: int) -> Verdict:
    if metric.better is None:
        return "changed"
    return "better" if (direction < 0) == (metric.better == "lower") else "worse"


def _bounded(
    metric: Metric,
    base: Sequence[Result],
    new: Sequence[Result],
    step_ms: float,
    cross: bool,
    other_ranks: bool,
) -> Delta:
    """A metric that is not measured on both sides: decided only where its ranges are apart."""
    ranges = [_range(side, metric.name) for side in (base, new)]
    verdict: Verdict = "cant_tell"
    low = high = least = None
    if ranges[0] is None or ranges[1] is None:
        side, words = (base, "base") if ranges[0] is None else (new, "new")
        reasons = [one.reason for r in side if (one := r.metrics.get(metric.name)) and one.reason]
        why = reasons[0] if reasons else "the result does not hold it"
        reason = f"not measured in {words}: {why}"
    else:
        a, b = ranges[0], ranges[1]
        low, high = b[0] - a[1], b[1] - a[0]
        least = floor(metric.name, metric.unit, step_ms, 1, cross).of(sum(a) / 2)
        reason = "only bounded, and the bounds overlap"
        if other_ranks and (low > least or high < -least):
            reason = "only bounded, and of other ranks"
        elif low > least or high < -least:
            verdict, reason = _worth(metric, 1 if low > 0 else -1), "the bounds lie apart"
        elif -least <= low and high <= least:
            verdict, reason = "unchanged", "the bounds lie within the floor"
    if cross and verdict not in ("unchanged", "cant_tell") and not profiler_free(metric.name):
        verdict, reason = "cant_tell", _TWO_PROFILERS
    return Delta(
        name=metric.name,
        title=metric.title,
        unit=metric.unit,
        better=metric.better,
        verdict=verdict,
        reason=reason,
        base=_mid(base, metric.name),
        new=_mid(new, metric.name),
        low=low,
        high=high,
        floor=least,
    )


def _range(side: Sequence[Result], name: str) -> tuple[float, float] | None:
    bounds = [_bounds(one.metrics.get(name)) for one in side]
    known = [one for one in bounds if one is not None]
    if len(known) != len(bounds):
        return None
    return min(one[0] for one in known), max(one[1] for one in known)


def _bounds(metric: MetricValue | None) -> tuple[float, float] | None:
    if metric is None or metric.status == "not_measured":
        return None
    low = metric.low if metric.low is not None else metric.value
    high = metric.high if metric.high is not None else metric.value
    return None if low is None or high is None else (low, high)


def _mid(side: Sequence[Result], name: str) -> float | None:
    values = [m.value for one in side if (m := one.metrics.get(name)) and m.value is not None]
    return float(np.median(values)) if values else None


def _headline(step: Delta, names: tuple[str, str]) -> str:
    if step.base is None or step.new is None or step.window_change is None:
        return f"Step time can't be compared: {step.reason}"
    change = f"{step.base:.1f} to {step.new:.1f} ms ({100 * (step.relative or 0):+.1f} %)"
    words = {
        "better": f"{names[1]} is faster: step {change}",
        "worse": f"{names[1]} is slower: step {change}",
        "unchanged": f"Step time unchanged: {change}",
    }
    return words.get(step.verdict, f"Can't tell whether the step changed: {change}; {step.reason}")
