"""Which kernels are new, gone, slower or run more often."""

from collections.abc import Mapping, Sequence

from moe_advisor.compare.model import KernelChange, KernelState
from moe_advisor.result import Kernel, Result

WORTH_SHARE = 0.0002
"""Kernels whose time per step changed by less than this share of the step are not listed: on a
300 ms step that is 0.06 ms, which no bar shows."""

SAME_SPEED = 0.05
"""One run of a kernel scatters by a few per cent from capture to capture on one GPU."""

SAME_COUNT = 0.01
"""Numbers per step are means over steps; a kernel that runs as often differs by rounding only."""

MOST = 40

Key = tuple[str, str]


def kernel_changes(base: Sequence[Result], new: Sequence[Result]) -> list[KernelChange]:
    """Changes of kernels, the largest first; empty where a result of an older version has none."""
    if not all(one.kernels for one in (*base, *new)):
        return []
    before, after = _mean(base), _mean(new)
    step = sum(part.ms for part in base[0].step_parts)
    found = []
    for key in sorted(before.keys() | after.keys()):
        role, name = key
        if not name:
            continue
        old, now = before.get(key), after.get(key)
        # What a side does not list may be among the role's others: only what can't be is gone.
        if (old is None and _hidden(before, role, now)) or (
            now is None and _hidden(after, role, old)
        ):
            continue
        one = _change(role, name, old, now)
        if abs(one.change_ms) >= WORTH_SHARE * step and one.state != "same":
            found.append(one)
    return sorted(found, key=lambda one: (-abs(one.change_ms), one.role, one.name))[:MOST]


def _mean(side: Sequence[Result]) -> dict[Key, Kernel]:
    """Mean over repeats; a kernel that a repeat does not list counts as 0 there."""
    found: dict[Key, list[Kernel]] = {}
    for result in side:
        for one in result.kernels:
            found.setdefault((one.role, one.name), []).append(one)
    return {
        key: Kernel(
            role=key[0],
            name=key[1],
            ms=sum(one.ms for one in rows) / len(side),
            count=sum(one.count for one in rows) / len(side),
        )
        for key, rows in found.items()
    }


def _hidden(side: Mapping[Key, Kernel], role: str, other: Kernel | None) -> bool:
    """Whether the side's unlisted kernels of this role leave room for the other side's kernel."""
    others = side.get((role, ""))
    return others is not None and other is not None and others.ms > 0.5 * other.ms


def _change(role: str, name: str, old: Kernel | None, now: Kernel | None) -> KernelChange:
    base_ms, new_ms = old.ms if old else 0.0, now.ms if now else 0.0
    base_count, new_count = old.count if old else 0.0, now.count if now else 0.0
    before = 1e3 * base_ms / base_count if base_count else None
    after = 1e3 * new_ms / new_count if new_count else None
    state: KernelState = "same"
    if old is None:
        state = "new"
    elif now is None:
        state = "gone"
    elif abs(new_count - base_count) > SAME_COUNT * max(base_count, new_count):
        # Other numbers of runs mean other pieces of work: one run says nothing of the speed.
        state = "more often" if new_count > base_count else "less often"
    elif before and after and abs(after / before - 1) > SAME_SPEED:
        state = "slower" if after > before else "faster"
    return KernelChange(
        role=role,
        name=name,
        state=state,
        base_ms=round(base_ms, 6),
        new_ms=round(new_ms, 6),
        change_ms=round(new_ms - base_ms, 6),
        base_count=round(base_count, 6),
        new_count=round(new_count, 6),
        base_us=None if before is None else round(before, 6),
        new_us=None if after is None else round(after, 6),
    )
