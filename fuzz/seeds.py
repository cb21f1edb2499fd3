"""The inputs to begin with: small sound ones, and pieces of the real captures in tests/fixtures."""

import json
import lzma
import sqlite3
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from moe_advisor.resources import rules_dir

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
GROWN = Path(__file__).parent / "corpus"
PER_CATEGORY = 16
"""Events of a real trace kept of each kind: enough for a step's structure, small enough to fly."""
PER_TABLE = 24
TORCH = ("base_mem.rank0", "mcore_alltoall.rank0", "gcsync.rank0")
NSYS = ("base", "deepep", "mcore_alltoall", "small_graph_whole", "pp_mix")


@cache
def kineto() -> list[bytes]:
    """Traces as JSON: two built ones and the middle of real ones."""
    from tests.hostile.cases import TORCH as SMALL
    from tests.hostile.cases import steps

    found = [SMALL, json.dumps({"traceEvents": steps(3)}).encode()]
    for name in TORCH:
        packed = FIXTURES / "torch" / "2.11" / f"{name}.json.xz"
        found.append(json.dumps(_window(json.loads(_unpacked(packed)))).encode())
    return found


def _unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def _window(trace: dict[str, Any]) -> dict[str, Any]:
    """A real trace cut to the first events of each kind in time order, its metadata kept."""
    seen: Counter[Any] = Counter()
    kept = []
    for event in sorted(trace["traceEvents"], key=lambda event: float(event.get("ts") or 0)):
        kind = (event.get("ph"), event.get("cat"))
        seen[kind] += 1
        if seen[kind] <= PER_CATEGORY:
            kept.append(event)
    return {**trace, "traceEvents": kept}


@cache
def tables() -> list[bytes]:
    """Exports as JSON of tables: two steps of every generation, and pieces of real ones."""
    from tests.nsys_builder import GENERATIONS, two_steps

    found = []
    for schema in GENERATIONS:
        document = {
            name: {"columns": [[one, ""] for one in columns], "rows": [_cells(r) for r in rows]}
            for name, (columns, rows) in two_steps(schema).tables().items()
        }
        found.append(json.dumps(document).encode())
    for name in NSYS:
        packed = FIXTURES / "nsys" / "2025.3" / f"{name}.sqlite.xz"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "real.sqlite"
            path.write_bytes(_unpacked(packed))
            found.append(json.dumps(_piece(path)).encode())
    return found


def _cells(row: Any) -> list[Any]:
    return [{"hex": value.hex()} if isinstance(value, bytes) else value for value in row]


def _piece(path: Path) -> dict[str, Any]:
    """The rows of a real export around its first step, with the strings that they use."""
    database = sqlite3.connect(path)
    document: dict[str, Any] = {}
    start = database.execute(
        "select min(start) from NVTX_EVENTS where text like 'iteration%' or text like 'step%'"
    ).fetchone()[0]
    names = [
        row[0] for row in database.execute("select name from sqlite_master where type='table'")
    ]
    for name in names:
        if name == "StringIds" or name.startswith(("ENUM_", "sqlite_")):
            continue
        columns = [[r[1], r[2]] for r in database.execute(f'pragma table_info("{name}")')]
        timed = start is not None and ["start", "INTEGER"] in [list(c) for c in columns]
        where = f"where start >= {start} order by start" if timed else ""
        rows = database.execute(f'select * from "{name}" {where} limit {PER_TABLE}').fetchall()
        document[name] = {"columns": columns, "rows": [_cells(row) for row in rows]}
    numbers = {
        value
        for table in document.values()
        for row in table["rows"]
        for value in row
        if isinstance(value, int)
    }
    strings = [
        list(row)
        for row in database.execute("select id, value from StringIds")
        if row[0] in numbers
    ][:400]
    document["StringIds"] = {"columns": [["id", "INTEGER"], ["value", "TEXT"]], "rows": strings}
    database.close()
    return document


@cache
def rules() -> list[bytes]:
    """Shipped rules, the shortest of each topic."""
    found = []
    for topic in sorted(path for path in rules_dir().iterdir() if path.is_dir()):
        files = sorted(topic.glob("*.yaml"), key=lambda path: path.stat().st_size)
        found += [path.read_bytes() for path in files[:2]]
    return found


