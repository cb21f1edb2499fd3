"""Which kernels a role's time is made of: what a comparison needs to say new, gone or slower."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import RankPartial
from moe_advisor.model import RankTrace
from moe_advisor.privacy import safe_text
from moe_advisor.result import Kernel
from moe_advisor.roles.roles import Role

NAME_LIMIT = 96
"""Characters of a kernel name that are kept: templates say no more to a reader."""

KEPT_PER_ROLE = 24
"""Names that one rank hands on for a role: twice what is shown, since ranks differ."""

SHOWN_PER_ROLE = 12
"""Names that a result lists for a role: the rest is summed up, so that a role still adds up."""

OTHERS = ""
"""The name under which a role's remaining kernels are summed."""

_N = TypeVar("_N", int, float)

KernelTimes = dict[tuple[str, str], tuple[int, int]]
"""(role, name) -> (number, ns) over all steps."""


def short_name(name: str) -> str:
    """A kernel name as people say it: no return type, template or arguments."""
    text = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    cut = min((at for at in (text.find("<", 1), text.find("(", 1)) if at > 0), default=len(text))
    head = text[:cut] if not text.startswith(("<", "(")) else text
    if head.endswith(("::", "at::native::")) or head in (
        "cutlass::device_kernel",
        "cutlass::Kernel2",
    ):
        head = text
    return safe_text(head, NAME_LIMIT)


def find_kernels(
    rank: RankTrace,
    roles: NDArray[np.int8],
    duration_ns: NDArray[np.int64],
    inside: NDArray[np.bool_],
) -> KernelTimes:
    """Number and summed duration of each short name of each role, of the activities `inside` steps.

    Durations of activities that run side by side are added: this says what ran, not what it cost.
    """
    names = rank.activities["name"].to_numpy()
    if not inside.any():
        return {}
    # One number for each role and name; what lies outside steps counts behind all of them.
    many = int(names.max()) + 1
    key = roles.astype(np.int64)
    key *= many
    key += names
    key[~inside] = len(Role) * many
    numbers = np.bincount(key, minlength=len(Role) * many + 1)[:-1]
    totals = np.bincount(key, duration_ns, len(Role) * many + 1)
    unique = np.flatnonzero(numbers)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    shorts: dict[int, str] = {}
    for both in unique.tolist():
        number, ns = int(numbers[both]), float(totals[both])
        role, name = divmod(both, many)
        short = shorts.setdefault(name, short_name(rank.names[name]) or "unnamed")
        of_role = found.setdefault(Role(role).label, {})
        had = of_role.get(short, (0, 0))
        of_role[short] = (had[0] + number, had[1] + int(ns))
    return {
        (role, name): value
        for role, names_of in found.items()
        for name, value in _longest(names_of, KEPT_PER_ROLE).items()
    }


def merge_kernels(ranks: Sequence[RankPartial]) -> list[Kernel]:
    """The kernels of a run, mean per step and rank, the longest of each role first."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for one in ranks:
        weight = one.weight / len(one.step_names) / len(ranks)
        for (role, name), (number, ns) in one.kernels.items():
            of_role = found.setdefault(role, {})
            had = of_role.get(name, (0.0, 0.0))
            of_role[name] = (had[0] + number * weight, had[1] + ns * weight)
    return [
        Kernel(role=role.label, name=name, ms=round(ns / 1e6, 6), count=round(number, 6))
        for role in Role
        for name, (number, ns) in _longest(found.get(role.label, {}), SHOWN_PER_ROLE).items()
    ]


def _longest(names: Mapping[str, tuple[_N, _N]], most: int) -> dict[str, tuple[_N, _N]]:
    """The `most` names with the longest time, then the rest as OTHERS."""
    ordered = sorted(names.items(), key=lambda item: (item[0] == OTHERS, -item[1][1], item[0]))
    kept = dict(ordered[:most])
    rest = [value for name, value in ordered if name not in kept or name == OTHERS]
    kept.pop(OTHERS, None)
    if rest:
        kept[OTHERS] = (sum(n for n, _ in rest), sum(ns for _, ns in rest))
    return kept
