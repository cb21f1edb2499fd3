"""Judges budgets on a result: what can't be measured is never a pass.

Budget files may come with a pull request, so their expressions run in the child process that
rules of users run in. Three answers that look measured are not, and count as not measured: a
verdict of `inconclusive` unless the budget names it, the absence of a finding whose rule could not
be measured, and an estimate whose range the budget divides.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from moe_advisor.advise.expressions import Answer, Truth, check_source, names
from moe_advisor.budgets.model import Budget, Judged
from moe_advisor.errors import ConfigError
from moe_advisor.keys import known
from moe_advisor.measure.registry import METRICS
from moe_advisor.result import MetricValue, Result, Verdict

EXTRA = ("findings", "capture")

MAX_CORNERS = 4
"""Estimates in one expression whose ranges are tried in every combination: 2^4 corners."""

MAX_PLACES = 5
"""Ranks or steps named in one message."""

CAPTURE_NAMES = ("complete", "issues")
WALL_NAMES = (
    *("verdict", "limiter", "next", "margin"),
    *("memory_score", "communication_score", "compute_host_score"),
)

_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_CAPTURE = re.compile(r"(?<![\w.])capture\.(\w+)")
_VERDICT = re.compile(r"walls\.verdict\s*[!=]=\s*('[^']*'|\"[^\"]*\")")
_IN = re.compile(r"('[^']*'|\"[^\"]*\")\s+in\s+findings\b")
_BOUND = re.compile(r"\bfindings\s*\.\s*(?:all|exists|exists_one|filter|map)\s*\(\s*(\w+)\s*,")

Evaluate = Callable[[str, Mapping[str, Mapping[str, Any]], Mapping[str, Any]], Answer]
Place = tuple[str, dict[str, float], dict[str, tuple[float, float]], dict[str, str]]
"""Words for a rank or step, its metrics, the ranges of estimates, why others are absent."""


def validate(
    budgets: Sequence[Budget],
    rules: Collection[str] | None = None,
    keys: Collection[str] | None = None,
) -> None:
    """Raises ConfigError for an expression that can't be used or names what does not exist.

    `rules` and `keys` are all the rules and configuration keys that the run can have; None where
    only the run itself can tell.
    """
    for one in budgets:
        where = one.where
        if wrong := check_source(one.expect, EXTRA):
            raise ConfigError(f"{where}: {wrong}")
        text = _STRING.sub("''", one.expect)
        for name in names(one.expect):
            root, _, leaf = name.partition(".")
            choices = {"m": tuple(METRICS), "walls": WALL_NAMES}.get(root)
            if root == "k":
                raise ConfigError(f"{where}: k belongs to rules: write the number itself")
            if choices and leaf not in choices:
                raise ConfigError(f"{where}: there is no {name}{_hint(root, leaf, choices)}")
        for leaf in _CAPTURE.findall(text):
            if leaf not in CAPTURE_NAMES:
                hint = _hint("capture", leaf, CAPTURE_NAMES)
                raise ConfigError(f"{where}: there is no capture.{leaf}{hint}")
        verdicts = get_args(Verdict)
        for quoted in _VERDICT.findall(one.expect):
            if quoted[1:-1] not in verdicts:
                near = get_close_matches(quoted[1:-1], verdicts, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f": use {', '.join(verdicts)}"
                raise ConfigError(f"{where}: there is no verdict {quoted[1:-1]!r}{hint}")
        if keys is not None:
            _refuse_keys(one, keys)
        if rules is not None:
            _refuse_rules(one, rules)


def judge(
    budgets: Sequence[Budget], result: Result, evaluate: Evaluate | None = None
) -> list[Judged]:
    """The outcome of every budget, evaluated in a child process unless `evaluate` is given.

    Raises ConfigError for one that can't be used on this result.
    """
    from moe_advisor.advise.sandbox import Sandbox

    validate(budgets)
    for one in budgets:
        _refuse_unknown(one, result)
    if evaluate is not None:
        return [_judge(one, result, evaluate) for one in budgets]
    with Sandbox() as sandbox:
        return [_judge(one, result, sandbox) for one in budgets]


def _refuse_unknown(budget: Budget, result: Result) -> None:
    """Config keys, trace facts and rules that exist neither anywhere nor in this run."""
    _refuse_keys(budget, {*known(), *result.run.config})
    for name in names(budget.expect):
        root, _, leaf = name.partition(".")
        if root in ("t", "hw"):
            table = result.run.facts if root == "t" else result.run.hardware
            # The facts have no closed list: a name close to one the run shows is a slip.
            near = [] if leaf in table else get_close_matches(leaf, list(table), 1, cutoff=0.85)
            if near:
                raise ConfigError(
                    f"{budget.where}: the run has no {name}; did you mean {root}.{near[0]}?"
                )
    if result.rules:
        _refuse_rules(budget, [rule.id for rule in result.rules])


def _refuse_keys(budget: Budget, keys: Collection[str]) -> None:
    for name in names(budget.expect):
        root, _, leaf = name.partition(".")
        if root == "c" and leaf not in keys:
            hint = _hint("c", leaf, sorted(keys))
            raise ConfigError(f"{budget.where}: there is no {name}{hint}")


def _refuse_rules(budget: Budget, rules: Collection[str]) -> None:
    for rule in _rules_named(budget.expect):
        if rule not in rules:
            near = get_close_matches(rule, sorted(rules), 1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see moe-advisor rules list"
            raise ConfigError(f"{budget.where}: there is no rule {rule!r}{hint}")


def uses_rules(budgets: Sequence[Budget]) -> bool:
    """Whether a budget names a rule, so that knowing all of them is worth reading them."""
    return any(_rules_named(one.expect) for one in budgets)


def _hint(root: str, leaf: str, choices: Sequence[str]) -> str:
    near = get_close_matches(leaf, choices, 1)
    if near:
        return f"; did you mean {root}.{near[0]}?"
    return f"; use {', '.join(choices)}" if len(choices) <= MAX_PLACES else ""


def _rules_named(expect: str) -> list[str]:
    """Rule ids that an expression compares findings with."""
    quoted = list(_IN.findall(expect))
    for variable in _BOUND.findall(expect):
        literal = r"('[^']*'|\"[^\"]*\")"
        quoted += re.findall(rf"\b{variable}\s*[!=]=\s*{literal}", expect)
        quoted += re.findall(rf"{literal}\s*[!=]=\s*{variable}\b", expect)
    return list(dict.fromkeys(text[1:-1] for text in quoted))


def _judge(budget: Budget, result: Result, evaluate: Evaluate) -> Judged:
    if reason := _looks_measured(budget.expect, result):
        return Judged(budget, "not_measured", reason)
    places = list(_places(budget, result))
    if not places:
        return Judged(budget, "not_measured", f"the result holds no {budget.scope} values")
    failed: list[tuple[str, str]] = []
    unknown: list[tuple[str, str]] = []
    shown = ""
    for words, values, ranges, absent in places:
        answer = _answer(budget.expect, result, values, ranges, evaluate)
        if answer.truth is Truth.ERROR:
            raise ConfigError(f"{budget.where}: {answer.error}")
        if answer.truth is Truth.UNKNOWN:
            unknown.append((words, _why(answer, result, absent)))
        elif answer.truth is Truth.NO:
            failed.append((words, _numbers(budget.expect, result, values, ranges)))
        else:
            shown = shown or _numbers(budget.expect, result, values, ranges)
    many = budget.scope != "run"
    if failed:
        return Judged(budget, "fail", _listed(failed, len(places), many), _words(failed))
    if unknown:
        return Judged(budget, "not_measured", _listed(unknown, len(places), many), _words(unknown))
    return Judged(budget, "pass", f"all {len(places)} {budget.scope}s" if many else shown)


def _looks_measured(expect: str, result: Result) -> str | None:
    """Why an answer would be no measurement although every name has a value, or None."""
    text = _STRING.sub("''", expect)
    if (
        re.search(r"\bwalls\.(verdict|limiter)\b", text)
        and result.walls.verdict == "inconclusive"
        and "inconclusive" not in expect
    ):
        why = "; ".join(result.walls.not_measured.values()) or result.walls.headline
        return f"the verdict is inconclusive: {why}"
    if re.search(r"(?<![\w.])findings\b", text):
        if not result.rules:
            return "no rule was evaluated on this result"
        outcomes = {rule.id: rule for rule in result.rules}
        for name in _rules_named(expect):
            rule = outcomes[name]
            if rule.outcome in ("not_measured", "error"):
                return f"rule {name}: {rule.reason}"
    return None


def _places(budget: Budget, result: Result) -> Iterator[Place]:
    used = [name[2:] for name in names(budget.expect) if name.startswith("m.")]
    metrics = {name: result.metrics[name] for name in used if name in result.metrics}
    if budget.scope == "run":
        values = {name: one.value for name, one in metrics.items() if one.value is not None}
        ranges = {
            name: (one.low, one.high)
            for name, one in metrics.items()
            if one.status == "estimated" and one.low is not None and one.high is not None
        }
        yield "", values, ranges, {}
        return
    for rank in sorted({value.rank for one in metrics.values() for value in one.per_rank}):
        per_rank = {name: _rank(one, rank) for name, one in metrics.items()}
        absent = {
            name: f"{name} is not kept per {budget.scope}"
            for name, one in metrics.items()
            if per_rank[name][0] is None and one.value is not None
        }
        if budget.scope == "rank":
            found = {name: value for name, (value, _) in per_rank.items() if value is not None}
            yield f"rank {rank}", found, {}, absent
            continue
        count = max(len(steps) for _, steps in per_rank.values())
        for step in range(count):
            at = {name: steps[step] for name, (_, steps) in per_rank.items() if step < len(steps)}
            named = result.steps.names
            words = named[step] if step < len(named) else f"step {step}"
            missing = {
                name: f"{name} is not kept per step"
                for name, one in metrics.items()
                if name not in at and one.value is not None
            }
            yield f"rank {rank}, {words}", at, {}, missing


def _rank(metric: MetricValue, rank: int) -> tuple[float | None, list[float]]:
    for one in metric.per_rank:
        if one.rank == rank:
            return one.value, one.steps
    return None, []


def _answer(
    expect: str,
    result: Result,
    values: dict[str, float],
    ranges: dict[str, tuple[float, float]],
    evaluate: Evaluate,
) -> Answer:
    """The answer that holds over the whole range of every estimate, else unknown."""
    context, extra = _context(result)
    names_in_doubt = list(ranges)[:MAX_CORNERS]
    first = evaluate(expect, {**context, "m": values}, extra)
    if first.truth in (Truth.ERROR, Truth.UNKNOWN):
        return first
    if len(ranges) > MAX_CORNERS:
        return Answer(Truth.UNKNOWN, tuple(f"m.{name}" for name in ranges))
    for corner in itertools.product(*(ranges[name] for name in names_in_doubt)):
        moved = values | dict(zip(names_in_doubt, corner, strict=True))
        if evaluate(expect, {**context, "m": moved}, extra).truth is not first.truth:
            return Answer(Truth.UNKNOWN, tuple(f"m.{name}" for name in names_in_doubt))
    return first


def _context(result: Result) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    walls = result.walls
    scores = {f"{name}_score": score for name, score in walls.scores.items()}
    return (
        {
            "c": {n: v.value for n, v in result.run.config.items() if v.value is not None},
            "hw": dict(result.run.hardware),
            "t": dict(result.run.facts),
            "walls": {
                "verdict": walls.verdict,
                "limiter": walls.limiter or "",
                "next": walls.next or "",
                "margin": walls.margin,
                **scores,
            },
        },
        {
            "findings": [one.id for one in result.rules if one.outcome == "finding"],
            "capture": {
                "complete": result.capture.complete,
                "issues": sorted({issue.id for issue in result.capture.issues}),
            },
        },
    )


def _why(answer: Answer, result: Result, absent: Mapping[str, str]) -> str:
    reasons = []
    for name in answer.missing:
        root, _, leaf = name.partition(".")
        metric = result.metrics.get(leaf) if root == "m" else None
        if leaf in absent:
            reasons.append(absent[leaf])
        elif metric is not None and metric.status == "estimated":
            reasons.append(
                f"{name} is only known to be {_short(metric.low)} to {_short(metric.high)} "
                f"{metric.unit}, which the budget divides"
            )
        elif root == "m":
            reason = metric.reason if metric else None
            reasons.append(f"{name}: {reason or 'not measured'}")
        else:
            reasons.append(f"{name} is not known: give --config FILE or --set")
    return "; ".join(dict.fromkeys(reasons)) or "a fact it needs is not known"


def _numbers(
    expect: str,
    result: Result,
    values: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
) -> str:
    """The values that the expression used, with their units."""
    context, extra = _context(result)
    shown = []
    for name in names(expect):
        root, _, leaf = name.partition(".")
        if root == "m" and leaf in values:
            text = f"{leaf} = {_short(values[leaf])} {METRICS[leaf].unit}"
            if leaf in ranges:
                text += f" ({_short(ranges[leaf][0])} to {_short(ranges[leaf][1])})"
            shown.append(text)
        elif root != "m" and leaf in context.get(root, {}):
            shown.append(f"{name} = {context[root][leaf]}")
    text = _STRING.sub("''", expect)
    if re.search(r"(?<![\w.])findings\b", text):
        named = _rules_named(expect)
        found = [one for one in extra["findings"] if not named or one in named]
        shown.append(f"findings: {', '.join(found[:MAX_PLACES]) or 'none of these'}")
    if "capture.complete" in text:
        shown.append(f"capture.complete = {str(result.capture.complete).lower()}")
    if "capture.issues" in text:
        shown.append(f"capture issues: {', '.join(extra['capture']['issues']) or 'none'}")
    return ", ".join(shown)


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _listed(rows: Sequence[tuple[str, str]], places: int, many: bool) -> str:
    """What failed where; a reason that all share is said once."""
    if not many:
        return rows[0][1]
    if len({text for _, text in rows}) == 1:
        return f"{len(rows)} of {places}: {rows[0][1]}"
    some = "; ".join(f"{words}: {text}" for words, text in rows[:MAX_PLACES])
    more = f"; and {len(rows) - MAX_PLACES} more" if len(rows) > MAX_PLACES else ""
    return f"{len(rows)} of {places}: {some}{more}"


def _words(rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(words for words, _ in rows if words)
