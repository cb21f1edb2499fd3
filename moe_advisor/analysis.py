"""The main job: inputs in, one result out."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_advisor import __version__, bounded, cache, entries, remote, sampling
from moe_advisor.advise import (
    Facts,
    advise,
    hardware,
    infer_config,
    load_rules,
    reference,
    throughput,
)
from moe_advisor.advise.facts import merge_config
from moe_advisor.errors import ConfigError, InputError
from moe_advisor.execute import DaskCluster, Executor, Failed, LocalProcesses, raise_if_option
from moe_advisor.finished import digest, kept_or, state, unchanged, with_log
from moe_advisor.finished import earlier_result as earlier_result
from moe_advisor.ingest import run_config, sniff, sources, training_log
from moe_advisor.ingest.json_stream import StreamLimits
from moe_advisor.ingest.training_log import TrainingLog
from moe_advisor.keys import environment_names
from moe_advisor.measure.facts import trace_facts
from moe_advisor.measure.health import for_profiler, run_issues, sparser_ranks
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import MeasuredRank, measure_rank
from moe_advisor.measure.registry import METRICS
from moe_advisor.measure.stages import mean, weighted
from moe_advisor.measure.summary import NS_PER_MS, Summary, summarise
from moe_advisor.measure.timeline import timeline
from moe_advisor.memory_guard import MemoryGuard
from moe_advisor.model import CaptureIssue, Device, InputInfo, LoadedInput, RankTrace, Severity
from moe_advisor.options import Options as Options
from moe_advisor.privacy import display_name, safe_text
from moe_advisor.progress import Advance, Progress
from moe_advisor.remote import RemoteFile
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
    Replay,
    Result,
    Run,
    Steps,
    Timeline,
    Tool,
    Walls,
    WhatIf,
)
from moe_advisor.roles import taxonomy
from moe_advisor.spill import SPILL_ROWS, releasing
from moe_advisor.walls import doubted, judge

if TYPE_CHECKING:
    from moe_advisor.whatif import StepModel

PARALLEL_INPUTS = 8
"""From this number of files on, each is read in a process of its own: below it, starting the
processes costs more than they save. Only a few ranks' tables are kept then."""

RANKS_AT_ONCE = 4
"""Ranks of one report that are measured side by side: each needs 0.2 GB for a million activities
while it is, beside the tables."""

MODEL_RANKS = 8
"""Of many inputs, the tables of at most so many ranks of one expert-parallel group are read again
for what-if estimates and the timeline: what bounds the memory."""

ELSEWHERE = "elsewhere"
"""The format of a remote file before it is copied, which tells it."""

MIXED = "the inputs mix Nsight Systems and PyTorch captures: give one profiler's at a time"

NAME_LIMIT = 160
"""Characters of a kernel or range name that a result keeps."""


@dataclass(frozen=True)
class Measured:
    """Everything read and measured; `kept` holds the tables of few inputs, else it is empty."""

    inputs: tuple[InputInfo, ...]
    partials: tuple[RankPartial, ...]
    kept: tuple[MeasuredRank, ...]
    timeline: Timeline | None
    issues: tuple[CaptureIssue, ...] = field(default=())
    paths: tuple[Path | RemoteFile, ...] = ()
    """The files that were read, in the order of `partials`."""


def analyze(
    paths: Sequence[str | RemoteFile],
    options: Options | None = None,
    progress: Progress | None = None,
) -> Result:
    """The result for the traces that `paths` mean: files, folders of ranks or globs, also remote.

    Raises InputError where nothing can be read, ConfigError for options that can't be used.
    """
    chosen = options or Options()
    with remote.inputs(paths, remote.many_for(chosen.executor)) as local:
        return kept_or(local, chosen, lambda: result_of(measure(local, chosen, progress), chosen))


