"""A fuzzing campaign: `python fuzz/campaign.py --minutes N --jobs J --out DIR`.

Targets take turns in slices, each in a process of its own with coverage feedback by atheris where
that is installed, else with random mutation alone. A finding is kept with its input and the slice
goes on. DIR gets report.json, findings/ and the inputs that reached new code; a campaign that is
started again in DIR adds to its figures.
"""

import argparse
import contextlib
import hashlib
import json
import lzma
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SLICE_S = 100
CPU_LIMIT_S = 30
"""Processor seconds of one execution, many times what the slowest sound one takes."""
SILENCE_S = 300
"""A slice that says nothing for so long hangs in native code; it is ended and is a finding."""
MEMORY_BYTES = 8 << 30
MAX_INPUT_BYTES = 4 << 20
KEPT_PER_FINDING = 2


class SlowError(BaseException):
    """One execution took more than CPU_LIMIT_S."""


def _slow(*_: object) -> None:
    raise SlowError


# --- one slice, in a process of its own -------------------------------------------------------


class Slice:
    """Runs one target for some seconds and writes what it saw to a file."""

    def __init__(self, target: str, seconds: float, out: Path, seed: int) -> None:
        from fuzz import seeds
        from fuzz.targets import TARGETS

        self.name, self.target, self.out = target, TARGETS[target], out
        self.random = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.findings: dict[str, dict[str, Any]] = {}
        self.corpus = self.target.seeds() + seeds.grown(target) + self._kept()
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_fast_folder()))
        self.beat = 0.0

    def _kept(self) -> list[bytes]:
        folder = self.out / "corpus" / self.name
        return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []

    def pick(self, count: int) -> int:
        """A number below `count`."""
        return self.random.randrange(count) if count > 0 else 0

    def mutated(self, data: bytes) -> bytes:
        """A change of `data`, seldom of two generations."""
        donor = self.random.choice(self.corpus)
        for _ in range(1 + (self.pick(4) == 0)):
            data = self.target.mutate(data, self.pick, donor)
        return data[:MAX_INPUT_BYTES]

    def execute(self, data: bytes) -> None:
        """One execution; what it lets through becomes a finding."""
        from fuzz.targets import execute

        (self.out / "running" / f"{os.getpid()}").write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        try:
            self.counts[execute(self.name, data, self.folder)] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever gets out is a finding, polars' panics too
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.counts["finding"] += 1
            self._keep(error, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if time.monotonic() - self.beat > 5:
            self.beat = time.monotonic()
            self.write()

    def _keep(self, error: BaseException, data: bytes) -> None:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/moe_advisor/" in f.filename
        ]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "fuzz"
        key = f"{self.name}|{type(error).__name__}|{place}"
        if type(error).__name__ == "BrokenPromiseError":
            key += "|" + str(error)[:60]
        known = self.findings.setdefault(
            key, {"count": 0, "message": str(error)[:300], "trace": _short(error), "inputs": []}
        )
        known["count"] += 1
        if len(known["inputs"]) < KEPT_PER_FINDING:
            digest = hashlib.sha256(data).hexdigest()[:16]
            path = self.out / "findings" / f"{self.name}-{digest}"
            path.write_bytes(data)
            known["inputs"].append(path.name)

    def write(self) -> None:
        """The figures so far, for the parent."""
        path = self.out / "slices" / f"{os.getpid()}.json"
        temporary = path.with_suffix(".tmp")
        text = json.dumps({"target": self.name, "counts": self.counts, "findings": self.findings})
        temporary.write_text(text)
        temporary.replace(path)

    def run_plain(self) -> None:
        """Random mutation of the corpus, until the time is up."""
        for data in self.corpus:
            self.execute(data)
        while time.monotonic() < self.until:
            self.execute(self.mutated(self.random.choice(self.corpus)))

    def run_atheris(self) -> None:
        """Mutation led by the coverage of this program's modules; never returns."""
        import atheris

        folder = self.out / "corpus" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        first = Path(tempfile.mkdtemp(dir=self.folder))
        for number, data in enumerate(self.corpus):
            (first / str(number)).write_bytes(data)

        def one(data: bytes) -> None:
            if time.monotonic() > self.until:
                self.write()
                os._exit(0)
            self.execute(data)

        def mutator(data: bytes, max_size: int, seed: int) -> bytes:
            self.random.seed(seed)
            return self.mutated(data or self.random.choice(self.corpus))[:max_size]

        atheris.Setup(
            [
                "fuzz", f"-max_len={MAX_INPUT_BYTES}", "-timeout=100000", "-rss_limit_mb=0",
                "-print_final_stats=0", "-verbosity=0", "-len_control=0", "-reload=0",
                f"-seed={self.random.randrange(1, 2**31)}", str(folder), str(first),
            ],
            one,
            custom_mutator=mutator,
        )  # fmt: skip
        atheris.Fuzz()


def _short(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _slice(target: str, seconds: float, out: Path, seed: int, guided: bool) -> None:
    signal.signal(signal.SIGPROF, _slow)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if guided:
        import atheris

        with atheris.instrument_imports(include=["moe_advisor"]):
            from fuzz import targets

            _import_all()
            del targets
    one = Slice(target, seconds, out, seed)
    try:
        one.run_atheris() if guided else one.run_plain()
    finally:
        one.write()


def _import_all() -> None:
    """Every module of the program, so that none is imported later without instruments."""
    import importlib
    import pkgutil

    import moe_advisor

    for found in pkgutil.walk_packages(moe_advisor.__path__, "moe_advisor."):
        if not found.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)


