"""Compares predicted with measured gains and writes docs/validation.md.

    python benchmarks/validate_whatif.py [FOLDER]...

Captures are looked for under tests/fixtures, the demo and the folders given, as
`<profiler>/.../<name>.sqlite[.xz]` or `<name>.rank<r>.json[.gz|.xz]`. Of one that is too large for the
repository, tests/fixtures/steps holds the modelled step (step_table.py). So every row is made anew
from the repository alone; a pair with neither ends the run.
"""

import json
import lzma
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import step_table
import yaml

from moe_advisor import whatif
from moe_advisor.advise.hardware import lookup
from moe_advisor.ingest import kineto, nsys_sqlite
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import Summary, summarise
from moe_advisor.roles.roles import Family
from moe_advisor.roles.taxonomy import builtin
from moe_advisor.whatif.changes.wire import scale_wire
from moe_advisor.whatif.model import StepModel
from moe_advisor.whatif.replay import replay

ROOT = Path(__file__).parent.parent
PAIRS = ROOT / "benchmarks" / "whatif_pairs.yaml"
RESULTS = ROOT / "benchmarks" / "whatif_results.json"
PAGE = ROOT / "docs" / "validation.md"
LINKS = (("nsys/base", "nsys/shm_balanced"), ("torch/balanced", "torch/shm_balanced"))
ENDINGS = ("", ".gz", ".xz")


class Captures:
    """Finds, unpacks, measures and models captures by name such as `nsys/base`."""

    def __init__(self, folders: list[Path], scratch: Path, *, tables: bool = True) -> None:
        self.folders, self.scratch, self.tables = folders, scratch, tables
        self.models: dict[str, tuple[StepModel, Summary] | None] = {}

    def files(self, name: str) -> list[Path]:
        """The files of a capture, unpacked; empty if it is not there."""
        profiler, variant = name.split("/")
        stems = ["{}.sqlite"] if profiler == "nsys" else ["{}.rank*.json"]
        for folder in self.folders:
            for stem in stems:
                for ending in ENDINGS:
                    found = sorted(folder.rglob(stem.format(variant) + ending))
                    found = [path for path in found if self._is_of(path, profiler)]
                    if found:
                        # The ranks of one capture lie together; a copy elsewhere is not more of them.
                        same = [path for path in found if path.parent == found[0].parent]
                        return [self._unpacked(path) for path in same]
        return []

    def _is_of(self, path: Path, profiler: str) -> bool:
        return profiler == ("nsys" if ".sqlite" in path.name else "torch")

    def _unpacked(self, path: Path) -> Path:
        if path.suffix != ".xz":
            return path
        target = self.scratch / path.parent.name / path.stem
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            with lzma.open(path) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
        return target

    def model(self, name: str) -> tuple[StepModel, Summary] | None:
        """The step model and summary of a capture, or None."""
        if name not in self.models:
            self.models[name] = self._model(name)
        return self.models[name]

    def _model(self, name: str) -> tuple[StepModel, Summary] | None:
        files = self.files(name)
        if not files:
            table = step_table.path_of(name)
            return step_table.load(table) if self.tables and table.exists() else None
        load = nsys_sqlite.load if files[0].suffix == ".sqlite" else kineto.load
        measured = [measure_rank(rank, builtin()) for path in files for rank in load(path).ranks]
        gpu = measured[0].trace.device.name
        hardware = lookup(gpu)
        summary = summarise([one.partial for one in measured], hardware)
        return whatif.build(measured, hardware), summary


def gains(runs: Sequence[Sequence[float]]) -> list[float]:
    """The gain of every run, as a share of the step before."""
    return [1.0 - after / before for before, after in runs]


def of_kind(pair: Mapping[str, Any], kind: str) -> list[tuple[float, float]]:
    """The runs of one kind as (before, after); `plain` holds what ran in turns, too."""
    found = [(before, after) for before, after in pair.get(kind, ())]
    if kind == "plain":
        for turns in pair.get("turns", ()):
            found += list(zip(turns[::2], turns[1::2], strict=True))
    return found


