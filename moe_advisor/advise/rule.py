"""The rule format: one YAML file per rule, read into immutable records.

A broken file is refused with its name, the line and the field. Files from outside the package are
read with the same safe loader and the same limits: no anchors, bounded size, bounded expressions.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from moe_advisor.advise import expressions, safe_yaml
from moe_advisor.errors import RuleError
from moe_advisor.keys import Framework, environment_names, known
from moe_advisor.measure.registry import METRICS
from moe_advisor.resources import rules_dir
from moe_advisor.result import Outcome

MAX_FILE_BYTES = 128 * 1024
"""The longest rule that ships is under 20 kB."""

MAX_FILES = 1000
"""Files read from one folder of rules."""

WHATIFS = (
    "ep-overlap",
    "dispatcher",
    "cuda-graphs",
    "grouped-gemm",
    "permute-fusion",
    "host-syncs",
    "recompute",
    "balanced-experts",
    "link",
    "stragglers",
)

CONSEQUENCES = ("raises", "hangs", "out of memory", "silently ignored", "slower", "warns", "wrong")
"""First words of a consequence; see `blocks`."""

_BLOCKING = ("raises", "hangs", "out of memory", "silently ignored", "wrong")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ANCHOR = re.compile(r"(?m)(?:^|[\s\[{,:-])[&*][A-Za-z0-9_]")
_PLACE = re.compile(r"\{([a-z]+)\.([A-Za-z_0-9]+)(?::([^{}]*))?\}")

Wall = Literal["memory", "communication", "compute_host", "capture"]
Level = Literal["low", "medium", "high"]
Phase = Literal["measure", "fit", "scale", "profile"]


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Base of the parts of a rule file: immutable, unknown fields are errors."""


class Threshold(_Spec, frozen=True, kw_only=True):
    """A named limit (`k.<name>` in expressions) with the reason for its value."""

    value: float
    reason: str


class ChangeSpec(_Spec, frozen=True, kw_only=True):
    """A setting to change; without a framework it is a Megatron-Core field, spelt for both."""

    key: str
    to: Any
    drop: list[str] | None = None
    """Of a list: `to` is added to the present items and these are taken out, all others stay."""
    framework: Framework | None = None
    when: str | None = None
    since: str | None = None
    until: str | None = None
    note: str | None = None


class RequireSpec(_Spec, frozen=True, kw_only=True):
    """A prerequisite: `met` is true on the configuration as it is after the changes."""

    text: str
    met: str
    consequence: str
    source: str
    resolve: list[ChangeSpec] = []


class ConflictSpec(_Spec, frozen=True, kw_only=True):
    """A state that must not be: `violated` is true on the configuration after the changes."""

    text: str
    violated: str
    consequence: str
    source: str
    resolve: list[ChangeSpec] = []


class EvidenceSpec(_Spec, frozen=True, kw_only=True):
    """A published measurement; `change_share` is the change of step time, negative is faster."""

    text: str
    source: str
    change_share: float | None = None


class EstimateSpec(_Spec, frozen=True, kw_only=True):
    """The what-if that prices the change, or why there is none.

    `bound` names the metric, in ms per step, of which `share` is the most the change can gain.
    """

    whatif: str | None = None
    reason: str | None = None
    bound: str | None = None
    share: float = 1.0


class WithholdSpec(_Spec, frozen=True, kw_only=True):
    """When the finding stands but the change must not be made yet."""

    when: str
    reason: str


class Case(_Spec, frozen=True, kw_only=True):
    """Facts and the outcome they must give."""

    name: str
    expect: Outcome
    m: dict[str, float] = {}
    c: dict[str, Any] = {}
    hw: dict[str, Any] = {}
    t: dict[str, Any] = {}
    gpu: str | None = None
    withheld: bool | None = None
    asks: str | None = None


class Rule(_Spec, frozen=True, kw_only=True):
    """One rule. Texts may hold placeholders such as `{m.step_ms:.1f}`."""

    id: str
    title: str
    wall: Wall
    severity: Level
    confidence: Level
    phase: Phase
    when: str
    finding: str
    passes: str
    changes: list[ChangeSpec]
    estimate: EstimateSpec
    verify: str
    why: str
    cases: list[Case]
    applies: str | None = None
    not_applicable: str = "It does not concern this run."
    ask: str | None = None
    thresholds: dict[str, Threshold] = {}
    requires: list[RequireSpec] = []
    conflicts: list[ConflictSpec] = []
    withhold: list[WithholdSpec] = []
    evidence: list[EvidenceSpec] = []
    counter_evidence: list[EvidenceSpec] = []
    when_not: str = ""
    known_problems: list[str] = []
    references: list[str] = []
    symptom_of: list[str] = []
    excludes: list[str] = []
    after: list[str] = []
    topic: str = ""
    foreign: bool = False
    """Whether the rule comes from the user; set by the loader, never by a file."""


class Disabled(_Spec, frozen=True, kw_only=True):
    """A user's file that turns a shipped rule off."""

    id: str
    disabled: Literal[True]