@cache
def expressions() -> list[bytes]:
    """Expressions of the shipped rules, and of gates."""
    from moe_advisor.advise.rule import expressions_of, load_rules

    found = {source for rule in load_rules([]) for _, source in expressions_of(rule)}
    found |= {"[1.0, 2.0].map(x, x * 2.0).all(y, y > 1.0)", "findings.size() > 0"}
    return [source.encode() for source in sorted(found)]


BRIDGE = b"""\
model:
  _target_: megatron.bridge.models.GPTModelProvider
  num_layers: 4
  num_moe_experts: 32
  moe_router_topk: 8
  expert_model_parallel_size: 2
  recompute_modules: [core_attn, moe]
  moe_token_dispatcher_type: alltoall
train: {global_batch_size: 8, micro_batch_size: 1}
mixed_precision: bf16_mixed
comm_overlap: {overlap_moe_expert_parallel_comm: false}
env_vars: {CUDA_DEVICE_MAX_CONNECTIONS: 32}
"""
DUMP = b"""\
------------------------ arguments ------------------------
  expert_model_parallel_size ...................... 8
  fp8 ............................................. None
  moe_router_load_balancing_type .................. ['aux_loss']
  recompute_granularity ........................... selective
-------------------- end of arguments ---------------------
"""
COMMAND = b"""\
export CUDA_DEVICE_MAX_CONNECTIONS=1
torchrun --nproc-per-node 8 pretrain_gpt.py --num-experts 8 --moe-router-topk=2 \\
  --expert-model-parallel-size ${EP:-8} --bf16 --overlap-grad-reduce --seq-length 4096 \\
  --micro-batch-size 1 --global-batch-size 256 --no-check-for-nan-in-loss-and-grad
"""
LOG = b"""\
 [2026-01-01 10:00:00] iteration       10/     100 | consumed samples:  2560 | elapsed time per iteration (ms): 1234.5 | throughput per GPU (TFLOP/s/GPU): 412.3 | learning rate: 1.0E-05 | global batch size:   256 | lm loss: 1.05E+01 | loss scale: 1.0 | grad norm: 2.1 | number of skipped iterations:   0 | number of nan iterations:   0 |
[Rank 0] (after 10 iterations) memory (MB) | allocated: 20000.5 | max allocated: 41000.25 | reserved: 50000.0 | max reserved: 51000.0
 iteration       20/     100 | consumed samples:  5120 | elapsed time per iteration (ms): 1230.0 | throughput per GPU (TFLOP/s/GPU): 413.0 |
Step Time : 1.23s GPU utilization: 412.3MODEL_TFLOP/s/GPU
"""
BUDGETS = b"""\
[[budget]]
name = "step"
expect = "m.step_ms <= 150.0"
level = "warn"
scope = "rank"
message = "slower"
if_not_measured = "pass"
"""
EXPECTATIONS = (
    "m.step_ms <= 150.0", "m.ep_a2a_exposed_share < 0.3 && m.host_gap_ms > 0.01",
    "m.step_ms <= m.gpu_busy_ms * 2.0 || walls.verdict == 'communication'",
    "walls.verdict != 'inconclusive'", "walls.limiter == 'memory' || walls.margin > 0.1",
    "walls.memory_score < 0.9", "!('ineffective-ep-overlap' in findings)", "findings.size() <= 3",
    "findings.all(one, one != 'ineffective-grouped-gemm')", "capture.complete",
    "capture.issues.size() == 0", "c.num_moe_experts >= 8 && c.moe_router_topk == 2",
    "hw.memory_gib > 70.0", "t.profiler == 'torch'", "m.memory_peak_gib < hw.memory_gib * 0.9",
)  # fmt: skip
"""What budgets demand, of every kind there is; some name what a run does not hold."""


TAXONOMY = b"""\
kernels:
  - id: own
    pattern: 'own_kernel'
    nature: gemm
    source: mine
    seen: false
    cases: ['own_kernel<int>']
"""


def grown(target: str) -> list[bytes]:
    """What earlier campaigns found to reach new code, of one target."""
    packed = GROWN / f"{target}.json.xz"
    if not packed.is_file():
        return []
    return [bytes.fromhex(text) for text in json.loads(_unpacked(packed))]
