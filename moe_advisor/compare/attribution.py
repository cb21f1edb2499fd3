"""Where the change of a step came from: parts, roles, layers, causes, ranks and configuration."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe_advisor.compare.model import Delta, KeyChange, Share
from moe_advisor.result import Result

SHOWN_MS = 0.1
"""Parts that changed by less are left out of the attribution."""

LAYER_SHARE = 0.5
"""A layer that holds this much of the change, and of what all layers changed, is named."""

UNEVEN = 0.2
"""Ranks whose changes differ by more than this share of the run's are named."""


def median(side: Sequence[Result], value: Callable[[Result], float]) -> float:
    """The median over repeats of what `value` says of one."""
    return float(np.median([value(one) for one in side]))


def value_of(result: Result, name: str) -> float:
    """The value of a metric, 0 where there is none."""
    metric = result.metrics.get(name)
    return (metric.value or 0.0) if metric else 0.0


def _shares(
    base: Sequence[Mapping[str, tuple[str, float]]], new: Sequence[Mapping[str, tuple[str, float]]]
) -> list[Share]:
    """Changes of named times, means over repeats so that the parts still add up, largest first."""
    labels: dict[str, str] = {}
    for one in (*base, *new):
        labels |= {name: label for name, (label, _) in one.items()}

    def mean(side: Sequence[Mapping[str, tuple[str, float]]], name: str) -> float:
        return sum(one.get(name, ("", 0.0))[1] for one in side) / len(side)

    rows = []
    for name, label in labels.items():
        a, b = mean(base, name), mean(new, name)
        if abs(b - a) >= SHOWN_MS:
            rows.append(Share(name=name, label=label, base_ms=a, new_ms=b, change_ms=b - a))
    return sorted(rows, key=lambda row: (-abs(row.change_ms), row.name))


def parts(base: Sequence[Result], new: Sequence[Result]) -> list[Share]:
    """The parts of the step: their changes add up to the step's."""

    def rows(result: Result) -> dict[str, tuple[str, float]]:
        return {part.part: (part.label, part.ms) for part in result.step_parts}

    return _shares([rows(one) for one in base], [rows(one) for one in new])


def roles(base: Sequence[Result], new: Sequence[Result]) -> list[Share]:
    """The roles, hidden or not."""

    def rows(result: Result) -> dict[str, tuple[str, float]]:
        return {role.role: (role.role.replace("_", " "), role.ms) for role in result.roles}

    return _shares([rows(one) for one in base], [rows(one) for one in new])


def causes(base: Sequence[Result], new: Sequence[Result]) -> list[Share]:
    """Why no compute ran: idle causes, and what compute waited for."""

    def rows(result: Result) -> dict[str, tuple[str, float]]:
        found = {f"idle:{one.cause}": (f"Idle: {one.label}", one.ms) for one in result.idle_causes}
        for part in result.compute_absent.parts if result.compute_absent else []:
            label = f"Compute absent: {part.label}"
            found[f"absent:{part.cause}:{part.role or ''}"] = (label, part.ms)
        step = value_of(result, "step_ms")
        for name, value in result.run.facts.items():
            if name.startswith("wait_") and name.endswith("_share") and step:
                cause = name[len("wait_") : -len("_share")]
                found[f"wait:{cause}"] = (f"EP waiting caused by {cause}", float(value) * step)
        return found

    return _shares([rows(one) for one in base], [rows(one) for one in new])


def layers(base: Sequence[Result], new: Sequence[Result]) -> list[Share]:
    """Layer by layer and phase, forward and backward together; empty where a side shows none."""

    def rows(result: Result) -> dict[str, tuple[str, float]]:
        found = {}
        for row in result.layers:
            place = f"stage {row['stage']}, " if "stage" in row else ""
            phase = str(row.get("phase", "all")).replace("_", " ")
            times = [row.get(f"{way}_ms") for way in ("forward", "backward")]
            total = sum(float(one) for one in times if isinstance(one, int | float))
            key = f"{row.get('stage', '')}:{row.get('layer')}:{phase}"
            found[key] = (f"{place}layer {row.get('layer')}, {phase}", total)
        return found

    sides = [[rows(one) for one in side] for side in (base, new)]
    same = len({frozenset(one) for side in sides for one in side}) == 1
    return _shares(sides[0], sides[1]) if same else []


def ranks(base: Sequence[Result], new: Sequence[Result]) -> list[Share]:
    """The step of each rank that both sides hold."""

    def rows(result: Result) -> dict[str, tuple[str, float]]:
        step = result.metrics.get("step_ms")
        return {
            str(one.rank): (f"rank {one.rank}", one.value)
            for one in (step.per_rank if step else ())
            if one.value is not None
        }

    both = [[rows(one) for one in side] for side in (base, new)]
    common = set(both[0][0]) & set(both[1][0])
    kept = [[{k: v for k, v in one.items() if k in common} for one in side] for side in both]
    return _shares(kept[0], kept[1])


def cause(
    step: Delta,
    parts: Sequence[Share],
    layers: Sequence[Share],
    ranks: Sequence[Share],
    config: Sequence[KeyChange],
    names: tuple[str, str],
) -> str:
    """The parts that moved the step, where, and the configuration that differs, in short."""
    if step.verdict == "unchanged" or not step.window_change or not parts:
        return ""
    change = step.window_change
    with_it = [one for one in parts if (one.change_ms > 0) == (change > 0)]
    against = [one for one in parts if one not in with_it]

    def words(rows: Sequence[Share]) -> str:
        # Labels hold commas of their own.
        return "; ".join(f"{one.label} {one.change_ms:+.1f} ms" for one in rows[:3])

    found = [words(with_it)] if with_it else []
    if against and abs(against[0].change_ms) >= 1.0:
        found.append(f"Against it: {words(against)}")
    if place := _one_layer(layers, change):
        found.append(place)
    changes = [one.change_ms for one in ranks]
    if len(ranks) > 1 and max(changes) - min(changes) > UNEVEN * abs(change):
        found.append(f"Most on {ranks[0].label} ({ranks[0].change_ms:+.1f} ms)")
    known = [one for one in config if one.base is not None and one.new is not None]
    if len(known) == 1:
        one = known[0]
        found.append(f"Of the configuration only {one.key} differs: {one.base} to {one.new}")
    elif known:
        some = ", ".join(one.key for one in known[:3])
        found.append(f"{len(known)} configuration keys differ, so none is proved the cause: {some}")
    elif one_sided := [one for one in config if one.base or one.new]:
        some = ", ".join(
            f"{one.key} {one.base if one.new is None else one.new} in "
            f"{names[0] if one.new is None else names[1]}"
            for one in one_sided[:2]
        )
        found.append(f"Shown by one side only: {some}")
    return "".join(f"{one}. " for one in found).rstrip()


def _one_layer(layers: Sequence[Share], change: float) -> str:
    """The layer that holds most of a change that not all share; empty where all do."""
    sums: dict[str, float] = {}
    for one in layers:
        name = one.label.rpartition(",")[0]
        sums[name] = sums.get(name, 0.0) + one.change_ms
    if not sums:
        return ""
    name, most = max(sums.items(), key=lambda row: row[1] * (1.0 if change > 0 else -1.0))
    part = most / change
    if part < LAYER_SHARE or (len(sums) > 1 and most / sum(sums.values()) < LAYER_SHARE):
        return ""
    rows = [one for one in layers if one.label.rpartition(",")[0] == name]
    return f"Most in {name} ({most:+.1f} ms, {rows[0].label.rpartition(', ')[2]} first)"
