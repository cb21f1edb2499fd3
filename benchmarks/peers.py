"""What other tools say about the same traces: `python benchmarks/peers.py -o docs/peers.md`.

The traces are in the repository: two H200, one run (`shm_balanced`, slow link) captured by both
profilers, one where a rank gets nearly all tokens (`skew`), and two with DeepEP, whose kernels have
no `nccl` in their names. Each tool answers one question in its own terms: how long did rank 0
communicate, and how much of that did compute hide? Install what is to be compared in an environment
of its own:

    python -m venv hta && hta/bin/pip install HolisticTraceAnalysis
    python -m venv nsys-ai && nsys-ai/bin/pip install nsys-ai
    python -m venv lens && lens/bin/pip install git+https://github.com/AMD-AGI/TraceLens.git
    python benchmarks/peers.py --hta hta/bin/python --nsys-ai nsys-ai/bin/nsys-ai --nsys nsys \
        --tracelens lens/bin/python

Where TraceLens can't be installed, `--tracelens-path FOLDER` gives a checkout, or a folder that
holds `TraceLens/TreePerf/gpu_event_analyser.py`, `TraceLens/NcclAnalyser/nccl_analyser.py` and what
they import of `TraceLens/util.py`; `--tracelens` is then a Python that has pandas and tqdm.
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
DEEPEP_NSYS = NSYS.with_name("deepep.sqlite.xz")
TORCH = ROOT / "tests" / "fixtures" / "torch" / "2.11"

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

TRACELENS = """
import hashlib, json, logging, pathlib, subprocess, sys
from importlib import metadata
logging.disable(logging.CRITICAL)
files = sys.argv[1:]
try:
    from TraceLens import NcclAnalyser, TreePerfAnalyzer
    how = "public API"
    perf = TreePerfAnalyzer.from_file(files[0], include_unlinked_kernels=True)
    timeline = perf.get_df_gpu_timeline()
    from TraceLens.TreePerf import gpu_event_analyser as module
except ImportError:
    from TraceLens.NcclAnalyser.nccl_analyser import NcclAnalyser
    from TraceLens.TreePerf import gpu_event_analyser as module
    from TraceLens.util import DataLoader
    how = "two modules alone"
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    events = [e for e in DataLoader.load_data(files[0])["traceEvents"] if e.get("cat") in kinds]
    for number, event in enumerate(events):
        event["UID"] = number
    timeline = module.PytorchGPUEventAnalyser(events).get_breakdown_df()
parts = dict(zip(timeline["type"], timeline["time ms"]))
peers = NcclAnalyser(files, len(files))
found = peers.build_df_long()
first = found[found["rank"] == 0]
uneven = peers.build_df_nccl_all2allv(detailed=True, strict_metadata_check=False)
late_us = 0.0
if uneven is not None:
    late_us = float((uneven["skew in start time"] - uneven["rank_0_skew in start time"]).sum())
source = pathlib.Path(module.__file__)
commit = ""
try:
    origin = json.loads(metadata.distribution("TraceLens").read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")
except metadata.PackageNotFoundError:
    pass
if not commit:
    asked = ["git", "-C", str(source.parent), "log", "-1", "--format=%H", "--", source.name]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
digest = hashlib.sha256(source.read_bytes()).hexdigest()
print(json.dumps({"how": how, "commit": commit, "sha256": digest,
  "comm_ms": float(parts["total_comm_time"]), "exposed_ms": float(parts["exposed_comm_time"]),
  "late_ms": None if uneven is None else late_us / 1000,
  "by_collective_ms": {str(k): v / 1000 for k, v in
                       first.groupby("Collective name")["dur"].sum().items()}}))
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


def measured(command: Sequence[object], folder: Path, path: Path | None = None) -> Run:
    """Runs a tool and measures it with its children; `path` is put on the module search path."""
    extra = {"PYTHONPATH": str(path.absolute())} if path else {}
    with tempfile.TemporaryFile("w+") as out:
        began = time.monotonic()
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=os.environ | extra,
            stdout=out,
            stderr=subprocess.DEVNULL,
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
        values = {one["rank"]: float(one["value"]) for one in metrics[name]["per_rank"]}
        return values[0] * int(steps)

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


def tracelens(
    python: str, path: Path | None, trace: str, inputs: Sequence[Path], folder: Path
) -> Row:
    """AMD's TraceLens on the PyTorch captures: by its public API, else by two of its modules."""
    run = measured([python, "-c", TRACELENS, *inputs], folder, path)
    said = json.loads(run.out.splitlines()[-1])
    version = said["commit"][:12] or f"file {said['sha256'][:12]}"
    late = said["late_ms"]
    hidden = 1 - said["exposed_ms"] / said["comm_ms"]
    return Row(
        f"TraceLens ({said['how']}, {version})",
        trace,
        f"{said['comm_ms']:.1f} ms",
        f"{abs(hidden) * 100:.1f} %",
        ", ".join(f"`{name}` {ms:.0f} ms" for name, ms in said["by_collective_ms"].items()),
        "no all-to-all seen"
        if late is None
        else f"`all_to_allv`: the other rank {late:.0f} ms late",
        run,
    )


def nsys_ai(program: str, trace: str, database: Path, folder: Path) -> Row:
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
        trace,
        f"{comm:.1f} ms",
        f"{said['overlap_ms'] / comm * 100:.1f} %",
        "by NCCL operation",
        "no",
        run,
    )


