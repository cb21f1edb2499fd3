"""Measures the program against floors in the same run: `python benchmarks/run.py`.

Each row is a whole process, imports included: best wall time of several runs, CPU time of that run
and peak memory. The ratios are what counts: the floor reads the same file and keeps nothing. Inputs
are grown from the test fixtures into benchmarks/data, once (8 GB for everything).

`--short` takes a tenth of the size and one run. `--sizes` measures how time and memory grow with
the input, `--ranks` folders of up to 1,024 ranks, here and on a Dask cluster that loses a worker,
`--peers` other tools on the same large inputs (options as in benchmarks/peers.py; what is not given
is named as absent). `--all` is everything, in about half an hour; `-o FILE` puts the tables into a
page.
"""

import argparse
import filecmp
import gzip
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import peers
from table import FailedError, Run, Table, best_of, machine, measured, sections_of

HERE = Path(__file__).parent
DATA = HERE / "data"
FIXTURES = HERE.parent / "tests" / "fixtures"
PROGRAM = (sys.executable, "-m", "moe_advisor")
RANKS = (16, 128, 1024)
RANK_SOURCES = [FIXTURES / f"torch/2.11/base.rank{rank}.json.xz" for rank in (0, 1)]
PEER_LIMIT_S = 600.0
"""A tool that takes longer is named with this limit."""
PEER_RANKS = 16
"""Ranks that tools for several files get."""


FLOORS = "Against the floors, and a second time with `--cache`"
START_UP = "Start-up"
SIZES = "Growth with the input; ratios to the floor on the same input"
MANY_RANKS = "Ranks: all cores of this machine, and a Dask cluster that loses a worker"
PEERS = "Peers on the same inputs; ratios to our whole analysis"


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
    sizes: tuple[int, ...]


KINETO = Case(
    "Kineto gz",
    FIXTURES / "torch/2.11/mcore_alltoall.rank0.json.xz",
    "kineto.json.gz",
    10,
    "kineto",
    "floor_kineto.py",
    2.0,
    (1, 3, 10, 30, 100),
)
NSYS = Case(
    "nsys SQLite",
    FIXTURES / "nsys/2025.3/mcore_alltoall.sqlite.xz",
    "nsys.sqlite",
    80,
    "nsys",
    "floor_sqlite.py",
    2.5,
    (8, 24, 80, 240, 450),  # 450: 10 million kernels
)
CASES = (KINETO, NSYS)


def grown(case: Case, repeat: int) -> Path:
    """The input, made if it is not there."""
    target = DATA / f"{repeat}x-{case.grown}"
    if not target.exists():
        grow(case.kind, [unpacked(case.source)], target, ["--repeat", str(repeat)])
    return target


def unpacked(source: Path) -> Path:
    """A fixture without its compression."""
    DATA.mkdir(exist_ok=True)
    plain = DATA / source.stem
    with lzma.open(source) as packed, plain.open("wb") as out:
        shutil.copyfileobj(packed, out)
    return plain


def packed(plain: Path) -> Path:
    """The same with gzip, as profilers write it; what is grown from it is packed too."""
    target = plain.with_name(plain.name + ".gz")
    with plain.open("rb") as file, gzip.open(target, "wb", 6) as out:
        shutil.copyfileobj(file, out)
    return target


