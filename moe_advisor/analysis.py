"""The main job: inputs in, one result out."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_advisor import __version__
from moe_advisor.advise import Facts, advise, hardware, infer_config, load_rules, reference
from moe_advisor.advise.facts import merge_config
from moe_advisor.errors import InputError
from moe_advisor.ingest import run_config, sniff, sources, training_log
from moe_advisor.ingest.json_stream import StreamLimits
from moe_advisor.ingest.training_log import TrainingLog
from moe_advisor.measure.facts import trace_facts
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import MeasuredRank, measure_rank
from moe_advisor.measure.registry import METRICS
from moe_advisor.measure.summary import NS_PER_MS, Summary, summarise
from moe_advisor.measure.timeline import timeline
from moe_advisor.model import CaptureIssue, Device, InputInfo, LoadedInput, RankTrace, Severity
from moe_advisor.privacy import safe_text
from moe_advisor.result import (
    Capture,
    ConfigValue,
    Definition,
    DroppedStep,
    Estimate,
    Input,
    Issue,
    MetricValue,
    Reference,
    Result,
    Run,
    Steps,
    Timeline,
    Tool,
    Walls,
    WhatIf,
)
from moe_advisor.roles import taxonomy
from moe_advisor.walls import judge

if TYPE_CHECKING:
    from moe_advisor.whatif import StepModel

PARALLEL_INPUTS = 8
"""From this number of files on, each is read in a process of its own: below it, starting the
processes costs more than they save."""

PARALLEL_ACTIVITIES = 200_000
"""From this many GPU activities on, the ranks of one input are measured in threads."""

NAME_LIMIT = 160
"""Characters of a kernel or range name that a result keeps."""

Progress = Callable[[int, int, str], None]
"""Called with (inputs done, inputs in all, name of the one just read)."""


@dataclass(frozen=True)
class Options:
    """What a user can choose; paths are strings as given."""

    steps: str | None = None
    step_pattern: str | None = None
    taxonomy: str | None = None
    nsys: str | None = None
    cache: str | None = None
    rules: tuple[str, ...] = ()
    config: str | None = None
    log: str | None = None
    values: tuple[str, ...] = ()
    jobs: int | None = None
    max_expansion: int | None = None
    """Largest ratio of decompressed to compressed bytes of an input; None for the default."""


@dataclass(frozen=True)
class Measured:
    """Everything read and measured; `kept` holds the tables of few inputs, else it is empty."""

    inputs: tuple[InputInfo, ...]
    partials: tuple[RankPartial, ...]
    kept: tuple[MeasuredRank, ...]
    timeline: Timeline | None
    issues: tuple[CaptureIssue, ...] = field(default=())


def analyze(
    paths: Sequence[str], options: Options | None = None, progress: Progress | None = None
) -> Result:
    """The result for the traces that `paths` mean: files, folders of ranks or globs.

    Raises InputError where nothing can be read, ConfigError for options that can't be used.
    """
    chosen = options or Options()
    return result_of(measure(paths, chosen, progress), chosen)


def earlier_result(inputs: Sequence[Path]) -> Result | None:
    """The result that the one input is, if it is one; an earlier result stands for its trace."""
    if len(inputs) != 1 or sniff.detect(inputs[0]) != "result":
        return None
    from moe_advisor.output import json_output

    return json_output.decode(inputs[0].read_bytes(), inputs[0].name)


def measure(paths: Sequence[str], options: Options, progress: Progress | None = None) -> Measured:
    """Reads and measures all ranks of the inputs."""
    found = sources.find_inputs(paths)
    kinds = [sniff.detect(path) for path in found]
    profilers = {"kineto" if kind == "kineto" else "nsys" for kind in kinds}
    if "result" in kinds:
        raise InputError(
            "an earlier result stands among the inputs: render or compare takes results"
        )
    if len(profilers) > 1:
        raise InputError(
            "the inputs mix Nsight Systems and PyTorch captures: give one profiler's at a time"
        )
    jobs = options.jobs or os.cpu_count() or 1
    if len(found) >= PARALLEL_INPUTS and jobs > 1:
        return _in_processes(found, kinds, options, jobs, progress)
    loaded: list[LoadedInput] = []
    measured: list[MeasuredRank] = []
    for number, (path, kind) in enumerate(zip(found, kinds, strict=True), 1):
        one = _load(path, kind, options)
        measured.extend(_measure_ranks(one, options))
        loaded.append(one)
        if progress:
            progress(number, len(found), one.info.name)
    numbered, issues = _numbered([m.partial for m in measured])
    kept = tuple(
        replace(m, partial=partial)
        for m, partial in zip(measured, numbered, strict=True)
        if partial is not None
    )
    shown = min(kept, key=lambda m: m.partial.rank, default=None)
    return Measured(
        tuple(one.info for one in loaded),
        tuple(m.partial for m in kept),
        kept,
        timeline(shown) if shown else None,
        (*(issue for one in loaded for issue in one.issues), *issues),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _load(path: Path, kind: str, options: Options) -> LoadedInput:
    extra: dict[str, Any] = {}
    if kind == "nsys-rep":
        extra = {"nsys": _path(options.nsys), "cache": _path(options.cache)}
    elif options.max_expansion is not None:
        extra = {"limits": StreamLimits(max_ratio=options.max_expansion)}
    return sources.load(path, kind, **extra)


def _measure_ranks(one: LoadedInput, options: Options) -> list[MeasuredRank]:
    """The ranks of one input; large ones side by side, since numpy sorts without the lock."""
    names = taxonomy.load(_path(options.taxonomy))

    def measured(rank: RankTrace) -> MeasuredRank:
        return measure_rank(rank, names, step_pattern=options.step_pattern, steps=options.steps)

    rows = sum(len(rank.activities) for rank in one.ranks)
    if len(one.ranks) < 2 or rows < PARALLEL_ACTIVITIES:
        return [measured(rank) for rank in one.ranks]
    with ThreadPoolExecutor(min(options.jobs or os.cpu_count() or 1, len(one.ranks))) as pool:
        return list(pool.map(measured, one.ranks))


def _work(
    path: Path, kind: str, options: Options
) -> tuple[InputInfo, tuple[CaptureIssue, ...], list[RankPartial]]:
    """One input in a process of its own: only numbers travel back."""
    one = _load(path, kind, options)
    return one.info, one.issues, [m.partial for m in _measure_ranks(one, options)]


def _in_processes(
    found: Sequence[Path],
    kinds: Sequence[str],
    options: Options,
    jobs: int,
    progress: Progress | None,
) -> Measured:
    """Many inputs, each in a worker; a rank that can't be read is reported and the rest stands."""
    infos: list[InputInfo] = []
    issues: list[CaptureIssue] = []
    partials: list[RankPartial] = []
    failures: list[str] = []
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # the processes are the parallelism
    with ProcessPoolExecutor(min(jobs, len(found)), mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_work, path, kind, options) for path, kind in zip(found, kinds, strict=True)
        ]
        try:
            for number, (path, future) in enumerate(zip(found, futures, strict=True), 1):
                try:
                    info, more, ranks = future.result()
                except InputError as error:
                    failures.append(str(error))
                    continue
                infos.append(info)
                issues.extend(more)
                partials.extend(ranks)
                if progress:
                    progress(number, len(found), path.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not infos:
        raise InputError(failures[0])
    issues.extend(CaptureIssue("input-unreadable", Severity.ERROR, failure) for failure in failures)
    numbered, more_issues = _numbered(partials)
    kept = tuple(partial for partial in numbered if partial is not None)
    drawn = None
    lowest = min(kept, key=lambda partial: partial.rank, default=None)
    if lowest is not None:
        at = next(i for i, info in enumerate(infos) if lowest.rank in info.ranks)
        one = _load(found[at], kinds[at], options)
        same = [m for m in _measure_ranks(one, options) if m.partial.rank == lowest.rank]
        drawn = timeline(same[0]) if same else None
    return Measured(tuple(infos), kept, (), drawn, (*issues, *more_issues))


def _numbered(
    partials: Sequence[RankPartial],
) -> tuple[list[RankPartial | None], list[CaptureIssue]]:
    """Each rank once.

    Reports of several hosts number their processes from 0 each: those ranks are numbered on in
    the order of the inputs. A rank that its metadata names twice is a duplicate: the first stays.
    """
    counts: dict[int, int] = {}
    for partial in partials:
        counts[partial.rank] = counts.get(partial.rank, 0) + 1
    if all(count == 1 for count in counts.values()):
        return list(partials), []
    guessed = all(partial.rank_source in ("process-order", "file-name") for partial in partials)
    if guessed:
        message = (
            "several inputs number their ranks from 0: ranks are counted on in the order given"
        )
        numbered = [replace(partial, rank=number) for number, partial in enumerate(partials)]
        return list(numbered), [CaptureIssue("ranks-renumbered", Severity.INFO, message)]
    seen: set[int] = set()
    kept: list[RankPartial | None] = []
    issues = []
    for partial in partials:
        if partial.rank in seen:
            kept.append(None)
            issues.append(
                CaptureIssue(
                    "duplicate-rank",
                    Severity.WARNING,
                    f"rank {partial.rank} was given twice: only the first is used",
                    rank=partial.rank,
                )
            )
        else:
            seen.add(partial.rank)
            kept.append(partial)
    return kept, issues


# -------------------------------------------------------------------------------------- result


@dataclass(frozen=True)
class Judged:
    """The run as numbers, before advice: what rules and what-if changes work on."""

    summary: Summary
    metrics: dict[str, MetricValue]
    walls: Walls
    facts: dict[str, Any]
    figures: dict[str, Any]
    given: dict[str, ConfigValue]
    config: dict[str, ConfigValue]
    unprofiled_step_ms: float | None
    issues: list[Issue]
    complete: bool


def judged(measured: Measured, options: Options) -> Judged:
    """Merges the ranks, judges the walls and gathers what else is known of the run."""
    partials = sorted(measured.partials, key=lambda one: one.rank)
    device = _device(partials)
    figures = hardware.lookup(device.name) if device else {}
    if device and device.memory_bandwidth_bytes_per_s:
        figures["memory_bandwidth_gbps"] = device.memory_bandwidth_bytes_per_s / 1e9
    summary = summarise(partials, figures)
    profiler = "torch" if all(info.format == "kineto" for info in measured.inputs) else "nsys"
    t = trace_facts(partials, summary, figures, profiler)
    given, log = _given(options)
    metrics = {**summary.metrics, **_from_log(log, summary, figures, t)}
    issues = _issues(measured, partials, t)
    complete = not any(issue.severity == "error" or issue.id == "ranks-missing" for issue in issues)
    t["capture_complete"] = complete
    return Judged(
        summary=summary,
        metrics=metrics,
        walls=judge(
            metrics, summary.step_parts, summary.wait_causes_ms, _recompute_inside(partials)
        ),
        facts=t,
        figures=figures,
        given=given,
        config=merge_config(infer_config(t), given),
        unprofiled_step_ms=log.step_ms() if log else None,
        issues=issues,
        complete=complete,
    )


def _device(partials: Sequence[RankPartial]) -> Device | None:
    return next((one.device for one in partials if one.device.name), None)


def result_of(measured: Measured, options: Options) -> Result:
    """Metrics, walls, rules and plan of what was measured."""
    partials = sorted(measured.partials, key=lambda one: one.rank)
    run = judged(measured, options)
    summary, metrics, t = run.summary, run.metrics, run.facts
    device = _device(partials)
    facts = Facts(
        m={name: value.value for name, value in metrics.items() if value.value is not None},
        metric_status=metrics,
        c=run.given,
        hw=run.figures,
        t=t,
        walls=run.walls,
    )
    simulator = Simulator.of(measured, run)
    whatif = simulator.all() if simulator else []
    estimates = {one.name: one.estimate for one in whatif}
    rules = load_rules([Path(rule) for rule in options.rules])
    advice = advise(facts, rules, estimates, simulator.combined if simulator else None)
    return Result(
        tool=Tool(version=__version__),
        inputs=[
            Input(name=i.name, format=i.format, producer=i.producer, ranks=list(i.ranks))  # type: ignore[arg-type]
            for i in measured.inputs
        ],
        run=Run(
            gpu=device.name if device else None,
            world_size=t.get("world_size"),
            dispatcher=t.get("dispatcher"),
            config=run.config,
            facts=dict(sorted(t.items())),
            hardware=dict(sorted(run.figures.items())),
        ),
        capture=Capture(complete=run.complete, issues=run.issues),
        steps=_steps(partials),
        walls=run.walls,
        metrics=metrics,
        step_parts=summary.step_parts,
        parts_by_rank=summary.parts_by_rank,
        parts_by_step=summary.parts_by_step,
        compute_absent=summary.compute_absent,
        idle_causes=summary.idle_causes,
        roles=summary.roles,
        unclassified=summary.unclassified,
        ranks=summary.ranks,
        collectives=summary.collectives,
        layers=[],
        rules=advice.outcomes,
        recommendations=advice.recommendations,
        plan=advice.plan,
        whatif=whatif,
        timeline=measured.timeline,
        references=_references(run),
        plan_violations=list(advice.violations),
        definitions={
            name: Definition(
                title=one.title,
                unit=one.unit,
                definition=one.definition,
                better=one.better,
                pitfall=one.pitfall,
            )
            for name, one in METRICS.items()
        },
    )


MAX_REFERENCES = 3
"""So many published runs are placed beside the run: the nearest ones say all that is to say."""


def _references(run: Judged) -> list[Reference]:
    """Published runs of the model that the configuration names, on this GPU."""
    values = {key: one.value for key, one in run.config.items()}
    found = reference.points_for(values, run.figures.get("gpu_family"), run.facts.get("precision"))
    return [
        Reference(
            model=one.model,
            gpu=one.gpu,
            precision=one.precision,
            tokens_per_s_per_gpu=one.tokens_per_s_per_gpu,
            tflops_per_gpu=one.tflops_per_gpu,
            release=one.release,
            source=one.source,
            differences={key: list(pair) for key, pair in one.differences.items()},
            remark=reference.REMARK,
        )
        for one in found[:MAX_REFERENCES]
    ]


def _given(options: Options) -> tuple[dict[str, ConfigValue], TrainingLog | None]:
    """The configuration from --log, --config and --set, the later winning, and the log."""
    log = training_log.load(Path(options.log)) if options.log else None
    return (
        merge_config(
            log.config if log else {},
            run_config.load(Path(options.config)) if options.config else {},
            run_config.parse_set(options.values),
        ),
        log,
    )


def _from_log(
    log: TrainingLog | None, summary: Summary, figures: Mapping[str, Any], t: dict[str, Any]
) -> dict[str, MetricValue]:
    """The metrics that a log of unprofiled steps gives; adds the profiler's overhead to `t`."""
    if log is None:
        return {}
    found: dict[str, MetricValue] = {}

    def add(name: str, value: float | None, basis: str) -> None:
        if value is not None:
            found[name] = MetricValue(
                status="measured", value=round(value, 6), unit=METRICS[name].unit, basis=basis
            )

    unprofiled, profiled = log.step_ms(), summary.metrics["step_ms"].value
    if unprofiled and profiled:
        t["profiler_overhead_share"] = profiled / unprofiled - 1.0
    add("tokens_per_s_per_gpu", log.tokens_per_s_per_gpu(), "unprofiled steps of the log")
    tflops = log.tflops_per_gpu()
    add("model_tflops_per_gpu", tflops, "as the log prints it, unprofiled steps")
    precision = t.get("precision", "bf16")
    peak = figures.get(f"dense_{precision}_tflops")
    if tflops and peak:
        add("mfu", tflops / float(peak), f"over {float(peak):.0f} TFLOP/s dense {precision}")
    if summary.metrics["memory_peak_gib"].status == "not_measured":
        memory = log.memory_peak_gib()
        add("memory_peak_gib", memory, "highest allocated memory in the log")
        if memory is not None and figures.get("memory_gib"):
            add("memory_headroom_gib", float(figures["memory_gib"]) - memory, "from the log")
    return found


class Simulator:
    """What-if changes on the model of one step of the ranks read."""

    def __init__(self, model: "StepModel", run: Judged) -> None:
        self._model, self._run = model, run
        self._config = {key: one.value for key, one in run.config.items()}

    @classmethod
    def of(cls, measured: Measured, run: Judged) -> "Simulator | None":
        """None where the ranks' tables were not kept, or hold no step."""
        if not any(len(one.windows) for one in measured.kept):
            return None
        from moe_advisor import whatif

        return cls(whatif.build(measured.kept, run.figures), run)

    def all(self) -> list[WhatIf]:
        """Every change that exists, on its own."""
        from moe_advisor import whatif

        return self.each(tuple(whatif.CHANGES))

    def each(self, names: Sequence[str]) -> list[WhatIf]:
        """These changes, each on its own; KeyError for one that does not exist."""
        from moe_advisor import whatif

        return whatif.estimate(
            self._model,
            self._run.summary,
            names,
            config=self._config,
            unprofiled_step_ms=self._run.unprofiled_step_ms,
        )

    def combined(self, names: tuple[str, ...]) -> Estimate:
        """These changes simulated together."""
        from moe_advisor import whatif

        return whatif.combine(
            self._model,
            names,
            summary=self._run.summary,
            config=self._config,
            unprofiled_step_ms=self._run.unprofiled_step_ms,
        )


def _recompute_inside(partials: Sequence[RankPartial]) -> dict[str, float]:
    """Exposed communication and permutation inside recompute, mean ms per step."""
    ranks = [one for one in partials if len(one.step_names)]
    if not ranks:
        return {}
    return {
        name: float(sum(one.times_ns[f"recompute_{name}"].mean() for one in ranks))
        / len(ranks)
        / NS_PER_MS
        for name in ("comm", "permute")
    }


def _issues(measured: Measured, partials: Sequence[RankPartial], t: dict[str, Any]) -> list[Issue]:
    """All capture issues, equal ones of several ranks counted together."""
    found: dict[tuple[str, str], Issue] = {}
    every = [*measured.issues, *(issue for one in partials for issue in one.issues)]
    world, read = t.get("world_size"), len(partials)
    if world and read < world:
        every.append(
            CaptureIssue(
                "ranks-missing",
                Severity.WARNING,
                f"{read} of {world} ranks read: what needs the others is bounded or not measured",
                count=world - read,
            )
        )
    if not any(len(one.step_names) for one in partials):
        every.append(
            CaptureIssue(
                "no-gpu-activity",
                Severity.ERROR,
                "no GPU work inside a step: trace CUDA (nsys --trace=cuda,nvtx or "
                "ProfilerActivity.CUDA) and at least one whole training step",
            )
        )
    if any(one.step_source == "whole-trace" for one in partials):
        every.append(
            CaptureIssue(
                "no-steps",
                Severity.WARNING,
                "no step was found: the whole trace counts as one; name steps `iteration N` or "
                "call profiler.step()",
            )
        )
    for issue in every:
        key = (issue.id, issue.message)
        known = found.get(key)
        found[key] = Issue(
            id=issue.id,
            severity=issue.severity.value,
            count=issue.count + (known.count if known else 0),
            message=safe_text(issue.message, 400),
            rank=None if known else issue.rank,
        )
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(
        found.values(), key=lambda issue: (order[issue.severity], issue.id, issue.message)
    )


def _steps(partials: Sequence[RankPartial]) -> Steps:
    ranks = [one for one in partials if len(one.step_names)]
    dropped = [
        DroppedStep(rank=one.rank, step=safe_text(step, NAME_LIMIT), reason=reason)
        for one in partials
        for step, reason in one.dropped
    ]
    if not ranks:
        return Steps(count=0, source="whole-trace", pattern=None, dropped=dropped, names=[])
    longest = max(ranks, key=lambda one: (len(one.step_names), -one.rank))
    return Steps(
        count=len(longest.step_names),
        source=longest.step_source,  # type: ignore[arg-type]
        pattern=longest.step_pattern,
        dropped=dropped,
        names=[safe_text(name, NAME_LIMIT) for name in longest.step_names],
    )