def nsys_stats(program: str, trace: str, database: Path, folder: Path) -> Row:
    """`nsys stats`: kernels summed by name; both GPUs together, halved here."""
    run = measured(
        [program, "stats", "-q", "-r", "cuda_gpu_kern_sum", "-f", "csv", database], folder
    )
    text = run.out[run.out.index("Time (%)") :]
    rows = list(csv.DictReader(io.StringIO(text)))
    comm = sum(float(one["Total Time (ns)"]) for one in rows if "nccl" in one["Name"].lower())
    return Row(
        f"nsys stats {version_of(program)}",
        trace,
        f"{comm / 1e6 / 2:.1f} ms",
        "not shown",
        "by kernel name",
        "no",
        run,
    )


def nsys_analyze(program: str, trace: str, database: Path, folder: Path) -> Row:
    """`nsys analyze` with its default rules."""
    run = measured([program, "analyze", "-q", database], folder)
    rules = re.split(r"^ \*\* .*\((\w+)\):$", run.out, flags=re.MULTILINE)[1:]
    texts = dict(zip(rules[::2], rules[1::2], strict=True))
    named = [f"`{name}`" for name, text in texts.items() if "\nSuggestion" in text]
    return Row(
        f"nsys analyze {version_of(program)}",
        trace,
        "not shown",
        "not shown",
        f"{len(named)} of {len(texts)} rules suggest something: {', '.join(named)}",
        "no",
        run,
    )


def unpacked(packed: Sequence[Path], folder: Path) -> list[Path]:
    """The captures without their compression, in `folder`."""
    for path in packed:
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return [folder / path.stem for path in packed]


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where the other tools are."""
    parser.add_argument("--hta", help="Python that has HolisticTraceAnalysis")
    parser.add_argument("--tracelens", help="Python that has TraceLens, or what it imports")
    parser.add_argument("--tracelens-path", type=Path, help="checkout or modules of TraceLens")
    parser.add_argument("--nsys-ai", help="nsys-ai program")
    parser.add_argument("--nsys", default=shutil.which("nsys"), help="nsys program")


def main() -> None:
    """Runs what there is and prints or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for trace, inputs in (
            ("shm_balanced, PyTorch", KINETO),
            ("skew, PyTorch", unpacked(sorted(TORCH.glob("skew.*.xz")), folder)),
            ("DeepEP, PyTorch", unpacked(sorted(TORCH.glob("mcore_te_deepep.*.xz")), folder)),
        ):
            rows.append(moe_advisor(trace, inputs, folder))
            if given.hta:
                rows.append(hta(given.hta, trace, inputs, folder))
            if given.tracelens:
                rows.append(tracelens(given.tracelens, given.tracelens_path, trace, inputs, folder))
        for trace, packed in (("shm_balanced, nsys", NSYS), ("DeepEP, nsys", DEEPEP_NSYS)):
            (database,) = unpacked([packed], folder)
            rows.append(moe_advisor(trace, [database], folder))
            if given.nsys_ai:
                rows.append(nsys_ai(str(Path(given.nsys_ai).absolute()), trace, database, folder))
            if given.nsys:
                program = str(Path(given.nsys).absolute())
                tools = (nsys_stats, nsys_analyze)
                rows += [tool(program, trace, database, folder) for tool in tools]
    words = (ROOT / "benchmarks" / "peers.in.md").read_text()
    text = page(rows, words)
    if given.output:
        given.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