def blocks(consequence: str) -> bool:
    """Whether a broken condition with this consequence must stop the change."""
    return consequence.startswith(_BLOCKING)


def load_rules(extra_dirs: Sequence[Path | str] = ()) -> tuple[Rule, ...]:
    """The shipped rules and those of `extra_dirs`, sorted by topic and id.

    A rule of a later folder replaces the one with its id; a file `{id: x, disabled: true}` removes
    it. Raises RuleError for a file that breaks the format.
    """
    rules = {rule.id: rule for rule in _shipped()}
    for folder in extra_dirs:
        for found in read_folder(Path(folder), foreign=True):
            if isinstance(found, Disabled):
                rules.pop(found.id, None)
            else:
                rules[found.id] = found
    return tuple(sorted(rules.values(), key=lambda rule: (rule.topic, rule.id)))


@lru_cache(maxsize=1)
def _shipped() -> tuple[Rule, ...]:
    # Shipped files were checked in full by the tests; checking again would import the CEL engine.
    found = read_folder(rules_dir(), thorough=False)
    return tuple(rule for rule in found if isinstance(rule, Rule))


def read_folder(
    folder: Path, *, foreign: bool = False, thorough: bool = True
) -> list[Rule | Disabled]:
    """All rule files below a folder, in the order of their paths. Raises RuleError.

    Without `thorough` only the types are checked, not the names and expressions.
    """
    if not folder.is_dir():
        raise RuleError(f"{folder}: no such folder of rules")
    paths = sorted(path for pattern in ("*.yaml", "*/*.yaml") for path in folder.glob(pattern))
    if len(paths) > MAX_FILES:
        raise RuleError(f"{folder}: {len(paths)} rule files; at most {MAX_FILES} are read")
    seen: dict[str, Path] = {}
    found: list[Rule | Disabled] = []
    for path in paths:
        topic = "" if path.parent == folder else path.parent.name
        rule = read_file(path, topic=topic, thorough=thorough)
        if rule.id in seen:
            raise RuleError(f"{path}: id {rule.id!r} is also in {seen[rule.id].name}")
        seen[rule.id] = path
        if foreign and isinstance(rule, Rule):
            rule = msgspec.structs.replace(rule, foreign=True)
        found.append(rule)
    return found


