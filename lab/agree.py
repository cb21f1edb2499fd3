"""Compares what both profilers say of the same variants: agree.py KINETO_FOLDER NSYS_FOLDER.

Pairs NAME.rank*.json* with NAME.sqlite and prints two Markdown tables, ms per step, Kineto / Nsight
Systems: what depends on the program, and each role of compute. Step time, waiting and host gaps
depend on each profiler's own cost and on the process. Exits 1 if a pair differs by more than the
tolerance.
"""

import argparse
import sys
from pathlib import Path

from moe_advisor.analysis import analyze
from moe_advisor.errors import MoeAdvisorError
from moe_advisor.result import Result

STEADY = (  # what a profiler's own cost must not change
    "compute_ms",
    "expert_gemm_ms",
    "ep_a2a_transfer_ms",
    "kernels_per_step",
    "syncs_per_step",
)
SHOWN = (
    "step_ms",
    "ep_a2a_exposed_ms",
    "host_gap_ms",
    "dp_collective_ms",
    "tp_collective_ms",
    "cp_collective_ms",
    "pp_p2p_ms",
    "recompute_ms",
)
RELATIVE, ABSOLUTE = 0.08, 1.0
"""Two processes of one variant on one GPU differ by a few percent: clocks and routing."""


STEP_SHARE = 0.01
"""Roles may differ by 1 % of the step too: what a profiler without ranges or operators leaves
unexplained below that is not listed either (design.md, 2)."""


def values(result: Result) -> dict[str, float | None]:
    """The shown metrics of a capture; None where one is not measured."""
    metrics = result.metrics
    return {name: getattr(metrics.get(name), "value", None) for name in (*STEADY, *SHOWN)}


def roles(result: Result) -> dict[str, float]:
    """Role of compute -> ms per step."""
    return {one.role: one.ms for one in result.roles if one.family == "compute"}


def roles_apart(first: Result, second: Result) -> dict[str, tuple[float, float]]:
    """The roles of compute that two captures of one job give times beyond the tolerance."""
    one, other = roles(first), roles(second)
    steps = (result.metrics["step_ms"].value or 0.0 for result in (first, second))
    least = max(ABSOLUTE, STEP_SHARE * min(steps))
    found = {}
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name, 0.0), other.get(name, 0.0)
        if abs(a - b) > max(RELATIVE * max(a, b), least):
            found[name] = (a, b)
    return found


def differs(first: float | None, second: float | None) -> bool:
    """Whether both are measured and further apart than the tolerance."""
    if first is None or second is None:
        return False
    return abs(first - second) > max(RELATIVE * max(first, second), ABSOLUTE)


def cell(first: float | None, second: float | None, bad: bool) -> str:
    """`first / second`, marked where they differ."""
    text = " / ".join("–" if one is None else f"{one:.1f}" for one in (first, second))
    return f"**{text}**" if bad else text


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kineto", type=Path)
    parser.add_argument("nsys", type=Path)
    args = parser.parse_args()
    print("| variant | " + " | ".join((*STEADY, *SHOWN)) + " |")
    print("|---" * (1 + len(STEADY) + len(SHOWN)) + "|", flush=True)
    wrong = 0
    pairs: dict[str, tuple[Result, Result]] = {}
    for report in sorted(args.nsys.glob("*.sqlite")):
        files = sorted(str(one) for one in args.kineto.glob(f"{report.stem}.rank*.json*"))
        if not files:
            continue
        try:
            first, second = analyze(files), analyze([str(report)])
        except MoeAdvisorError as error:
            print(f"{report.stem}: {error}", file=sys.stderr)
            continue
        kineto, nsys = values(first), values(second)
        cells = []
        for name in (*STEADY, *SHOWN):
            bad = name in STEADY and differs(kineto[name], nsys[name])
            wrong += bad
            cells.append(cell(kineto[name], nsys[name], bad))
        print(f"| {report.stem} | " + " | ".join(cells) + " |", flush=True)
        if second.roles:
            pairs[report.stem] = (first, second)
    names = sorted({name for pair in pairs.values() for one in pair for name in roles(one)})
    print("\n| variant | " + " | ".join(names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for variant, (first, second) in pairs.items():
        apart = roles_apart(first, second)
        wrong += len(apart)
        one, other = roles(first), roles(second)
        cells = [cell(one.get(name, 0.0), other.get(name, 0.0), name in apart) for name in names]
        print(f"| {variant} | " + " | ".join(cells) + " |")
    print(f"{wrong} values differ", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