def measure(
    paths: Sequence[str | RemoteFile],
    options: Options,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Measured:
    """Reads and measures all ranks of the inputs, on `executor` instead of the options' own."""
    memory_gib = options.bounds.memory_gib
    with (
        remote.inputs(paths, remote.many_for(options.executor)) as local,
        MemoryGuard(int(memory_gib * bounded.GIB) if memory_gib else None),
        releasing(),
    ):
        return _whole(_measure(local, options, progress, executor))


def _whole(measured: Measured) -> Measured:
    """Without the ranks that lost records: what is left of them would be taken for idle time."""
    lost = sparser_ranks(measured.partials)
    if not lost:
        return measured
    gone = {issue.rank for issue in lost}
    # Where nothing else tells the size of the world, those left out count all the same.
    world = max(one.world_size or 0 for one in measured.partials) or len(measured.partials)
    partials = {
        one.rank: replace(one, world_size=world)
        for one in measured.partials
        if one.rank not in gone
    }
    kept = tuple(
        replace(one, partial=partials[one.partial.rank])
        for one in measured.kept
        if one.partial.rank in partials
    )
    shown = min(kept, key=lambda m: m.partial.rank, default=None)
    return replace(
        measured,
        partials=tuple(partials.values()),
        kept=kept,
        timeline=timeline(shown) if shown else None,
        issues=(*measured.issues, *lost),
    )


def _measure(
    paths: Sequence[str | RemoteFile],
    options: Options,
    progress: Progress | None,
    executor: Executor | None,
) -> Measured:
    skipped: list[sources.Skipped] = []
    elsewhere = [one for one in paths if isinstance(one, RemoteFile)]
    texts = [one for one in paths if isinstance(one, str)]
    files = sources.find_inputs(texts, skipped) if texts or not elsewhere else []
    found: list[Path | RemoteFile] = [*files, *elsewhere]
    kinds = [sniff.detect(path) for path in files]
    profilers = {"kineto" if kind == "kineto" else "nsys" for kind in kinds}
    if "result" in kinds:
        name = display_name(files[kinds.index("result")])
        raise InputError(
            f"{name}: is an earlier result and a trace is needed: give the trace it was made from; "
            "render, compare and check take results"
        )
    if len(profilers) > 1:
        raise InputError(MIXED)
    kinds += [ELSEWHERE] * len(elsewhere)
    sampled = [
        CaptureIssue(
            "input-skipped",
            Severity.ERROR if one.expected else Severity.WARNING,
            f"{one.reason}; passed over, as the folder holds other traces",
        )
        for one in skipped
    ]
    if options.sample is not None:
        # What is elsewhere has heads that tell groups where it is no export of nsys.
        named = [
            "kineto" if isinstance(one, RemoteFile) and ".json" in one.name.lower() else kind
            for one, kind in zip(found, kinds, strict=True)
        ]
        sample = sampling.choose(
            found, named, options.sample, taxonomy.load(_path(options.taxonomy))
        )
        if sample:
            sampled.append(CaptureIssue("sampled", Severity.WARNING, sample.message))
            found = [found[place] for place in sample.places]
            kinds = [kinds[place] for place in sample.places]
            files = [one for one in found if isinstance(one, Path)]
    if executor or elsewhere or len(found) >= PARALLEL_INPUTS or options.executor == "dask":
        return _many(found, kinds, options, progress, sampled, executor)
    sizes = [_size(path) for path in files]
    loaded: list[LoadedInput] = []
    measured: list[MeasuredRank] = []
    for number, (path, kind) in enumerate(zip(files, kinds, strict=True), 1):
        one = _load(path, kind, options)
        measured.extend(_measure_ranks(one, options))
        loaded.append(one)
        if progress:
            read = sum(sizes[:number])
            progress(Advance(number, len(files), read, sum(sizes), one.info.name))
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
        (*sampled, *(issue for one in loaded for issue in one.issues), *issues),
        tuple(found),
    )