def judges(pair: Mapping[str, Any]) -> tuple[list[tuple[float, float]], str]:
    """The runs that a pair is judged by as (before, after), and of what kind they are.

    The first that there is of `plain`, `beside`, those of `runs` whose halves are alike, and `unlike`
    (whatif_pairs.yaml says what they are).
    """
    for kind in ("plain", "beside"):
        if found := of_kind(pair, kind):
            return found, kind
    out, runs = pair.get("unlike", ()), of_kind(pair, "runs")
    alike = [one for at, one in enumerate(runs) if at not in out]
    return (alike, "alike") if alike else (runs, "unlike")


def measured(pair: Mapping[str, Any]) -> float:
    """The median gain of the runs that a pair is judged by."""
    return statistics.median(gains(judges(pair)[0]))


def step_before_ms(pair: Mapping[str, Any]) -> float:
    """The step before the change as a training log would give it: the median of those runs."""
    return statistics.median(before for before, _ in judges(pair)[0])


def allowed_error(gain: float) -> float:
    """How far a prediction may be off."""
    return max(0.04, 0.4 * abs(gain))


def unsettled(pair: Mapping[str, Any]) -> float | None:
    """Half the distance of a pair's farthest runs, where a prediction may be off by less; or None.

    What is not known better than that can't judge a prediction.
    """
    found = gains(judges(pair)[0])
    apart = (max(found) - min(found)) / 2
    limit = allowed_error(statistics.median(found))
    return apart if apart > limit and not pair.get("accepted") else None


def others_of(pair: Mapping[str, Any]) -> list[float]:
    """The gains of the runs that a pair is not judged by."""
    left = [one for kind in ("plain", "beside", "runs") for one in of_kind(pair, kind)]
    for one in judges(pair)[0]:
        left.remove(one)
    return gains(left)


ROUNDING = 1e-4
"""Shares are kept to four digits."""


def rules(row: Mapping[str, Any], accepted: list[float] | None) -> dict[str, list[float]]:
    """Rule -> what the row has and what it may have at most, shares of the step.

    `range`: how far measured lies outside; `sign`: the wrong way where more than 3 % was measured;
    `error`: of expected; `width`: of the range. `accepted`: least and greatest gain that count as
    measured, where one number says too little.
    """
    measured, expected = row["measured"], row["expected"]
    nearest = min(max(expected, accepted[0]), accepted[1]) if accepted else measured
    least, most = accepted or (measured, measured)
    widest = max(0.08, 1.5 * abs(expected))
    wrong = abs(measured) > 0.03 and measured * expected <= 0
    found = {
        "range": [max(row["low"] - most, least - row["high"], 0.0), 0.0],
        "sign": [abs(expected - measured) if wrong else 0.0, 0.0],
        "error": [abs(expected - nearest), allowed_error(measured)],
        "width": [row["high"] - row["low"], widest if measured > 0.4 else min(widest, 0.4)],
    }
    return {name: [round(has, 4), round(most, 4)] for name, (has, most) in found.items()}


BROKEN = {
    "range": "outside the range",
    "sign": "wrong sign",
    "error": "expected is too far off",
    "width": "range too wide",
}


WITHHELD = "withheld"
NOT_SETTLED = "not settled"


def judged(found: Mapping[str, Sequence[float]]) -> str:
    """hit, or which of the rules a prediction breaks."""
    faults = [BROKEN[name] for name, (has, most) in found.items() if has > most + ROUNDING]
    return "hit" if not faults else "miss: " + ", ".join(faults)


