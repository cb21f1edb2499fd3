"""What other tools say about the same traces: `python benchmarks/peers.py -o docs/peers.md`.

The traces are in the repository: two H200, one run (`shm_balanced`, slow link) captured by both
profilers, and one where a rank gets nearly all tokens (`skew`). Each tool answers one question in its own terms: how long did rank 0 communicate, and
how much of that did compute hide? Install what is to be compared in an environment of its own:

    python -m venv hta && hta/bin/pip install HolisticTraceAnalysis
    python -m venv nsys-ai && nsys-ai/bin/pip install nsys-ai
    python benchmarks/peers.py --hta hta/bin/python --nsys-ai nsys-ai/bin/nsys-ai --nsys nsys

Tools that are not given are left out. Times are CPU seconds of the whole process, imports included.
"""

import argparse
import csv
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINETO = sorted((ROOT / "moe_advisor" / "demo").glob("*.json.gz"))
NSYS = ROOT / "tests" / "fixtures" / "nsys" / "2025.3" / "shm_balanced.sqlite.xz"
SKEW = sorted((ROOT / "tests" / "fixtures" / "torch" / "2.11").glob("skew.*.xz"))

HTA = """
import json, logging, sys
logging.disable(logging.CRITICAL)
import pandas
from importlib.metadata import version
from hta.trace_analysis import TraceAnalysis
trace = TraceAnalysis(trace_files=dict(enumerate(sys.argv[1:])),
                      include_last_profiler_step=True)
overlap = trace.get_comm_comp_overlap(visualize=False)
_, kernels = trace.get_gpu_kernel_breakdown(visualize=False)
of = kernels[(kernels["rank"] == 0) & (kernels["kernel_type"] == "COMMUNICATION")]
print(json.dumps({"version": version("HolisticTraceAnalysis"),
  "comm_ms": float(of["sum (us)"].sum()) / 1000,
  "hidden_share": float(overlap["comp_comm_overlap_pctg"][0]) / 100}))
"""


@dataclass(frozen=True)
class Run:
    """A tool's process: output, CPU seconds, largest memory."""

    out: str
    cpu_s: float
    wall_s: float
    peak_mib: float


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    tool: str
    trace: str
    comm: str
    hidden: str
    purpose: str
    waiting: str
    run: Run


def measured(command: Sequence[object], folder: Path) -> Run:
    """Runs a tool and measures it with its children."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.monotonic()
        child = subprocess.Popen(
            [str(word) for word in command], cwd=folder, stdout=out, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        out.seek(0)
        text = out.read()
    if child.returncode:
        raise SystemExit(f"{command[0]}: exit {child.returncode}\n{text[-2000:]}")
    return Run(text, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def moe_advisor(trace: str, inputs: Sequence[Path], folder: Path) -> Row:
    """Our own answer, by the same clock, report written."""
    out = folder / f"ours {trace}"
    run = measured(
        [sys.executable, "-m", "moe_advisor", "analyze", *inputs, "-q", "-o", out], folder
    )
    result = json.loads((out / "result.json").read_text())
    metrics, steps = result["metrics"], result["steps"]["count"]

    def rank0(name: str) -> float:
        return steps * next(one["value"] for one in metrics[name]["per_rank"] if one["rank"] == 0)

    comm, exposed = rank0("comm_ms"), rank0("comm_exposed_ms")
    purpose = f"EP {rank0('ep_a2a_ms'):.0f} ms, DP {rank0('dp_collective_ms'):.0f} ms"
    waiting = (
        f"EP: {rank0('ep_a2a_wait_ms'):.0f} ms waiting, "
        f"{rank0('ep_a2a_transfer_ms'):.0f} ms on the wire"
    )
    return Row(
        f"moe-advisor {result['tool']['version']}",
        trace,
        f"{comm:.1f} ms",
        f"{(1 - exposed / comm) * 100:.1f} %",
        purpose,
        waiting,
        run,
    )


def hta(python: str, trace: str, inputs: Sequence[Path], folder: Path) -> Row:
    """Meta's Holistic Trace Analysis on the PyTorch captures."""
    run = measured([python, "-c", HTA, *inputs], folder)
    said = json.loads(run.out.splitlines()[-1])
    return Row(
        f"HTA {said['version']}",
        trace,
        f"{said['comm_ms']:.1f} ms",
        f"{said['hidden_share'] * 100:.1f} %",
        "by kernel name",
        "no",
        run,
    )