def _size(path: Path | RemoteFile) -> int:
    """Bytes of a file, or of the files in a folder; 0 where that can't be told."""
    if isinstance(path, RemoteFile):
        return path.size_bytes
    try:
        if path.is_dir():
            return sum(part.stat().st_size for part in path.iterdir())
        return path.stat().st_size
    except OSError:
        return 0


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _load(path: Path, kind: str, options: Options) -> LoadedInput:
    extra: dict[str, Any] = {}
    if kind == "nsys-rep":
        extra = {"nsys": _path(options.nsys), "cache": _path(options.cache)}
    elif options.max_expansion is not None:
        extra = {"limits": StreamLimits(max_ratio=options.max_expansion)}
    with bounded.using(options.bounds):
        bounded.check_size(path, display_name(path))
        return sources.load(path, kind, **extra)


def _measure_ranks(
    one: LoadedInput, options: Options, at_once: int = RANKS_AT_ONCE
) -> list[MeasuredRank]:
    """The ranks of one input; the array work of several runs side by side in threads."""
    names = taxonomy.load(_path(options.taxonomy))

    def measured(rank: RankTrace) -> MeasuredRank:
        return measure_rank(rank, names, step_pattern=options.step_pattern, steps=options.steps)

    workers = min(at_once, options.jobs or os.cpu_count() or 1, len(one.ranks))
    if sum(len(rank.activities) for rank in one.ranks) >= SPILL_ROWS:
        workers = 1
    if workers <= 1:
        return [measured(rank) for rank in one.ranks]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(measured, one.ranks))


@dataclass(frozen=True)
class Task:
    """One of many inputs, for a process that knows nothing else."""

    path: Path | RemoteFile
    kind: str
    options: Options
    scratch: str | None = None
    """Where a copy of a remote file may lie; None for the worker's temporary folder."""


def work(task: Task) -> entries.Entry:
    """One input read and measured, or taken from the cache: only numbers travel back."""
    with bounded.using(task.options.bounds), remote.here(task.path, task.scratch) as path:
        return _worked(path, _kind(path, task.kind), task.options)


def _kind(path: Path, kind: str) -> str:
    """The format of what was elsewhere, now that it is here."""
    return sniff.detect(path) if kind == ELSEWHERE else kind


def _worked(path: Path, kind: str, options: Options) -> entries.Entry:
    store = cache.Cache(Path(options.cache)) if options.cache else None
    key, read, before = "", with_log(path), list[str]()
    if store:
        before = state(read)
        key = cache.key_of(
            "partial",
            display_name(path),
            *(digest(part, store) for part in read),
            options.steps,
            options.step_pattern,
            digest(Path(options.taxonomy)) if options.taxonomy else None,
        )
        kept = store.get(key)
        entry = entries.decode(kept) if kept is not None else None
        if entry is not None:
            return entry
    one = _load(path, kind, options)
    partials = tuple(_light(m.partial) for m in _measure_ranks(one, options, at_once=1))
    entry = entries.Entry(one.info, one.issues, partials)
    if store and unchanged(read, before):
        store.put(key, entries.encode(entry))
    return entry


def _light(partial: RankPartial) -> RankPartial:
    """Without the names that no communicator has: kernels' names are most of a partial."""
    used = set(partial.collectives.group.tolist())
    names = tuple(name if number in used else "" for number, name in enumerate(partial.group_names))
    return replace(partial, group_names=names)


def _executor(options: Options) -> Executor:
    if options.executor == "dask":
        if not options.scheduler:
            raise ConfigError("--executor dask: give its --scheduler, such as tcp://host:8786")
        return DaskCluster(options.scheduler, options.timeout_s)
    return LocalProcesses(options.jobs or os.cpu_count() or 1, options.timeout_s)


