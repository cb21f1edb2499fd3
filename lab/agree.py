"""Compares what both profilers say of the same variants: agree.py KINETO_FOLDER NSYS_FOLDER.

Pairs NAME.rank*.json* with NAME.sqlite and prints a Markdown table, ms per step, Kineto / Nsight
Systems, of what depends on the program; step time, waiting and host gaps depend on each profiler's
own cost and on the process. Exits 1 if a pair differs by more than the tolerance.
"""

import argparse
import sys
from pathlib import Path

from moe_advisor.analysis import analyze
from moe_advisor.errors import MoeAdvisorError

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


def values(files: list[str]) -> dict[str, float | None]:
    """The shown metrics of a capture; None where one is not measured."""
    metrics = analyze(files).metrics
    return {name: getattr(metrics.get(name), "value", None) for name in (*STEADY, *SHOWN)}


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
    for report in sorted(args.nsys.glob("*.sqlite")):
        files = sorted(str(one) for one in args.kineto.glob(f"{report.stem}.rank*.json*"))
        if not files:
            continue
        try:
            kineto, nsys = values(files), values([str(report)])
        except MoeAdvisorError as error:
            print(f"{report.stem}: {error}", file=sys.stderr)
            continue
        cells = []
        for name in (*STEADY, *SHOWN):
            bad = name in STEADY and differs(kineto[name], nsys[name])
            wrong += bad
            cells.append(cell(kineto[name], nsys[name], bad))
        print(f"| {report.stem} | " + " | ".join(cells) + " |", flush=True)
    print(f"{wrong} values differ", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