def nsys_ai(program: str, database: Path, folder: Path) -> Row:
    """nsys-ai's overlap skill on the nsys export."""
    run = measured(
        [program, "skill", "run", "overlap_breakdown", database, "--format", "json"], folder
    )
    said = json.loads(run.out[run.out.index("[") :])[0]
    comm = said["nccl_only_ms"] + said["overlap_ms"]
    shown = subprocess.run(
        [Path(program).parent / "python", "-m", "pip", "show", "nsys-ai"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    version = re.search(r"^Version: (\S+)", shown, re.MULTILINE)
    return Row(
        f"nsys-ai {version[1] if version else ''}".strip(),
        "shm_balanced, nsys",
        f"{comm:.1f} ms",
        f"{said['overlap_ms'] / comm * 100:.1f} %",
        "by NCCL operation",
        "no",
        run,
    )


def nsys_stats(program: str, database: Path, folder: Path) -> Row:
    """`nsys stats`: kernels summed by name; both GPUs together, halved here."""
    run = measured(
        [program, "stats", "-q", "-r", "cuda_gpu_kern_sum", "-f", "csv", database], folder
    )
    text = run.out[run.out.index("Time (%)") :]
    rows = list(csv.DictReader(io.StringIO(text)))
    comm = sum(float(one["Total Time (ns)"]) for one in rows if "nccl" in one["Name"].lower())
    return Row(
        f"nsys stats {version_of(program)}",
        "shm_balanced, nsys",
        f"{comm / 1e6 / 2:.1f} ms",
        "not shown",
        "by kernel name",
        "no",
        run,
    )


def nsys_analyze(program: str, database: Path, folder: Path) -> Row:
    """`nsys analyze` with its default rules."""
    run = measured([program, "analyze", "-q", database], folder)
    found = len(re.findall(r"^Suggestion", run.out, re.MULTILINE))
    return Row(
        f"nsys analyze {version_of(program)}",
        "shm_balanced, nsys",
        "not shown",
        "not shown",
        f"{found} rules of 6 suggest something",
        "no",
        run,
    )


def version_of(program: str) -> str:
    """The version that nsys prints."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"\d{4}\.\d+\.\d+", said.stdout)
    return found[0] if found else ""


def page(rows: Sequence[Row], words: str) -> str:
    """The table, between what was asked and what it means."""
    lines = [
        "| tool | trace | communication, rank 0 | hidden by compute | what for | waiting told "
        "from transfer | CPU s | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {one.tool} | {one.trace} | {one.comm} | {one.hidden} | {one.purpose} | "
            f"{one.waiting} | {one.run.cpu_s:.1f} | {one.run.peak_mib:.0f} |"
            for one in rows
        ),
    ]
    return words.replace("{table}", "\n".join(lines))


def main() -> None:
    """Runs what there is and prints or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hta", help="Python that has HolisticTraceAnalysis")
    parser.add_argument("--nsys-ai", help="nsys-ai program")
    parser.add_argument("--nsys", default=shutil.which("nsys"), help="nsys program")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = folder / "shm_balanced.sqlite"
        database.write_bytes(lzma.decompress(NSYS.read_bytes()))
        skewed = [folder / path.stem for path in SKEW]
        for packed, path in zip(SKEW, skewed, strict=True):
            path.write_bytes(lzma.decompress(packed.read_bytes()))
        rows = []
        for trace, inputs in (("shm_balanced, PyTorch", KINETO), ("skew, PyTorch", skewed)):
            rows.append(moe_advisor(trace, inputs, folder))
            if given.hta:
                rows.append(hta(given.hta, trace, inputs, folder))
        rows.append(moe_advisor("shm_balanced, nsys", [database], folder))
        if given.nsys_ai:
            rows.append(nsys_ai(str(Path(given.nsys_ai).absolute()), database, folder))
        if given.nsys:
            program = str(Path(given.nsys).absolute())
            rows += [tool(program, database, folder) for tool in (nsys_stats, nsys_analyze)]
    words = (ROOT / "benchmarks" / "peers.in.md").read_text()
    text = page(rows, words)
    if given.output:
        given.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
