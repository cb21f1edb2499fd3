"""Runs whole programs, measures them and sets the figures in tables."""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

LOOK_S = 0.25
"""How often the memory of a family of processes is summed up."""

MIB = 1 << 20
# An installed program has its bytecode; without it, 0.2 s of every run go into compiling ours.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

HEAD = (
    "input", "program", "wall s", "CPU s", "cores", "MiB", "all MiB", "wall ratio", "CPU ratio",
    "promise", "µs/event", "note",
)  # fmt: skip
WIDTHS = (34, 24, 8, 8, 6, 7, 8, 11, 10, 8, 9, 0)


class FailedError(Exception):
    """A program that ended with an error or was stopped; the text says which."""


@dataclass(frozen=True)
class Run:
    """One program on one input: its best run by wall time, and the highest peaks of all runs."""

    seconds: float
    cpu_s: float
    peak_mib: float
    """Of the largest process."""
    all_mib: float | None = None
    """Of the process and all its children together, shared pages once."""
    out: str = ""


def measured(
    name: str,
    command: Sequence[object],
    runs: int = 1,
    *,
    family: bool = False,
    limit_s: float | None = None,
    extra: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Run:
    """The best of `runs` processes; children that it waited for count for CPU time and peak.

    `family` sums up the memory of all processes while they run. Raises FailedError.
    """
    words = [str(word) for word in command]
    several = [_once(name, words, family, limit_s, extra or {}, folder) for _ in range(runs)]
    return best_of(several if family else [replace(one, all_mib=None) for one in several])


def best_of(several: Sequence[Run]) -> Run:
    """The fastest of several runs of one program, with the highest peaks of all."""
    best = min(several, key=lambda one: one.seconds)
    summed = max(one.all_mib or 0.0 for one in several) if best.all_mib is not None else None
    return Run(best.seconds, best.cpu_s, max(one.peak_mib for one in several), summed, best.out)


def _once(
    name: str,
    command: list[str],
    family: bool,
    limit_s: float | None,
    extra: Mapping[str, str],
    folder: Path | None,
) -> Run:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=errors, env=ENVIRONMENT | dict(extra), cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        done = threading.Event()
        sums: list[float] = []
        watcher = threading.Thread(
            target=_watch, args=(process.pid, family, limit_s, done, sums), daemon=True
        )
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C: the group is its own and would go on
            os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        out.seek(0)
        errors.seek(0)
        said, wrong = out.read(), errors.read().strip()
    if limit_s is not None and seconds >= limit_s:
        raise FailedError(f"{name}: stopped after {limit_s:.0f} s")
    if process.returncode:
        last = wrong.splitlines()[-1] if wrong else ""
        raise FailedError(f"{name}: exit {process.returncode}: {last[:200]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu_s, usage.ru_maxrss / 1024, max(sums, default=0.0), said)


def _watch(
    pid: int, family: bool, limit_s: float | None, done: threading.Event, sums: list[float]
) -> None:
    end = time.perf_counter() + (limit_s if limit_s is not None else float("inf"))
    while not done.wait(LOOK_S if family else min(1.0, limit_s or 1.0)):
        if family:
            sums.append(sum(map(_share_mib, [pid, *_below(pid)])))
        if time.perf_counter() > end:
            os.killpg(pid, signal.SIGKILL)
            return


def _below(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return []
    return [*found, *(below for child in found for below in _below(child))]


def _share_mib(pid: int) -> float:
    """Memory of a process, of pages that several share its part; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return (
        next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
    )


@dataclass
class Table:
    """Rows under headings, printed as they come."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    sections: list[tuple[str, int]] = field(default_factory=list)

    def section(self, title: str) -> None:
        """Begins a table."""
        self.sections.append((title, len(self.rows)))
        print(f"\n{title}\n{_line(HEAD)}", flush=True)

    def row(
        self,
        name: str,
        program: str,
        run: Run,
        over: Run | None = None,
        promise: float | None = None,
        events: int | None = None,
        note: str = "",
    ) -> None:
        """A measured program; ratios are to `over`, cores is CPU time over wall time."""
        self._add(
            name,
            program,
            f"{run.seconds:.2f}",
            f"{run.cpu_s:.2f}",
            f"{run.cpu_s / run.seconds:.2f}",
            f"{run.peak_mib:,.0f}",
            "" if run.all_mib is None else f"{run.all_mib:,.0f}",
            "" if over is None else f"{run.seconds / over.seconds:.2f}",
            "" if over is None else f"{run.cpu_s / over.cpu_s:.2f}",
            "" if promise is None else f"{promise:.1f}",
            "" if events is None else f"{run.cpu_s / events * 1e6:.2f}",
            note,
        )

    def absent(self, name: str, program: str, why: str) -> None:
        """A program that gave no figures."""
        self._add(name, program, *[""] * (len(HEAD) - 3), why)

    def _add(self, *cells: str) -> None:
        self.rows.append(cells)
        print(_line(cells), flush=True)

    def markdown(self) -> dict[str, str]:
        """Each section by its title, columns without figures left out."""
        ends = [start for _, start in self.sections[1:]] + [len(self.rows)]
        found = {}
        for (title, start), end in zip(self.sections, ends, strict=True):
            rows = self.rows[start:end]
            used = [at for at in range(len(HEAD)) if at < 2 or any(row[at] for row in rows)]
            lines = [[HEAD[at] for at in used], ["---"] * len(used)]
            lines += [[row[at] for at in used] for row in rows]
            found[title] = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return found


def sections_of(page: str) -> dict[str, str]:
    """The sections of a page that was written before, by their titles."""
    parts = page.split("\n## ")[1:]
    return {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}


def _line(cells: Sequence[str]) -> str:
    pairs = zip(cells, WIDTHS, strict=True)
    return "".join(
        f"{cell:<{width}}" if at < 2 else f"{cell:>{width}}" if width else f"  {cell}"
        for at, (cell, width) in enumerate(pairs)
    ).rstrip()


def machine() -> str:
    """What the figures were measured on; no host."""
    packages = ("polars", "msgspec", "adbc-driver-sqlite", "isal", "distributed")
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    day = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return (
        f"{day} UTC, {cores} cores, {python}, {', '.join(versions)}, {sys.platform}; "
        f"load {load:.1f} at the start"
    )