def _many(
    found: Sequence[Path | RemoteFile],
    kinds: Sequence[str],
    options: Options,
    progress: Progress | None,
    sampled: Sequence[CaptureIssue],
    executor: Executor | None = None,
) -> Measured:
    """Many inputs, each in a worker; a rank that can't be read is reported and the rest stands."""
    sizes = [_size(path) for path in found]
    read: dict[int, entries.Entry] = {}
    failures: dict[int, str] = {}
    done = 0
    with ExitStack() as stack:
        scratch: str | None = None
        if ELSEWHERE in kinds and options.executor == "local":
            # Gone with this process's context: also what a killed worker left.
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="moe-advisor-", ignore_cleanup_errors=True)
            )
        tasks = [
            Task(one.absolute() if isinstance(one, Path) else one, kind, options, scratch)
            for one, kind in zip(found, kinds, strict=True)
        ]
        running = (executor or _executor(options)).run(work, tasks)
        outcomes = stack.enter_context(closing(running))  # type: ignore[type-var]
        for number, outcome in outcomes:
            done += sizes[number]
            if isinstance(outcome, Failed):
                raise_if_option(outcome)
                failures[number] = outcome.reason
            else:
                read[number] = outcome
            if progress:
                count = len(read) + len(failures)
                name = _name(found[number])
                progress(Advance(count, len(found), done, sum(sizes), name))
    if options.cache:
        cache.Cache(Path(options.cache)).trim()
    issues = [
        CaptureIssue("input-unreadable", Severity.ERROR, _naming(found[number], failures[number]))
        for number in sorted(failures)
    ]
    if not read:
        raise InputError(issues[0].message)
    if len({"kineto" if one.info.format == "kineto" else "nsys" for one in read.values()}) > 1:
        raise InputError(MIXED)
    by_input = dict(sorted(read.items()))
    numbered, more_issues = _numbered([p for one in by_input.values() for p in one.partials])
    owners = [number for number, one in by_input.items() for _ in one.partials]
    places = [place for one in by_input.values() for place in range(len(one.partials))]
    rows = list(zip(numbered, owners, places, strict=True))
    partials = tuple(partial for partial in numbered if partial is not None)
    wanted = {partial.rank for partial in _model_group(partials, len(found))}
    kept: list[MeasuredRank] = []
    for owner in sorted({o for partial, o, _ in rows if partial and partial.rank in wanted}):
        with remote.here(found[owner]) as path:
            again = _measure_ranks(_load(path, _kind(path, kinds[owner]), options), options)
        kept += [
            replace(again[place], partial=partial)
            for partial, o, place in rows
            if o == owner and partial is not None and partial.rank in wanted
        ]
    shown = min(kept, key=lambda m: m.partial.rank, default=None)
    return Measured(
        tuple(one.info for one in by_input.values()),
        partials,
        tuple(kept),
        timeline(shown) if shown else None,
        (
            *sampled,
            *(issue for one in by_input.values() for issue in one.issues),
            *issues,
            *more_issues,
        ),
        tuple(found[number] for number in by_input),
    )


def each_rank(measured: Measured, options: Options) -> Iterator[MeasuredRank]:
    """Every rank with its tables; of many inputs one after the other, read again.

    Only few ranks' tables fit into memory, so `measure` keeps none of many inputs but a group's.
    """
    if len(measured.kept) == len(measured.partials):
        yield from measured.kept
        return
    left = list(measured.partials)
    for source in measured.paths:
        with remote.here(source) as path:
            ranks = _measure_ranks(_load(path, sniff.detect(path), options), options)
        for one in ranks:
            # A rank given twice was left out of the partials: only the same steps are the same.
            if left and np.array_equal(left[0].window_start_ns, one.partial.window_start_ns):
                yield replace(one, partial=left.pop(0))


def _name(path: Path | RemoteFile) -> str:
    return display_name(path.name)


def _naming(path: Path | RemoteFile, reason: str) -> str:
    name = _name(path)
    return reason if reason.startswith(name) else f"{name}: {reason}"


