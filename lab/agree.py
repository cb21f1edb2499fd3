"""Compares what both profilers say of the same variants: agree.py KINETO_FOLDER NSYS_FOLDER.

Pairs NAME.rank*.json* with NAME.sqlite and prints Markdown tables, ms per step, Kineto / Nsight
Systems: what depends on the program, and each role of compute. Step time, waiting and host gaps
depend on each profiler's own cost and on the process. Two captures that launch different kernels
are of two builds of the program (another PyTorch, Transformer Engine there or not), and one that
lost records is damaged: these stand apart and are not judged. Exits 1 if a pair of one program
differs by more than the tolerance, or any pair in how many collectives of a family it holds.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
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
FAMILIES = ("ep_a2a", "dp_collective", "tp_collective", "cp_collective", "pp_p2p")
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


COUNTS_APART = 0.02
"""Steps begin and end between collectives: one more or less of fifty is a matter of the edge."""


def counts(result: Result) -> dict[str, float]:
    """Family of communication -> collectives per step."""
    found: dict[str, float] = {}
    for one in result.roles:
        if one.family in FAMILIES:
            found[one.family] = found.get(one.family, 0.0) + one.count
    return found


def counts_apart(first: Result, second: Result) -> dict[str, tuple[float, float]]:
    """The families of which two captures hold another number of collectives.

    What a collective is for does not depend on the build, so this holds between builds too.
    """
    one, other = counts(first), counts(second)
    pairs = {name: (one.get(name, 0.0), other.get(name, 0.0)) for name in FAMILIES}
    return {
        name: (a, b)
        for name, (a, b) in pairs.items()
        if abs(a - b) > max(COUNTS_APART * max(a, b), 1.0)
    }


def differs(first: float | None, second: float | None) -> bool:
    """Whether both are measured and further apart than the tolerance."""
    if first is None or second is None:
        return False
    return abs(first - second) > max(RELATIVE * max(first, second), ABSOLUTE)


SAME_PROGRAM = 0.005
"""Two captures of one program launch the same kernels but for a few that routing decides."""

Pair = tuple[Result, Result]


def same_program(first: Result, second: Result) -> bool:
    """Whether both profilers saw as many kernels and synchronising calls in a step."""
    for name in ("kernels_per_step", "syncs_per_step"):
        one, other = (result.metrics[name].value or 0.0 for result in (first, second))
        if abs(one - other) > SAME_PROGRAM * max(one, other):
            return False
    return True


def cell(first: float | None, second: float | None, bad: bool) -> str:
    """`first / second`, marked where they differ."""
    text = " / ".join("–" if one is None else f"{one:.1f}" for one in (first, second))
    return f"**{text}**" if bad else text


def table(columns: Sequence[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    """Markdown, one row a variant."""
    head = ["variant", *columns]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows)]
    return "\n".join("| " + " | ".join(one) + " |" for one in lines)


def metric_row(first: Result, second: Result, judged: bool) -> tuple[list[str], int]:
    """The cells of one pair, and how many of the steady metrics differ."""
    kineto, nsys = values(first), values(second)
    bad = {name for name in STEADY if judged and differs(kineto[name], nsys[name])}
    return [cell(kineto[name], nsys[name], name in bad) for name in (*STEADY, *SHOWN)], len(bad)


def report(title: str, pairs: Mapping[str, Pair], judged: bool, counted: bool = True) -> int:
    """Prints both tables of some pairs, and collectives apart; returns how many values differ."""
    if not pairs:
        return 0
    rows = {name: metric_row(*pair, judged) for name, pair in pairs.items()}
    print(f"## {title}\n")
    print(table((*STEADY, *SHOWN), ((name, cells) for name, (cells, _) in rows.items())), "\n")
    wrong = sum(bad for _, bad in rows.values())
    known = sorted({name for pair in pairs.values() for one in pair for name in roles(one)})
    lines = []
    for variant, pair in pairs.items():
        apart = roles_apart(*pair) if judged else {}
        wrong += len(apart)
        one, other = (roles(result) for result in pair)
        cells = [cell(one.get(name, 0.0), other.get(name, 0.0), name in apart) for name in known]
        lines.append((variant, cells))
    print(table(known, lines), "\n", flush=True)
    for variant, pair in pairs.items():
        for family, (a, b) in counts_apart(*pair).items() if counted else ():
            print(f"**{variant}: {a:.1f} / {b:.1f} {family} a step**\n")
            wrong += 1
    return wrong


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kineto", type=Path)
    parser.add_argument("nsys", type=Path)
    args = parser.parse_args()
    same: dict[str, Pair] = {}
    apart: dict[str, Pair] = {}
    damaged: dict[str, Pair] = {}
    for path in sorted(args.nsys.glob("*.sqlite")):
        files = sorted(str(one) for one in args.kineto.glob(f"{path.stem}.rank*.json*"))
        if not files:
            continue
        try:
            pair = (analyze(files), analyze([str(path)]))
        except MoeAdvisorError as error:
            print(f"{path.stem}: {error}", file=sys.stderr)
            continue
        whole = all(one.capture.complete for one in pair)
        chosen = damaged if not whole else same if same_program(*pair) else apart
        chosen[path.stem] = pair
    wrong = report("The same program", same, judged=True)
    wrong += report("Other builds of the program: only collectives judged", apart, judged=False)
    report("Captures that lost records: not judged", damaged, judged=False, counted=False)
    said = f"{len(same)} pairs of one program, {len(apart)} of other builds"
    print(f"{said}: {wrong} values differ", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
