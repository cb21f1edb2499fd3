"""The Python API: the main job as one typed object, with frames for a notebook."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import polars as pl

from moe_advisor import analysis, exports, remote
from moe_advisor.analysis import Measured, Options
from moe_advisor.errors import InputError
from moe_advisor.ingest import sources
from moe_advisor.measure.activity_table import ACTIVITY_TABLE
from moe_advisor.output import html, json_output, markdown, notebook, text
from moe_advisor.progress import Progress, TerminalLine
from moe_advisor.result import MetricValue, PlanStep, Recommendation, Result, Timeline, Walls

PathText = str | PathLike[str]

SUMMARY_COLUMNS = 100
"""Width of the text summary, as on a terminal."""


class Metrics(Mapping[str, MetricValue]):
    """The metrics of a run by name.

    A name that does not exist raises KeyError with the nearest one that does. A metric that could
    not be measured is there, with `value` None and the `reason`.
    """

    def __init__(self, values: Mapping[str, MetricValue]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> MetricValue:
        if name in self._values:
            return self._values[name]
        from difflib import get_close_matches

        near = get_close_matches(name, self._values, 1)
        raise KeyError(f"no metric {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        measured = sum(one.status == "measured" for one in self._values.values())
        return f"<Metrics: {measured} of {len(self)} measured>"

    def _repr_html_(self) -> str:
        return notebook.metrics(self._values)

    @property
    def frame(self) -> pl.DataFrame:
        """One row a metric: name, status, value, unit, spread, low, high, reason."""
        return pl.DataFrame(
            [
                (name, m.status, m.value, m.unit, m.spread, m.low, m.high, m.reason)
                for name, m in self._values.items()
            ],
            schema={
                "name": pl.String,
                "status": pl.String,
                "value": pl.Float64,
                "unit": pl.String,
                "spread": pl.Float64,
                "low": pl.Float64,
                "high": pl.Float64,
                "reason": pl.String,
            },
            orient="row",
        )


@dataclass(frozen=True, eq=False)
class Analysis:
    """One run: what `analyze` returns. Times are ms per step unless a name says otherwise."""

    data: Result
    """The whole result, as `result.json` holds it."""
    _measured: Measured | None = field(default=None, repr=False)
    _options: Options = field(default_factory=Options, repr=False)

    @cached_property
    def metrics(self) -> Metrics:
        """Every metric by name: `metrics["ep_a2a_exposed_ms"].value`."""
        return Metrics(self.data.metrics)

    @property
    def walls(self) -> Walls:
        """The verdict with its scores, margin and reasons."""
        return self.data.walls

    @property
    def verdict(self) -> str:
        """`memory`, `communication`, `compute_host`, `mixed` or `inconclusive`."""
        return self.data.walls.verdict

    @property
    def findings(self) -> tuple[Recommendation, ...]:
        """What was found, each with the change, its estimated gain, evidence and the A/B to run.

        In the order of the plan; a change that should not be made yet has `withheld` set.
        """
        return tuple(self.data.recommendations)

    @property
    def plan(self) -> tuple[PlanStep, ...]:
        """The changes in the order to make them, each with the gain together with all before."""
        return tuple(self.data.plan)

    @property
    def timeline(self) -> Timeline | None:
        """One representative step, down-sampled for drawing; None without GPU work."""
        return self.data.timeline

    @cached_property
    def activities(self) -> pl.DataFrame:
        """Every GPU activity with its role, one row each; columns in docs/python-api.md.

        Raises InputError for an earlier result, which does not hold them. Of 8 inputs and more
        the traces are read again, since not all fit into memory at once.
        """
        measured = self._traces("activities")
        return pl.concat(
            [pl.DataFrame(schema=ACTIVITY_TABLE), *exports.activities(measured, self._options)]
        )

    @cached_property
    def parts(self) -> pl.DataFrame:
        """Where the step goes: rank, step (null for a rank's mean), part, family, label, ms.

        The parts of one rank and step add up to that step.
        """
        return pl.DataFrame(
            [
                (bar.rank, bar.step, part.part, part.family, part.label, part.ms)
                for bar in (*self.data.parts_by_rank, *self.data.parts_by_step)
                for part in bar.parts
            ],
            schema={
                "rank": pl.Int64,
                "step": pl.String,
                "part": pl.String,
                "family": pl.String,
                "label": pl.String,
                "ms": pl.Float64,
            },
            orient="row",
        )

    @cached_property
    def roles(self) -> pl.DataFrame:
        """Time, exposed time, count and confidence of each role, mean per step."""
        return pl.DataFrame(
            [
                (one.role, one.family, one.ms, one.exposed_ms, one.share, one.count, one.confidence)
                for one in self.data.roles
            ],
            schema={
                "role": pl.String,
                "family": pl.String,
                "ms": pl.Float64,
                "exposed_ms": pl.Float64,
                "share": pl.Float64,
                "count": pl.Float64,
                "confidence": pl.String,
            },
            orient="row",
        )

    @cached_property
    def per_step(self) -> pl.DataFrame:
        """Every metric that is known per step: metric, rank, step (counted from 0), value."""
        return pl.DataFrame(
            [
                (name, one.rank, number, value)
                for name, metric in self.data.metrics.items()
                for one in metric.per_rank
                for number, value in enumerate(one.steps)
            ],
            schema={"metric": pl.String, "rank": pl.Int64, "step": pl.Int64, "value": pl.Float64},
            orient="row",
        )

    def to_html(self) -> str:
        """The report: one file, offline."""
        return html.render(self.data)

    def to_json(self) -> str:
        """`result.json`, byte for byte as the command line writes it."""
        return json_output.encode(self.data).decode()

    def to_markdown(self) -> str:
        """The summary for a pull request or step summary."""
        return markdown.render(self.data)

    def to_text(self) -> str:
        """The story in one screen, plain."""
        return text.render(self.data, width=SUMMARY_COLUMNS, color=False, unicode=True)

    def to_perfetto(self) -> str:
        """The annotated trace of one step, for Perfetto and chrome://tracing.

        Raises InputError for an earlier result.
        """
        return exports.render_perfetto(self._traces("to_perfetto"), self.data)

    def _traces(self, what: str) -> Measured:
        if self._measured is None:
            raise InputError(
                f"{what}: an earlier result does not hold every activity: analyze the trace"
            )
        return self._measured

    def __repr__(self) -> str:
        return f"<Analysis: {self.data.walls.headline}>"

    def _repr_html_(self) -> str:
        return notebook.card(self.data)


def analyze(
    *paths: PathText | Sequence[PathText],
    config: PathText | None = None,
    log: PathText | None = None,
    values: Mapping[str, Any] | None = None,
    steps: str | None = None,
    step_pattern: str | None = None,
    taxonomy: PathText | None = None,
    rules: Sequence[PathText] = (),
    nsys: PathText | None = None,
    cache: PathText | None = None,
    jobs: int | None = None,
    sample: int | None = None,
    timeout_s: float | None = None,
    executor: Literal["local", "dask"] = "local",
    scheduler: str | None = None,
    progress: Progress | bool = False,
) -> Analysis:
    """Says where a profile's time goes and what to change.

    `paths` are traces, folders of ranks, globs, or one earlier result.json. The other arguments
    mean what the options of `moe-advisor analyze` mean; `values` is `--set`, such as
    `{"expert_model_parallel_size": 8}`, and `progress=True` shows a line on standard error.
    Nothing is written.

    Raises InputError where nothing can be read, ConfigError for an argument that can't be used.
    """
    given = [fspath(path) for one in paths for path in _each(one)]
    if not given:
        raise InputError("no input: give a trace, several, a folder of ranks or a glob")
    options = Options(
        steps=steps,
        step_pattern=step_pattern,
        taxonomy=_text(taxonomy),
        nsys=_text(nsys),
        cache=_text(cache),
        rules=tuple(fspath(rule) for rule in rules),
        config=_text(config),
        log=_text(log),
        values=tuple(f"{key}={_value(value)}" for key, value in (values or {}).items()),
        jobs=jobs,
        executor=executor,
        scheduler=scheduler,
        sample=sample,
        timeout_s=timeout_s,
    )
    shown = TerminalLine() if progress is True else progress or None
    with remote.inputs(given, remote.many_for(executor)) as local:
        texts = [one for one in local if isinstance(one, str)]
        earlier = analysis.earlier_result(sources.find_inputs(texts)) if texts else None
        if earlier is not None:
            return Analysis(earlier)
        measured = analysis.measure(local, options, shown)
    return Analysis(analysis.result_of(measured, options), measured, options)


def load(path: PathText) -> Analysis:
    """An earlier result: everything but `activities` and `to_perfetto`, which need the trace."""
    file = Path(path)
    found = analysis.earlier_result(sources.find_inputs([str(file)]))
    if found is None:
        raise InputError(f"{file.name}: not a result: analyze reads traces")
    return Analysis(found)


def _each(one: PathText | Sequence[PathText]) -> Sequence[PathText]:
    return [one] if isinstance(one, str | PathLike) else one


def _text(path: PathText | None) -> str | None:
    return None if path is None else fspath(path)


def _value(value: Any) -> str:
    """A configuration value as --set takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    return "null" if value is None else str(value)