def predict(captures: Captures, pair: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one pair, shares of the traced step.

    `verdict`: hit or miss; `withheld` where there is no prediction without the step from a log; `not
    settled` where the runs are too far apart. `logged`: the prediction with that step.
    """
    found = captures.model(pair["capture"])
    if found is None:
        raise SystemExit(f"{pair['capture']}: neither a capture nor a step table")
    gain, before_ms = round(measured(pair), 4), round(step_before_ms(pair), 1)
    row = {"measured": gain, "before_ms": before_ms, **_prediction(found, pair, None)}
    return {**row, "logged": _prediction(found, pair, before_ms)}


def _prediction(
    found: tuple[StepModel, Summary], pair: Mapping[str, Any], log_ms: float | None
) -> dict[str, Any]:
    """What is predicted of a pair, and how it stands to what was measured."""
    model, summary = found
    estimate = whatif.estimate(model, summary, [pair["change"]], unprofiled_step_ms=log_ms)[
        0
    ].estimate
    if estimate.expected_ms is None:
        if log_ms is not None or "--log" not in (estimate.reason or ""):
            raise SystemExit(f"{pair['capture']} {pair['change']}: {estimate.reason}")
        return {"reason": estimate.reason, "verdict": WITHHELD}
    step_ms = model.step_ns / 1e6
    row: dict[str, Any] = {
        "low": round((estimate.low_ms or 0.0) / step_ms, 4),
        "expected": round(estimate.expected_ms / step_ms, 4),
        "high": round((estimate.high_ms or 0.0) / step_ms, 4),
        "next_wall": estimate.next_wall,
    }
    held_to = rules({**row, "measured": round(measured(pair), 4)}, pair.get("accepted"))
    verdict = judged(held_to)
    if unsettled(pair):
        verdict = f"{NOT_SETTLED}: by the median a {verdict.partition(':')[0]}"
    return {**row, "rules": held_to, "verdict": verdict}


def residual(captures: Captures, name: str) -> dict[str, Any] | None:
    """Replay error and unexplained share of one capture."""
    found = captures.model(name)
    if found is None:
        return None
    model, _ = found
    return {
        "step_ms": round(model.step_ns / 1e6, 1),
        "ranks": len(model.lanes),
        "error": round(whatif.replay_error(model), 5),
        "unexplained": round(whatif.unexplained_share(model), 4),
    }


def link_row(captures: Captures, fast: str, slow: str) -> dict[str, Any] | None:
    """Steps predicted for one link from the capture of the other, and back."""
    found = captures.model(fast), captures.model(slow)
    if found[0] is None or found[1] is None:
        return None
    quick, late = found[0][0], found[1][0]

    def wire(model: StepModel, family: Family) -> float:
        return sum(
            float(lane.items.transfer_ns[lane.items.family(family)].sum()) for lane in model.lanes
        )

    factors = {f: wire(late, f) / wire(quick, f) for f in (Family.EP, Family.DP)}
    back = {family: 1 / factor for family, factor in factors.items()}
    to_slow = replay(scale_wire(quick, factors)).mean_step_ns
    to_fast = replay(scale_wire(late, back)).mean_step_ns
    return {
        "factor": round(factors[Family.EP], 1),
        "slow_ms": [round(to_slow / 1e6, 1), round(late.step_ns / 1e6, 1)],
        "fast_ms": [round(to_fast / 1e6, 1), round(quick.step_ns / 1e6, 1)],
    }


def percent(value: float) -> str:
    """A share as signed percent."""
    return f"{100 * value:+.1f} %".replace("-", "−")


def _runs(values: Sequence[float]) -> str:
    """The gains of several runs, or nothing for one."""
    values = list(dict.fromkeys(values))
    return f" ({', '.join(percent(one)[:-2] for one in values)})" if len(values) > 1 else ""


def _of(found: Sequence[float]) -> str:
    """`4.2 of 9.6`: points that a row has and may have."""
    return f"{100 * found[0]:.1f} of {100 * found[1]:.1f}"


def _broken(pairs: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> list[str]:
    """One line per rule with the rows that break it."""
    missed: dict[str, list[str]] = {text: [] for text in BROKEN.values()}
    for pair in pairs:
        name = f"{pair['capture']} {pair['change']}"
        for text in rows[name]["verdict"].removeprefix("miss: ").split(", "):
            if text in missed:
                missed[text].append(f"{name} ({percent(rows[name]['measured'])} measured)")
    return [f"* {text}: {'; '.join(names) or 'none'}." for text, names in missed.items()]


def judged_by_all(pair: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[float, str]:
    """Median and verdict by all runs of a pair, whichever way they were made."""
    every = [*gains(judges(pair)[0]), *others_of(pair)]
    gain = round(statistics.median(every), 4)
    return gain, judged(rules({**row, "measured": gain}, pair.get("accepted")))


def _name(pair: Mapping[str, Any], tabled: set[str]) -> str:
    """The capture with the marks of its row."""
    marks = (
        " ¹" if pair["capture"] in tabled else "",
        " ²" if pair.get("developed") else "",
        "" if judges(pair)[1] == "plain" else " ³",
    )
    return f"{pair['capture']}{''.join(marks)}"


def _measured(pair: Mapping[str, Any]) -> str:
    """The measured gain, with that of every run, and how far they are apart if too far."""
    apart = unsettled(pair)
    far = f"; {100 * apart:.1f} points apart" if apart else ""
    return f"{percent(measured(pair))}{_runs(gains(judges(pair)[0]))}{far}"


def _cells(row: Mapping[str, Any]) -> str:
    """Prediction, rules and verdict of a row of the tables."""
    if "expected" not in row:
        return f"– | – | – | – | – | {row['verdict']}"
    low, expected, high = (percent(row[key]) for key in ("low", "expected", "high"))
    error, width = _of(row["rules"]["error"]), _of(row["rules"]["width"])
    return f"{low} | {expected} | {high} | {error} | {width} | {row['verdict']}"


def _hits(rows: Sequence[str]) -> str:
    """`34 of 35`: hits among the predictions that could be judged."""
    hits = sum(row.endswith("| hit |") for row in rows)
    return f"{hits} of {hits + sum('| miss: ' in row for row in rows)}"


def _score(rows: Sequence[str]) -> str:
    """How many predictions hold, and how many pairs have none or can't be judged."""
    withheld = sum(row.endswith(f"| {WITHHELD} |") for row in rows)
    open_ = sum(f"| {NOT_SETTLED}" in row for row in rows)
    like = sum(row.endswith("by the median a hit |") for row in rows)
    text = f"{_hits(rows)} predictions hit"
    if withheld:
        text += f"; {withheld} withheld, as the host's unknown speed decides"
    if open_:
        text += f"; {open_} not settled, the runs too far apart ({like} would hit)"
    return text + "."


def _withheld(rows: Sequence[str], logged: Sequence[str]) -> str:
    """What a log gives where there is no prediction without one."""
    given = [log for row, log in zip(rows, logged, strict=True) if row.endswith(f"| {WITHHELD} |")]
    hits = sum(row.endswith("| hit |") for row in given)
    return f"Of the withheld, {hits} of {len(given)} hit with a log. " if given else ""


def _set_aside(pairs: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> list[str]:
    """The runs that no pair is judged by, and the verdict if they counted as much as the others."""
    lines = []
    for pair in pairs:
        left = others_of(pair)
        if not left:
            continue
        name = f"{pair['capture']} {pair['change']}"
        if "expected" not in rows[name]:
            continue
        gain, verdict = judged_by_all(pair, rows[name])
        aside = ", ".join(percent(one)[:-2] for one in left)
        lines.append(
            f"| {pair['capture']} | {pair['change']} | {percent(rows[name]['measured'])} "
            f"| {aside} | {percent(gain)} | a {verdict} |"
        )
    return lines


INTRODUCTION = """\
# How good the predictions are

Generated by `python benchmarks/validate_whatif.py` from what the repository holds; don't edit.

Gains are shares of the step, positive is faster. *Measured* compares medians of ten steps (of forty
in a few processes) before and after the change; of several runs (in brackets) it is the median. Which
runs count is a matter of how they were made, never of what they gave: those of which neither half ran
in a process with a profiler, with nothing else on the host; else, marked ³, beside another job on the
host; else before a profile in the same process. *low*, *expected* and *high* come from the capture
before the change alone, without a log. Each row is held to four rules, and a hit keeps all of them:
measured lies in the range; the sign of expected is right where more than 3 % was measured; *error*,
how far expected is off, is at most 4 points or 40 % of the gain; *width* of the range is at most 8
points or 1.5 times expected, and 40 points unless more than 40 % was gained. Both columns are points
of the step, with what the rule allows. For graphs on attention of `small` anything from 4 to 25 %
counts as measured: its runs gave 2 to 18 %.

*Withheld*: the change may cost time, and the host's speed without the profiler, which the capture
does not tell, moves its gain further than a range may span, so nothing is predicted; the second table
has what a log gives there. *Not settled*: the runs are further apart than twice what a prediction may
be off, so they judge nothing; what their median would is said. Both came in when the first of these
rows were known.
"""

CONTENDED = """\
Two jobs of two GPUs each shared the host while these were captured, so their host times and waits are
not those of the runs that judge them, which had it to themselves; they are counted apart. What was
changed on seeing them: no range is wider than 40 points unless its low end is above 40
(mcore_te_small had 43), recomputed work of the module moe is recognised without the profiler's
operators (mcore_sel_moe had +0.5 %), and how much a profiler of CUDA calls stretches the host is taken
from them and twenty others.
"""

LOGGED = """\
`--log FILE` tells the step without the profiler, and with it how fast the host is; here it is the median
step before the change of the runs that judge the pair. A prediction that is withheld above is made here.
"""

ASIDE = """\
PyTorch leaves CUPTI attached after a trace, which slows later steps of the process by 10 to 20 %
(pytorch issue 144455, pull request 146604): the overlap of mcore_flash took 207 and 252 ms behind a
trace, 187 and 192 ms without, its baseline 181 to 194 ms. Another job on the host slows two threads
that take turns: 242 and 264 ms for that overlap, 207 and 211 ms for its baseline. So these runs make
overlap look worse than it is. All of them, and what the verdict would be if every run counted alike:
"""

WEAK = """\
## What these rows do not show

* Rows marked ² were looked at, or share their runs or captures with what was, while a mechanism or a
  constant was set. That holds for nearly every pair of merged overlap.
* Session 9 (`l6`, `wide`, `k2`, `te_short`, `skew_mild`, `seqexp64`) was made to test the model as it
  stood. By it 12 of 16 rows hit, most of them to the point: recomputation, balanced experts, grouped
  GEMM, the link, both kinds of overlap. Four missed: mcore_k2's overlap (−1 % for −7.5),
  mcore_flash_m8's from a clean capture (+3 for −5), te_short's fused permutation (+4 for +18) and its
  graphs (+12 for +20). That was the blind test: what it showed to be wrong was changed then, and the
  rows above are of the model after it:
  * A gap between kernels was taken for the GPU's where streams waited for each other: up to 42 µs
    instead of 2 in captures of Transformer Engine, whose GPU then seemed to need 193 ms for what takes
    136. Graphs, fusions and overlap there all rested on it.
  * A hand-over of the merged schedule costs 0.22 ms of the host, as captures with and without it
    differ by, not the 0.12 that could not be hidden.
  * Fused permutation takes as large a part of the host's time as of its launches, and what the host
    spends on one view per expert; the pair's second setting (a fused router) is part of the change.
* Constants were set on artefacts once: how much a profiler stretches the host on steps that an
  earlier trace had slowed (1.4 by those, 1.9 against processes without a profiler).
* DeepEP in Megatron-Core stops the host six times per layer and micro-batch where the all-to-all does
  once. Simulated, as in the replay of the capture after it, those stops cost 10 % of mcore_te_fused_x4;
  the later runs lost 1 to 2 %. So they are left out, with the launches around them.
* `link` without a factor rests on `NVLINK_REACH`, the median of thirty captures over NVLink. Captures
  of two GPUs after the change are among them, so those rows are marked. `link=12` is the ratio of the
  first pair.
* A dispatch library over a slow link has no pair: `dispatcher` gives a bound there, no estimate. Nor
  has EP overlap in a pipeline, and FP8 has no change: three pairs lost 23 to 47 % at this size.

## Where the model is weak

* Host-bound steps. Host time varies by 10 to 60 % from process to process of one job on one host
  (mcore_te_fused took 192 to 332 ms), and a profiler stretches it by 0 to 150 %. How much is told
  from how many events it recorded and how long one took (`RECORDING_COST`): captures that this was not
  set with are off by a factor of 1.2. The unprofiled step (`--log`) tells more where the host sets it.
* Merged overlap where host and GPU set the step about equally. With a log the host of mcore_k2 and
  mcore_flash_m8 seems fast enough to hide its hand-overs, and the gain comes out 6 to 9 points too
  high; that of mcore_flash_x4 seems slow, and it comes out 12 points too low. A profile of the merged
  step without the profiler's cost would be needed to see what stalls there: measure it.
* Overlap on a fast link. What is hidden (6 % of the step) and what it costs are equally large, so
  a few per cent of slower compute or host work decide the sign.
* Room on the GPU. A start that had no SM free is explained by the kernel that held them all; in a
  changed schedule it is foreseen for collectives alone, for other work only as a slowdown.
* A loop over experts: how much of its backward work is real and how much handles weights one
  by one is told from the forward pass only.
* Pipelines: a receive keeps its measured duration, so what frees a bubble is not seen.
* One rank alone: waiting for peers stays in the collectives' durations.
"""


def page(
    pairs: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    tabled: set[str],
) -> str:
    """The text of docs/validation.md; `tabled`: captures known from their step tables."""
    rows: list[str] = []
    apart: list[str] = []
    logged: list[str] = []
    logged_apart: list[str] = []
    for pair in pairs:
        row = results["pairs"][f"{pair['capture']} {pair['change']}"]
        name = _name(pair, tabled)
        (apart if pair.get("contended") else rows).append(
            f"| {name} | {pair['change']} | {pair['job']} | {_measured(pair)} | {_cells(row)} |"
        )
        (logged_apart if pair.get("contended") else logged).append(
            f"| {name} | {pair['change']} | {row['before_ms']:.1f} | {percent(row['measured'])} "
            f"| {_cells(row['logged'])} |"
        )
    errors = sorted(
        abs(row["expected"] - row["measured"])
        for pair in pairs
        if not pair.get("contended")
        for row in [results["pairs"][f"{pair['capture']} {pair['change']}"]]
        if row["verdict"].startswith(("hit", "miss"))
    )
    replays = [
        f"| {name}{' ¹' if name in tabled else ''} | {row['ranks']} | {row['step_ms']:.1f} "
        f"| {100 * row['error']:.2f} % | {100 * row['unexplained']:.1f} % |"
        for name, row in sorted(results["replays"].items())
    ]
    links = [
        f"| {name.split()[0]} | {name.split()[1]} | {row['factor']} "
        f"| {row['slow_ms'][0]} for {row['slow_ms'][1]} ms "
        f"({percent(row['slow_ms'][0] / row['slow_ms'][1] - 1)}) "
        f"| {row['fast_ms'][0]} for {row['fast_ms'][1]} ms "
        f"({percent(row['fast_ms'][0] / row['fast_ms'][1] - 1)}) |"
        for name, row in sorted(results["links"].items())
    ]
    rest = [
        f"| {one['what']} | {percent(measured(one))}{_runs(gains(judges(one)[0]))} | {one['why']} |"
        for one in others
    ]
    lines = [
        INTRODUCTION,
        f"**{_score(rows)}** {_withheld(rows, logged)}Of those that nothing was adjusted on, "
        f"{_hits([row for row in rows if '²' not in row])}; of those with runs that neither a profiler "
        f"nor another job touched, {_hits([row for row in rows if '³' not in row])}. Expected is off by "
        f"{100 * statistics.median(errors):.1f} points in the median and {100 * errors[-1]:.0f} at "
        "most. Where its width allows it a range is at least ±30 % of the gain (±60 % for graphs and "
        "host changes), and never below ±1.5 points, which is how far one job's runs differ.",
        "",
        "| capture | change | job | measured | low | expected | high | error | width | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "¹ The capture is too large for the repository: predicted from its modelled step under",
        "`tests/fixtures/steps`, made by `benchmarks/step_table.py`.",
        "² Looked at while the mechanism or a constant behind it was set: no independent test.",
        "³ Judged by runs beside another job or before a profile: there are no others.",
        "",
        "## With the step from a training log",
        "",
        LOGGED,
        f"**{_score(logged)}**",
        "",
        "| capture | change | step ms | measured | low | expected | high | error | width | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *logged,
        "",
        "## Captures beside another job",
        "",
        CONTENDED,
        f"{_score(apart)} With the step from a log: {_score(logged_apart)}",
        "",
        "| capture | change | job | measured | low | expected | high | error | width | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *apart,
        "",
        "## Rows that break a rule",
        "",
        *_broken(pairs, results["pairs"]),
        "",
        "## Runs that no pair is judged by",
        "",
        ASIDE,
        "| capture | change | measured | set aside | by all runs | verdict by all runs |",
        "|---|---|---|---|---|---|",
        *_set_aside(pairs, results["pairs"]),
        "",
        "## Measured, not predicted",
        "",
        "| what | measured | why |",
        "|---|---|---|",
        *rest,
        "",
        "## Replay without a change",
        "",
        "*Error*: replayed against measured step, worst rank. It is small by construction: what a start",
        "does not explain becomes a fixed delay. *Unexplained* is the sum of those, as a share of the",
        "step, whether or not they lie on its critical path.",
        "",
        "| capture | ranks | step ms | error | unexplained |",
        "|---|---|---|---|---|",
        *replays,
        "",
        "## One link predicted from the other",
        "",
        "All collectives of one capture scaled by the ratio of the transfers.",
        "",
        "| fast | slow | factor | slow step predicted | fast step predicted |",
        "|---|---|---|---|---|",
        *links,
        "",
        WEAK,
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Runs the comparison and writes the page and the results."""
    document = yaml.safe_load(PAIRS.read_text(encoding="utf-8"))
    pairs, others = document["pairs"], document["others"]
    results: dict[str, Any] = {"pairs": {}, "replays": {}, "links": {}}
    folders = [ROOT / "tests" / "fixtures", ROOT / "moe_advisor" / "demo", *map(Path, arguments)]
    with tempfile.TemporaryDirectory() as scratch:
        captures = Captures(folders, Path(scratch))
        for pair in pairs:
            key = f"{pair['capture']} {pair['change']}"
            results["pairs"][key] = predict(captures, pair)
        names = {pair["capture"] for pair in pairs}
        for folder in folders:
            for path in folder.rglob("*"):
                if ".sqlite" in path.name:
                    names.add("nsys/" + path.name.split(".sqlite")[0])
                elif ".rank0.json" in path.name:
                    names.add("torch/" + path.name.split(".rank0.json")[0])
        names |= {step_table.name_of(path) for path in step_table.FOLDER.glob("*.step.xz")}
        for name in sorted(names):
            if row := residual(captures, name):
                results["replays"][name] = row
        for fast, slow in LINKS:
            if row := link_row(captures, fast, slow):
                results["links"][f"{fast} {slow}"] = row
        tabled = {name for name in names if not captures.files(name)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(pairs, others, results, tabled), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