def read_file(path: Path, topic: str = "", *, thorough: bool = True) -> Rule | Disabled:
    """One rule file. Raises RuleError naming file, line and field."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RuleError(f"{path}: larger than {MAX_FILE_BYTES // 1024} kB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RuleError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RuleError(f"{path}: not UTF-8 text") from None
    return parse(text, str(path), topic=topic, stem=path.stem, thorough=thorough)


def parse(
    text: str, where: str, *, topic: str = "", stem: str | None = None, thorough: bool = True
) -> Rule | Disabled:
    """A rule from YAML text; `where` names it in errors. Raises RuleError."""
    document = _yaml(text, where)
    if not isinstance(document, dict):
        raise RuleError(f"{where}:1: a rule is a mapping of fields")
    kind: type[Rule] | type[Disabled] = Disabled if "disabled" in document else Rule
    for name in ("topic", "foreign"):
        if name in document:
            raise RuleError(_at(text, where, [name], "is set by the folder, not by the file"))
    try:
        rule = msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        raise RuleError(_at(text, where, _path_parts(path), message)) from None
    if isinstance(rule, Disabled):
        return rule
    for path_parts, message in _problems(rule, stem) if thorough else ():
        raise RuleError(_at(text, where, path_parts, message))
    return msgspec.structs.replace(rule, topic=topic)


def expressions_of(rule: Rule) -> Iterator[tuple[list[str | int], str]]:
    """Every expression of a rule with its place in the file."""
    if rule.applies is not None:
        yield ["applies"], rule.applies
    yield ["when"], rule.when
    for i, withhold in enumerate(rule.withhold):
        yield ["withhold", i, "when"], withhold.when
    for i, require in enumerate(rule.requires):
        yield ["requires", i, "met"], require.met
    for i, conflict in enumerate(rule.conflicts):
        yield ["conflicts", i, "violated"], conflict.violated
    for i, change in enumerate(rule.changes):
        if change.when is not None:
            yield ["changes", i, "when"], change.when


def all_changes(rule: Rule) -> Iterator[tuple[list[str | int], ChangeSpec]]:
    """Every change a rule can make, those that complete a condition included."""
    for i, change in enumerate(rule.changes):
        yield ["changes", i], change
    conditions: Iterable[tuple[str, Sequence[RequireSpec | ConflictSpec]]] = (
        ("requires", rule.requires),
        ("conflicts", rule.conflicts),
    )
    for part, specs in conditions:
        for i, spec in enumerate(specs):
            for j, change in enumerate(spec.resolve):
                yield [part, i, "resolve", j], change


def change_problem(change: ChangeSpec) -> str | None:
    """Why a change names a key that the frameworks do not have, or None."""
    if change.framework in ("pytorch", "job"):
        return None
    if change.framework == "env":
        if change.key not in environment_names():
            return f"unknown environment variable {change.key!r}"
        return None
    key = known().get(change.key)
    if key is None:
        return f"unknown configuration key {change.key!r}"
    if change.drop is not None and (key.kind != "list" or not isinstance(change.to, list)):
        return f"{change.key}: drop is for lists only"
    wanted = change.to if isinstance(change.to, list) else [change.to]
    for value in [*wanted, *(change.drop or ())]:
        if key.values and isinstance(value, str) and value not in key.values:
            return f"{change.key} has no value {value!r}; it has {', '.join(key.values)}"
    return None


def _problems(rule: Rule, stem: str | None) -> Iterator[tuple[list[str | int], str]]:
    """What the types can't say: names that must exist, expressions, the three kinds of case."""
    if not _ID.fullmatch(rule.id):
        yield ["id"], "use lower-case words joined by hyphens"
    if stem is not None and rule.id != stem:
        yield ["id"], f"must be the file's name, {stem!r}"
    for place, source in expressions_of(rule):
        problem = expressions.check_source(source)
        if problem:
            yield place, problem
        for name in expressions.names(source):
            root, _, leaf = name.partition(".")
            if root == "m" and leaf not in METRICS:
                yield place, f"unknown metric {name!r}"
            if root == "k" and leaf not in rule.thresholds:
                yield place, f"{name!r} is not in thresholds"
    for field_name in ("finding", "passes"):
        for root, leaf, _ in _PLACE.findall(getattr(rule, field_name)):
            if root == "m" and leaf not in METRICS:
                yield [field_name], f"unknown metric 'm.{leaf}'"
            if root not in expressions.ROOTS:
                yield [field_name], f"unknown name {root!r}; use {', '.join(expressions.ROOTS)}"
    if rule.estimate.whatif is not None and rule.estimate.whatif not in WHATIFS:
        yield ["estimate", "whatif"], f"unknown what-if; use one of {', '.join(WHATIFS)}"
    if (rule.estimate.whatif is None) == (rule.estimate.reason is None):
        yield ["estimate"], "give either whatif, or the reason why there is none"
    bound = rule.estimate.bound
    if bound is not None and (bound not in METRICS or METRICS[bound].unit != "ms/step"):
        yield ["estimate", "bound"], f"{bound!r} is no metric in ms/step"
    elif bound is not None and rule.estimate.reason is None:
        yield ["estimate", "bound"], "goes with a reason, not with a what-if"
    for place, change in all_changes(rule):
        problem = change_problem(change)
        if problem:
            yield [*place, "key"], problem
    conditions: Iterable[tuple[str, Sequence[RequireSpec | ConflictSpec]]] = (
        ("requires", rule.requires),
        ("conflicts", rule.conflicts),
    )
    for part, specs in conditions:
        for i, spec in enumerate(specs):
            if not spec.consequence.startswith(CONSEQUENCES):
                yield [part, i, "consequence"], f"begins with one of {', '.join(CONSEQUENCES)}"
    expected = {case.expect for case in rule.cases}
    if "finding" not in expected:
        yield ["cases"], "needs a case that expects finding"
    if not expected & {"pass", "not_applicable"}:
        yield ["cases"], "needs a case that expects pass or not_applicable"
    if "not_measured" not in expected:
        yield ["cases"], "needs a case that expects not_measured"


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        if _ANCHOR.search(text):
            for token in yaml.scan(text, Loader=safe_yaml.loader()):
                if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
                    line = token.start_mark.line + 1
                    raise RuleError(f"{where}:{line}: anchors and aliases are not allowed")
        return safe_yaml.load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise RuleError(f"{where}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RuleError(f"{where}: not YAML: {' '.join(str(error).split())[:120]}") from None


def _path_parts(path: str) -> list[str | int]:
    """`$.requires[0].met` as ["requires", 0, "met"]."""
    parts: list[str | int] = []
    for name, index in re.findall(r"\.([A-Za-z_]\w*)|\[(\d+)\]", path):
        parts.append(name or int(index))
    return parts


def _at(text: str, where: str, parts: Sequence[str | int], message: str) -> str:
    """The message with file, line and field. The line comes from a second, slower parse."""
    field = ""
    for part in parts:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    line = _line_of(text, parts)
    return f"{where}:{line}: {field + ': ' if field else ''}{message}"


def _line_of(text: str, parts: Sequence[str | int]) -> int:
    import yaml

    line = 1
    try:
        node = yaml.compose(text, Loader=safe_yaml.loader())
    except (yaml.YAMLError, ValueError, RecursionError):
        return line
    for part in parts:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, child = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            break
        node = child
    return line


@cache
def json_schema() -> dict[str, Any]:
    """The JSON Schema of a rule file, for editors."""
    schema = msgspec.json.schema(Rule)
    body = schema["$defs"]["Rule"]
    for name in ("topic", "foreign"):
        body["properties"].pop(name)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moe-advisor rule",
        **schema,
    }