def _model_group(partials: Sequence[RankPartial], inputs: int) -> list[RankPartial]:
    """The ranks whose tables are kept: all of few inputs, else one expert-parallel group.

    The group is that of the lowest rank, whole as far as its members were read.
    """
    ordered = sorted(partials, key=lambda partial: partial.rank)
    if inputs < PARALLEL_INPUTS or not ordered:
        return ordered

    def groups(partial: RankPartial) -> set[str]:
        return {
            name
            for name, family in partial.facts.get("groups", {}).items()
            if family == "ep" and name
        }

    mine = groups(ordered[0])
    return [one for one in ordered if one is ordered[0] or groups(one) & mine][:MODEL_RANKS]


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
    if _is_megatron(measured):
        t["framework"] = "megatron"
    given, log = _given(options)
    given = merge_config(_environment(partials), given)
    metrics = {**summary.metrics, **_from_log(log, summary, figures, t, given)}
    issues = _issues(measured, partials, t)
    complete = not any(issue.severity == "error" or issue.id == "ranks-missing" for issue in issues)
    t["capture_complete"] = complete
    return Judged(
        summary=summary,
        metrics=metrics,
        walls=doubted(
            judge(metrics, summary.step_parts, summary.wait_causes_ms, _recompute_inside(partials)),
            issues,
            metrics,
        ),
        facts=t,
        figures=figures,
        given=given,
        config=merge_config(infer_config(t), given),
        unprofiled_step_ms=log.step_ms() if log else None,
        issues=issues,
        complete=complete,
    )


def _is_megatron(measured: Measured) -> bool:
    """Whether a range or autograd Function of the trace is Megatron-Core's own."""
    if not measured.kept:
        return False
    from moe_advisor.whatif.build import MEGATRON_NAMES

    return any(name.startswith(MEGATRON_NAMES) for name in measured.kept[0].trace.names)


def _environment(partials: Sequence[RankPartial]) -> dict[str, ConfigValue]:
    """Variables of the traced processes that rules know; the reader let none but allowed in."""
    return {
        name: ConfigValue(value=value, source="trace")
        for one in partials[:1]
        for name, value in one.environment.items()
        if name in environment_names()
    }


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
    with releasing():
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
        layers=summary.layers,
        layers_reason=summary.layers_reason,
        rules=advice.outcomes,
        recommendations=advice.recommendations,
        plan=advice.plan,
        whatif=whatif,
        replay=simulator.quality() if simulator else None,
        timeline=measured.timeline,
        references=_references(run),
        plan_violations=list(advice.violations),
        kernels=summary.kernels,
        why=summary.why,
        plan_change=advice.change,
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
    precision = throughput.precision(values, run.facts.get("precision"))
    found = reference.points_for(values, run.figures.get("gpu_family"), precision)
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
    log: TrainingLog | None,
    summary: Summary,
    figures: Mapping[str, Any],
    t: dict[str, Any],
    given: Mapping[str, ConfigValue],
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
        t["unprofiled_step_ms"] = unprofiled
        t["profiler_overhead_share"] = profiled / unprofiled - 1.0
    config = {key: one.value for key, one in merge_config(infer_config(t), given).items()}
    config.setdefault("global_batch_size", log.global_batch_size())
    config.setdefault("seq_length", log.seq_length)
    world = log.world_size or config.get("world_size") or t.get("world_size")
    rate = throughput.rates(config, unprofiled, world, log.tflops_per_gpu())
    add("tokens_per_s_per_gpu", rate.tokens_per_s_per_gpu, "unprofiled steps of the log")
    add("model_tflops_per_gpu", rate.tflops_per_gpu, rate.tflops_basis)
    precision = throughput.precision(config, t.get("precision"))
    peak = figures.get(f"dense_{throughput.PEAKS[precision]}_tflops")
    if rate.tflops_per_gpu and peak:
        share = rate.tflops_per_gpu / float(peak)
        add("mfu", share, f"over {float(peak):.0f} TFLOP/s dense {throughput.PEAKS[precision]}")
    if rate.missing:
        reason = f"not in the log; for the count of FLOPs give {', '.join(rate.missing)}"
        names = ["model_tflops_per_gpu", "mfu"]
        if "world_size" in rate.missing:
            reason = "the ranks seen are fewer than the configuration needs: --set world_size=N"
            names.append("tokens_per_s_per_gpu")
        for name in names:
            found[name] = MetricValue(
                status="not_measured", value=None, unit=METRICS[name].unit, reason=reason
            )
    if summary.metrics["memory_peak_gib"].status == "not_measured":
        memory = log.memory_peak_gib()
        add("memory_peak_gib", memory, "highest allocated memory in the log")
        if memory is not None and figures.get("memory_gib"):
            size = float(figures["memory_gib"])
            told = f"{size:.1f} GiB, this GPU's size by the catalogue, less the log's highest peak"
            add("memory_headroom_gib", size - memory, told)
        elif memory is not None:
            found["memory_headroom_gib"] = MetricValue(
                status="not_measured",
                value=None,
                unit=METRICS["memory_headroom_gib"].unit,
                reason="the trace does not name the GPU, or its memory is not in the catalogue",
            )
    return found


