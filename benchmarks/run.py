"""Measures the program against floors in the same run: `python benchmarks/run.py`.

Each row is a whole process, imports included: best wall time of several runs, CPU time of that run
and peak memory. The ratio is what counts: the floor reads the same file and keeps nothing. Inputs
are grown from the test fixtures into benchmarks/data, once.

`--short` takes a tenth of the size and one run. `--sizes` measures how time and memory grow with
the input, up to ten times the size; `--ranks` a folder of 1,024 ranks. Both take minutes.
"""

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DATA = HERE / "data"
FIXTURES = HERE.parent / "tests" / "fixtures"
PROGRAM = (sys.executable, "-m", "moe_advisor")
RANKS = (16, 128, 1024)
# An installed program has its bytecode; without it, 0.2 s of every run go into compiling ours.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Run:
    """One program on one input: its best run, and the highest peak of all runs."""

    seconds: float
    cpu_s: float
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


KINETO = Case(
    "Kineto gz",
    FIXTURES / "torch/2.11/mcore_alltoall.rank0.json.xz",
    "kineto.json.gz",
    10,
    "kineto",
    "floor_kineto.py",
    3.0,
)
NSYS = Case(
    "nsys SQLite",
    FIXTURES / "nsys/2025.3/mcore_alltoall.sqlite.xz",
    "nsys.sqlite",
    80,
    "nsys",
    "floor_sqlite.py",
    4.0,
)
CASES = (KINETO, NSYS)


def grown(case: Case, repeat: int) -> Path:
    """The input, made if it is not there."""
    target = DATA / f"{repeat}x-{case.grown}"
    if not target.exists():
        plain = unpacked(case.source)
        grow(case.kind, [plain, target], ["--repeat", str(repeat)])
    return target


def unpacked(source: Path) -> Path:
    """A fixture without its compression."""
    DATA.mkdir(exist_ok=True)
    plain = DATA / source.stem
    with lzma.open(source) as packed, plain.open("wb") as out:
        shutil.copyfileobj(packed, out)
    return plain


def grow(kind: str, paths: Sequence[Path], options: Sequence[str]) -> None:
    """Runs the tool that makes big traces."""
    tool = str(HERE / "make_big_trace.py")
    command = [sys.executable, tool, kind, *map(str, paths), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(name: str, command: Sequence[str], runs: int) -> Run:
    """The best of `runs` processes by wall time. Children that it waited for count."""
    best, peak = Run(float("inf"), 0.0, 0.0), 0.0
    for _ in range(runs):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        peak = max(peak, usage.ru_maxrss / 1024)
        if seconds < best.seconds:
            best = Run(seconds, usage.ru_utime + usage.ru_stime, 0.0)
        if status:
            raise SystemExit(f"{name}: failed with {os.waitstatus_to_exitcode(status)}")
    return Run(best.seconds, best.cpu_s, peak)


def analyzed(path: Path, runs: int, *options: str) -> Run:
    """The main job on `path`, with a report."""
    out = ["--force", "-q", "-o", str(DATA / "out")]
    return measured(path.name, [*PROGRAM, "analyze", str(path), *out, *options], runs)


def size(path: Path) -> str:
    """Bytes of an input as people say them."""
    return f"{path.stat().st_size / 1e6:,.0f} MB"


def row(name: str, program: str, run: Run, floor: Run | None = None, promise: str = "") -> None:
    """Prints one line of the table; cores is CPU time over wall time."""
    ratio = f"{run.seconds / floor.seconds:.2f}" if floor else ""
    print(
        f"{name:<26}{program:<22}{run.seconds:>8.2f}{run.cpu_s:>8.2f}"
        f"{run.cpu_s / run.seconds:>7.2f}{run.peak_mib:>7.0f}{ratio:>7}{promise:>9}",
        flush=True,
    )


def header() -> None:
    print(
        f"{'input':<26}{'program':<22}{'wall s':>8}{'CPU s':>8}{'cores':>7}{'MiB':>7}"
        f"{'ratio':>7}{'promise':>9}"
    )


def against_floors(runs: int, share: float) -> None:
    """Every format beside its floor, and a second analysis from the cache."""
    for case in CASES:
        path = grown(case, max(round(case.repeat * share), 1))
        name = f"{case.name}, {size(path)}"
        floor = measured("floor", [sys.executable, str(HERE / case.floor), str(path)], runs)
        row(name, "floor", floor, floor)
        # At a fraction of the size start-up rules: the ratio promises nothing.
        promise = f"{case.promise:.1f}" if share == 1 else ""
        row(name, "analyze", analyzed(path, runs), floor, promise)
        folder = DATA / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        first = analyzed(path, 1, "--cache", str(folder))
        row(name, "analyze, cache empty", first)
        row(name, "analyze, from cache", analyzed(path, runs, "--cache", str(folder)), first)


def start_up() -> None:
    for arguments in (["--help"], ["--version"], ["rules", "list"]):
        row("start-up", " ".join(arguments), measured("start-up", [*PROGRAM, *arguments], 5))


def over_sizes() -> None:
    """Time and memory against size: the ratio is to the size before, the promise the growth."""
    for case in CASES:
        before: tuple[Run, int] | None = None
        for factor in (0.1, 0.3, 1, 3, 10):
            repeat = max(round(case.repeat * factor), 1)
            path = grown(case, repeat)
            run = analyzed(path, 1)
            promise = f"{repeat / before[1]:.1f}" if before else ""
            row(f"{case.name}, {size(path)}", "analyze", run, before and before[0], promise)
            before = (run, repeat)


def over_ranks() -> None:
    """A folder of many ranks; memory is that of the largest process."""
    before: tuple[Run, int] | None = None
    for ranks in RANKS:
        folder = DATA / f"ranks{ranks}"
        if not folder.exists():
            sources = [KINETO.source, Path(str(KINETO.source).replace("rank0", "rank1"))]
            plain = [unpacked(source) for source in sources]
            grow("ranks", [*plain, folder], ["--ranks", str(ranks), "--steps", "1"])
        run = analyzed(folder, 1)
        promise = f"{ranks / before[1]:.1f}" if before else ""
        row(f"{ranks} Kineto ranks", "analyze", run, before and before[0], promise)
        before = (run, ranks)


def main() -> None:
    """Prints the tables that were asked for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--short", action="store_true", help="a tenth of the size, one run")
    options.add_argument("--sizes", action="store_true", help="growth up to ten times the size")
    options.add_argument("--ranks", action="store_true", help="folders of up to 1,024 ranks")
    chosen = options.parse_args()
    header()
    if chosen.sizes:
        over_sizes()
    if chosen.ranks:
        over_ranks()
    if not chosen.sizes and not chosen.ranks:
        against_floors(*((1, 0.1) if chosen.short else (3, 1.0)))
        start_up()


if __name__ == "__main__":
    main()