def grow(kind: str, sources: Sequence[Path], target: Path, options: Sequence[str]) -> None:
    """Runs the tool that makes big traces; `target` appears when it is whole."""
    tool = str(HERE / "make_big_trace.py")
    part = DATA / f"part-{target.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.unlink(missing_ok=True)
    command = [sys.executable, tool, kind, *map(str, [*sources, part]), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    part.rename(target)


def rank_folder(ranks: int) -> Path:
    """A folder of Kineto ranks of one step, made if it is not there."""
    folder = DATA / f"ranks{ranks}"
    if not folder.exists():
        sources = [packed(unpacked(source)) for source in RANK_SOURCES]
        grow("ranks", sources, folder, ["--ranks", str(ranks), "--steps", "1"])
    return folder


def analyzed(path: Path, runs: int, *options: str, family: bool = False) -> Run:
    """The main job on `path`, with a report."""
    out = ["--force", "-q", "-o", str(DATA / "out")]
    command = [*PROGRAM, "analyze", str(path), *out, *options]
    return measured(path.name, command, runs, family=family)


def floor_of(case: Case, path: Path, runs: int) -> tuple[Run, int]:
    """The floor, and how many events or rows it read."""
    run = measured("floor", [sys.executable, str(HERE / case.floor), str(path)], runs)
    return run, int(run.out.split()[0])


def size(path: Path) -> str:
    """Bytes of an input as people say them."""
    return f"{path.stat().st_size / 1e6:,.0f} MB"


def against_floors(table: Table, runs: int, share: float) -> None:
    """Every format beside its floor, and a second analysis from the cache."""
    table.section(FLOORS)
    for case in CASES:
        path = grown(case, max(round(case.repeat * share), 1))
        name = f"{case.name}, {size(path)}"
        # In turns: one machine's speed changes by half within minutes, its host has others.
        floors: list[Run] = []
        wholes: list[Run] = []
        for _ in range(runs):
            one, events = floor_of(case, path, 1)
            floors.append(one)
            wholes.append(analyzed(path, 1))
        floor, whole = best_of(floors), best_of(wholes)
        table.row(name, "floor", floor, floor, events=events, note=f"{events:,} events")
        # At a fraction of the size start-up rules: the ratio promises nothing.
        promise = case.promise if share == 1 else None
        table.row(name, "analyze", whole, floor, promise, events)
        folder = DATA / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        first = analyzed(path, 1, "--cache", str(folder))
        table.row(name, "analyze, cache empty", first, whole)
        again = analyzed(path, runs, "--cache", str(folder))
        times = f"{whole.seconds / again.seconds:.1f} times as fast as without a cache"
        table.row(name, "analyze, from cache", again, whole, note=times)


def start_up(table: Table) -> None:
    """Commands that read no trace."""
    table.section(START_UP)
    for arguments in (["--help"], ["--version"], ["rules", "list"], ["doctor"]):
        run = measured("start-up", [*PROGRAM, *arguments], 5)
        table.row("no input", " ".join(arguments), run)


def over_sizes(table: Table) -> None:
    """Time and memory against size."""
    table.section(SIZES)
    for case in CASES:
        for repeat in case.sizes:
            path = grown(case, repeat)
            floor, events = floor_of(case, path, 1)
            run = analyzed(path, 1)
            name = f"{case.name}, {size(path)}"
            table.row(name, "analyze", run, floor, None, events, f"{events:,} events")


def over_ranks(table: Table) -> None:
    """Folders of many ranks, here and on a cluster: the results must be the same bytes."""
    table.section(MANY_RANKS)
    before: tuple[Run, int] | None = None
    ours = DATA / "ranks-here.json"
    for ranks in RANKS:
        run = analyzed(rank_folder(ranks), 1, "--format", f"json={ours}", family=True)
        note = f"{run.cpu_s / ranks * 1000:.0f} ms of CPU a rank"
        growth = ranks / before[1] if before else None
        table.row(f"{ranks:,} ranks", "analyze", run, before and before[0], growth, note=note)
        before = (run, ranks)
    name, theirs = f"{RANKS[-1]:,} ranks", DATA / "ranks-dask.json"
    command = [sys.executable, HERE / "dask_ranks.py", rank_folder(RANKS[-1]), theirs]
    try:
        run = measured("Dask", command, family=True)
    except FailedError as error:
        table.absent(name, "Dask, 2 workers", str(error))
        return
    told = json.loads(run.out.splitlines()[-1])
    same = filecmp.cmp(ours, theirs, shallow=False)
    note = (
        f"a worker killed after {told['killed_after'][0]} ranks, {told['lost']} lost; "
        f"{'the same bytes' if same else 'OTHER BYTES'} ({theirs.stat().st_size:,})"
    )
    table.row(name, "Dask, 2 workers", run, before and before[0], note=note)
    if not same:
        raise FailedError("the Dask cluster's result differs")


def beside_peers(table: Table, given: argparse.Namespace) -> None:
    """Other tools on the same large inputs, each with its own question on overlap."""
    table.section(PEERS)
    kineto, nsys = (grown(case, case.repeat) for case in CASES)
    ranks = rank_folder(PEER_RANKS)
    files = sorted(ranks.iterdir())
    path = {"PYTHONPATH": str(given.tracelens_path.absolute())} if given.tracelens_path else {}
    scratch = DATA / "peer"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    lone = scratch / nsys.name  # a copy: nsys-ai writes indexes into its input
    shutil.copyfile(nsys, lone)
    skill = ["skill", "run", "overlap_breakdown", lone, "--format", "json"]
    stats = ["stats", "-q", "-r", "cuda_gpu_kern_sum", "-f", "csv", lone]
    groups: tuple[tuple[str, Path, tuple[tuple[str, str | None, list[object]], ...]], ...] = (
        (
            f"{KINETO.name}, {size(kineto)}",
            kineto,
            (
                ("HTA", given.hta, ["-c", peers.HTA, kineto]),
                ("TraceLens", given.tracelens, ["-c", peers.TRACELENS, kineto]),
            ),
        ),
        (
            f"{PEER_RANKS} ranks",
            ranks,
            (
                ("HTA", given.hta, ["-c", peers.HTA, *files]),
                ("TraceLens", given.tracelens, ["-c", peers.TRACELENS, *files]),
            ),
        ),
        (
            f"{NSYS.name}, {size(nsys)}",
            nsys,
            (("nsys-ai", given.nsys_ai, skill), ("nsys stats", given.nsys, stats)),
        ),
    )
    for name, source, tools in groups:
        ours = analyzed(source, 1, family=True)
        table.row(name, "moe-advisor analyze", ours, ours)
        for tool, program, arguments in tools:
            if not program:
                table.absent(name, tool, "not given: see the head of benchmarks/peers.py")
                continue
            program = str(Path(program).absolute())
            try:
                run = measured(
                    tool, [program, *arguments], family=True, limit_s=PEER_LIMIT_S,
                    extra=path if tool == "TraceLens" else None, folder=scratch,
                )  # fmt: skip
            except FailedError as error:
                table.absent(name, tool, str(error))
            else:
                table.row(name, tool, run, ours)
    shutil.rmtree(scratch, ignore_errors=True)


WORDS = """\
# Benchmarks

Written by `python benchmarks/run.py --all -o docs/benchmarks.md`; don't edit. (With `--sizes`,
`--ranks`, `--peers` or nothing instead of `--all`, one part is measured anew.) Each row is a whole
process, imports and report included: the best wall time of several runs and its CPU time. MiB is
the peak of the largest process, `all MiB` that of all processes together,
looked at four times a second. The floor reads the same
file and keeps nothing: gunzip and a typed decode of each event, or a fetch of the needed columns
with two ADBC cursors. [Where the time goes](performance.md) and
[From one rank to many](scaling.md) say what the figures mean.

Measured at different times: each table names its own machine and load.
"""
ORDER = (FLOORS, START_UP, SIZES, MANY_RANKS, PEERS)


def page(table: Table, measured_on: str, before: str) -> str:
    """The page with the new tables in place of those of the same name."""
    new = {title: f"{measured_on}\n\n{body}" for title, body in table.markdown().items()}
    found = sections_of(before) | new
    parts = [f"## {title}\n\n{found[title]}" for title in ORDER if title in found]
    return "\n\n".join([WORDS.rstrip(), *parts]) + "\n"


def main() -> None:
    """Prints the tables that were asked for."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--short", action="store_true", help="a tenth of the size, one run")
    options.add_argument("--sizes", action="store_true", help="growth with the input")
    options.add_argument("--ranks", action="store_true", help="folders of up to 1,024 ranks")
    options.add_argument("--peers", action="store_true", help="other tools on the same inputs")
    options.add_argument("--all", action="store_true", help="everything")
    options.add_argument("-o", "--output", type=Path, help="put the tables into this page")
    peers.add_options(options)
    chosen = options.parse_args()
    measured_on = machine()
    print(measured_on)
    table = Table()
    every = chosen.all
    plain = not (chosen.sizes or chosen.ranks or chosen.peers)
    runs, share = (1, 0.1) if chosen.short else (5, 1.0)
    jobs: tuple[tuple[bool, Callable[[], None]], ...] = (
        (every or plain, lambda: against_floors(table, runs, share)),
        (every or plain, lambda: start_up(table)),
        (every or chosen.sizes, lambda: over_sizes(table)),
        (every or chosen.ranks, lambda: over_ranks(table)),
        (every or chosen.peers, lambda: beside_peers(table, chosen)),
    )
    failed = []
    for wanted, job in jobs:
        try:
            if wanted:
                job()
        except FailedError as error:
            failed.append(str(error))
            print(error, file=sys.stderr)
    if chosen.output and table.rows:
        before = chosen.output.read_text() if chosen.output.exists() else ""
        chosen.output.write_text(page(table, measured_on, before))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