class Simulator:
    """What-if changes on the model of one step of the ranks read."""

    def __init__(self, model: "StepModel", run: Judged) -> None:
        self._model, self._run = model, run
        # With what the log adds: memory, above all, which changes are checked against.
        self._summary = replace(run.summary, metrics=run.metrics)
        self._config = {key: one.value for key, one in run.config.items()}

    @classmethod
    def of(cls, measured: Measured, run: Judged, *, names: bool = True) -> "Simulator | None":
        """None where the ranks' tables were not kept, or hold no step.

        Without `names` the step is called by its number, as in a redacted result.
        """
        if not any(len(one.windows) for one in measured.kept):
            return None
        from moe_advisor import whatif

        model = whatif.build(measured.kept, run.figures)
        if not names:
            known = _steps(measured.partials).names
            number = {name: f"step {at}" for at, name in enumerate(known, start=1)}
            lanes = [
                replace(lane, step=number.get(safe_text(lane.step, NAME_LIMIT), "step"))
                for lane in model.lanes
            ]
            model = model.with_lanes(tuple(lanes))
        return cls(model, run)

    def all(self) -> list[WhatIf]:
        """Every change that exists, on its own."""
        from moe_advisor import whatif

        return self.each(tuple(whatif.CHANGES))

    def quality(self) -> Replay | None:
        """How well the model repeats the measured step."""
        from moe_advisor import whatif

        return whatif.quality(self._model)

    def each(self, names: Sequence[str]) -> list[WhatIf]:
        """These changes, each on its own; KeyError for one that does not exist."""
        from moe_advisor import whatif

        return whatif.estimate(
            self._model,
            self._summary,
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
            summary=self._summary,
            config=self._config,
            unprofiled_step_ms=self._run.unprofiled_step_ms,
        )


def _recompute_inside(partials: Sequence[RankPartial]) -> dict[str, float]:
    """Exposed communication and permutation inside recompute, mean ms per step."""
    ranks = weighted([one for one in partials if len(one.step_names)])
    if not ranks:
        return {}
    return {
        name: mean(ranks, [one.times_ns[f"recompute_{name}"].mean() for one in ranks]) / NS_PER_MS
        for name in ("comm", "permute")
    }


def _issues(measured: Measured, partials: Sequence[RankPartial], t: dict[str, Any]) -> list[Issue]:
    """All capture issues, equal ones of several ranks counted together."""
    found: dict[tuple[str, str], Issue] = {}
    every = [*measured.issues, *(issue for one in partials for issue in one.issues)]
    every = for_profiler([*every, *run_issues(partials, t["profiler"])], t["profiler"])
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