# --- the campaign -----------------------------------------------------------------------------


def _run_slice(target: str, seconds: float, out: Path, seed: int, guided: bool) -> dict[str, Any]:
    command = [
        sys.executable, str(Path(__file__).resolve()), "--slice", target, "--seconds", str(seconds),
        "--out", str(out), "--seed", str(seed), *(["--plain"] if not guided else []),
    ]  # fmt: skip
    log = out / "logs" / f"{target}.log"
    with log.open("ab") as errors:
        child = subprocess.Popen(command, stdout=errors, stderr=errors, cwd=ROOT)
        figures = out / "slices" / f"{child.pid}.json"
        running = out / "running" / f"{child.pid}"
        begun = time.monotonic()
        crash = ""
        while child.poll() is None:
            time.sleep(0.5)
            last = running.stat().st_mtime if running.exists() else time.time()
            if time.time() - last > SILENCE_S or time.monotonic() - begun > seconds + 2 * SILENCE_S:
                child.kill()
                crash = "silent: killed"
    if child.returncode not in (0, None) and not crash:
        crash = f"ended with {child.returncode}"
    seen: dict[str, Any] = {"target": target, "counts": {}, "findings": {}}
    with contextlib.suppress(OSError, ValueError):
        seen = json.loads(figures.read_text())
    if crash:
        name = f"{target}-crash-{child.pid}"
        with contextlib.suppress(OSError):
            (out / "findings" / name).write_bytes(running.read_bytes())
        seen["findings"][f"{target}|{crash}"] = {
            "count": 1, "message": crash, "trace": [], "inputs": [name],
        }  # fmt: skip
    for path in (figures, running):
        with contextlib.suppress(OSError):
            path.unlink()
    return {**seen, "wall_s": round(time.monotonic() - begun, 1)}


def _add(report: dict[str, Any], seen: dict[str, Any]) -> None:
    row = report["targets"].setdefault(seen["target"], {"wall_s": 0.0, "counts": {}})
    row["wall_s"] = round(row["wall_s"] + seen["wall_s"], 1)
    for name, count in seen["counts"].items():
        row["counts"][name] = row["counts"].get(name, 0) + count
    for key, finding in seen["findings"].items():
        known = report["findings"].setdefault(key, {**finding, "count": 0})
        known["count"] += finding["count"]
    report["wall_s"] = round(sum(one["wall_s"] for one in report["targets"].values()), 1)
    report["executions"] = sum(
        count for one in report["targets"].values() for count in one["counts"].values()
    )


def campaign(minutes: float, jobs: int, out: Path, wanted: Sequence[str], guided: bool) -> int:
    """Runs slices until the time is up; returns the number of distinct findings."""
    from fuzz.targets import TARGETS

    for name in ("findings", "corpus", "slices", "running", "logs"):
        (out / name).mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    report: dict[str, Any] = {"executions": 0, "wall_s": 0.0, "targets": {}, "findings": {}}
    if path.exists():
        report = json.loads(path.read_text())
    # Those that had the least time go first: a campaign may be stopped and started again.
    spent = {name: row["wall_s"] for name, row in report["targets"].items()}
    names = sorted(wanted or TARGETS, key=lambda name: spent.get(name, 0.0))
    until = time.monotonic() + minutes * 60
    turn = 0
    with ThreadPoolExecutor(jobs) as pool:

        def work(_: int) -> None:
            nonlocal turn
            while (left := until - time.monotonic()) > 1:
                target, turn = names[turn % len(names)], turn + 1
                seconds = min(SLICE_S, left)
                seen = _run_slice(target, seconds, out, random.randrange(2**31), guided)
                _add(report, seen)
                text = json.dumps(report, indent=1)
                path.write_text(text)
                print(f"{report['executions']:>9,} executions  {target:<14}"
                      f"{len(report['findings'])} findings", flush=True)  # fmt: skip

        list(pool.map(work, range(jobs)))
    for key, finding in sorted(report["findings"].items()):
        print(f"{finding['count']:>6} × {key}: {finding['message']}")
    return len(report["findings"])


def pack(out: Path, most: int = 60, most_bytes: int = 6_000) -> None:
    """Puts the smallest inputs that reached new code into fuzz/corpus, for the next campaign."""
    target_folder = Path(__file__).parent / "corpus"
    target_folder.mkdir(exist_ok=True)
    for folder in sorted((out / "corpus").iterdir()):
        found = sorted((path.read_bytes() for path in folder.iterdir()), key=len)
        kept = [data.hex() for data in found if len(data) <= most_bytes][:most]
        if kept:
            packed = lzma.compress(json.dumps(kept).encode(), preset=9)
            (target_folder / f"{folder.name}.json.xz").write_bytes(packed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--pack", action="store_true", help="only pack DIR's corpus into fuzz/")
    parser.add_argument("--slice", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SLICE_S, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    guided = not given.plain
    if guided:
        try:
            import atheris

            del atheris
        except ImportError:
            guided = False
            print("atheris is not installed: mutation without coverage feedback")
    out = given.out.resolve()
    if given.slice:
        _slice(given.slice, given.seconds, out, given.seed, guided)
        return 0
    if given.pack:
        pack(out)
        return 0
    return 1 if campaign(given.minutes, given.jobs, out, given.target, guided) else 0


if __name__ == "__main__":
    sys.exit(main())
