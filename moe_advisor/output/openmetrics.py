"""OpenMetrics text of a result: what GitLab's metrics report and Prometheus' textfile read."""

from collections.abc import Mapping, Sequence

from moe_advisor.budgets.model import Judged
from moe_advisor.output import run_view
from moe_advisor.output.formatting import clean
from moe_advisor.result import Result

PREFIX = "moe_advisor_"

_UNITS = {"ms/step": "milliseconds", "share": "ratio", "GiB": "gibibytes"}


def render(result: Result, judged: Sequence[Judged] = ()) -> str:
    """Every measured metric as a gauge, by run and by rank; absent ones are left out, never 0."""
    run = {"run": run_view.run_name(result)}
    lines: list[str] = []
    for name, metric in sorted(result.metrics.items()):
        if metric.value is None:
            continue
        definition = result.definitions.get(name)
        unit = f" ({_UNITS.get(metric.unit, metric.unit)})"
        about = clean(definition.definition if definition else name, 400)
        status = {"status": metric.status}
        lines += _family(name, about + unit)
        lines.append(_sample(name, {**run, **status}, metric.value))
        lines += [
            _sample(name, {**run, **status, "rank": str(one.rank)}, one.value)
            for one in metric.per_rank
            if one.value is not None
        ]
    lines += _family("wall_score", "Recoverable share of the step by wall")
    lines += [
        _sample("wall_score", {**run, "wall": wall}, score)
        for wall, score in sorted(result.walls.scores.items())
    ]
    lines += _family("capture_complete", "1 where the capture lost nothing and holds all ranks")
    lines.append(_sample("capture_complete", run, float(result.capture.complete)))
    if judged:
        lines += _family("budget_met", "1 where the budget is met, 0 where it is missed")
        lines += [
            _sample("budget_met", {**run, "budget": one.budget.name}, float(not one.missed))
            for one in judged
        ]
    return "\n".join([*lines, "# EOF", ""])


def _family(name: str, about: str) -> list[str]:
    escaped = about.replace("\\", r"\\").replace("\n", " ").replace('"', r"\"")
    return [f"# TYPE {PREFIX}{name} gauge", f"# HELP {PREFIX}{name} {escaped}"]


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
    return f"{PREFIX}{name}{{{shown}}} {value!r}"


def _label(text: str) -> str:
    return clean(text, 200).replace("\\", r"\\").replace('"', r"\"")
