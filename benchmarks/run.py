"""Measures the program against floors in the same run: `python benchmarks/run.py [--short]`.

Each row is a whole process, imports included: best wall time of several runs and peak memory. The
ratio is what counts: the floor reads the same file and keeps nothing. Inputs are grown from the
test fixtures into benchmarks/data, once.
"""

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DATA = HERE / "data"
FIXTURES = HERE.parent / "tests" / "fixtures"


@dataclass(frozen=True)
class Run:
    """One program on one input."""

    name: str
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Case:
    """An input with its floor and the ratio the project promises."""

    name: str
    source: Path
    grown: str
    repeat: int
    kind: str
    floor: str
    promise: float


CASES = (
    Case(
        "Kineto gz, 1.05 M events",
        FIXTURES / "torch/2.11/mcore_alltoall.rank0.json.xz",
        "kineto.json.gz",
        10,
        "kineto",
        "floor_kineto.py",
        3.0,
    ),
    Case(
        "nsys SQLite, 1.8 M kernels",
        FIXTURES / "nsys/2025.3/mcore_alltoall.sqlite.xz",
        "nsys.sqlite",
        80,
        "nsys",
        "floor_sqlite.py",
        4.0,
    ),
)


def grown(case: Case, repeat: int) -> Path:
    """The input, made if it is not there."""
    target = DATA / f"{repeat}x-{case.grown}"
    if target.exists():
        return target
    DATA.mkdir(exist_ok=True)
    plain = DATA / case.source.stem
    with lzma.open(case.source) as packed, plain.open("wb") as out:
        shutil.copyfileobj(packed, out)
    command = [sys.executable, HERE / "make_big_trace.py", case.kind, plain, target]
    subprocess.run([*command, "--repeat", str(repeat)], check=True, stdout=subprocess.DEVNULL)
    return target


def measured(name: str, command: list[str], runs: int) -> Run:
    """Best wall time (s) and highest peak memory (MiB) over `runs` processes."""
    best, peak = float("inf"), 0.0
    for _ in range(runs):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        best = min(best, time.perf_counter() - began)
        peak = max(peak, usage.ru_maxrss / 1024)
        if status:
            raise SystemExit(f"{name}: failed with {os.waitstatus_to_exitcode(status)}")
    return Run(name, best, peak)


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--short", action="store_true", help="a tenth of the size, one run")
    chosen = options.parse_args()
    runs = 1 if chosen.short else 3
    program = [sys.executable, "-m", "moe_advisor"]
    print(f"{'input':<28}{'program':<24}{'seconds':>8}{'MiB':>7}{'ratio':>7}{'promise':>9}")
    for case in CASES:
        repeat = max(case.repeat // 10, 1) if chosen.short else case.repeat
        path = grown(case, repeat)
        floor = measured("floor", [sys.executable, str(HERE / case.floor), str(path)], runs)
        ours = measured(
            "moe-advisor analyze",
            [*program, "analyze", str(path), "--force", "-q", "-o", str(DATA / "out")],
            runs,
        )
        for row in (floor, ours):
            ratio = row.seconds / floor.seconds
            # At a tenth of the size start-up rules: the ratio promises nothing.
            promise = f"{case.promise:.1f}" if row is ours and not chosen.short else ""
            name = f"a tenth of {case.name.split(',')[0]}" if chosen.short else case.name
            print(
                f"{name:<28}{row.name:<24}{row.seconds:>8.2f}{row.peak_mib:>7.0f}"
                f"{ratio:>7.2f}{promise:>9}"
            )
    for name, command in (("--help", ["--help"]), ("rules list", ["rules", "list"])):
        row = measured(name, [*program, *command], 5)
        print(f"{'start-up':<28}{name:<24}{row.seconds:>8.2f}{row.peak_mib:>7.0f}")


if __name__ == "__main__":
    main()
