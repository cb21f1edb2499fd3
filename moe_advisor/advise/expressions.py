"""CEL expressions of rules: compiled once, evaluated on the names they use, with limits.

The CEL engine has no limits of its own, so a source is checked before it is compiled. Rules that
do not ship with the program are evaluated in a child process (`sandbox`). Numbers go in as floats:
CEL does not mix integers and floats.
"""

import importlib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Any, Protocol

from moe_advisor.errors import RuleError

MAX_SOURCE = 2000
"""Characters of an expression: long sums of terms overflow the engine's stack."""

MAX_NESTED_MACROS = 2
"""Each level multiplies the work by the length of a list."""

MAX_LIST = 256
"""Elements of a list in the facts that reach an expression; a longer one is cut."""

ROOTS = ("m", "c", "hw", "t", "k", "walls")

_NAME = re.compile(r"(?<![\w.'\"])(m|c|hw|t|k|walls)\.([A-Za-z_][A-Za-z0-9_]*)")
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_HAS = re.compile(r"\bhas\(\s*(m|c|hw|t|k|walls)\.([A-Za-z_][A-Za-z0-9_]*)\s*\)")
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*$")

Context = Mapping[str, Mapping[str, Any]]


class Truth(Enum):
    """What an expression says of the facts."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Answer:
    """Result of an expression; `missing` are the names (`c.x`) the answer depends on."""

    truth: Truth
    missing: tuple[str, ...] = ()
    error: str = ""


class Evaluator(Protocol):
    """Something that evaluates an expression on facts."""

    def __call__(self, source: str, context: Context) -> Answer:
        """The answer of `source` on `context`; never raises."""


def check_source(source: str, extra: Collection[str] = ()) -> str | None:
    """Why `source` can't be used as an expression, or None; `extra` roots are allowed too."""
    if len(source) > MAX_SOURCE:
        return f"expression of {len(source)} characters; at most {MAX_SOURCE}"
    if _macro_depth(source) > MAX_NESTED_MACROS:
        return f"more than {MAX_NESTED_MACROS} nested macros (all, exists, map, filter)"
    try:
        program = _compile(source)
    except RuleError as error:
        return str(error)
    unknown = [name for name in program.variables() if name not in (*ROOTS, *extra)]
    bound = set(re.findall(r"(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,", source))
    unknown = [name for name in unknown if name not in bound]
    if unknown:
        return f"unknown name {unknown[0]!r}; use {', '.join((*ROOTS, *extra))}"
    return None


def names(source: str) -> tuple[str, ...]:
    """The facts an expression refers to, as `root.name`, in order of first use."""
    found = _NAME.findall(_STRING.sub("''", source))
    return tuple(dict.fromkeys(f"{root}.{name}" for root, name in found))


def evaluate(source: str, context: Context, extra: Mapping[str, Any] | None = None) -> Answer:
    """Evaluate in this process; for rules that ship with the program.

    `extra` holds further names as they are: what gates may use and rules may not.
    """
    used = names(source)
    values: dict[str, Any] = {root: {} for root in ROOTS} | dict(extra or {})
    absent = []
    for name in used:
        root, _, leaf = name.partition(".")
        table = context.get(root, {})
        if leaf in table:
            values[root][leaf] = plain(table[leaf])
        else:
            absent.append(name)
    try:
        result = _compile(source).execute(values)
    except KeyError as error:
        leaf = str(error.args[0]) if error.args else ""
        guarded = {f"{root}.{name}" for root, name in _HAS.findall(source)}
        needed = [name for name in absent if name not in guarded]
        # The engine names one absent fact only; the others it did not get to follow.
        needed.sort(key=lambda name: name.partition(".")[2] != leaf)
        return Answer(Truth.UNKNOWN, tuple(needed or absent))
    except RuleError as error:
        return Answer(Truth.ERROR, error=str(error))
    except Exception as error:
        # The engine's errors share no base class; a bad rule must not end the analysis.
        return Answer(Truth.ERROR, error=f"{type(error).__name__}: {_first_sentence(error)}")
    if result is True:
        return Answer(Truth.YES)
    if result is False:
        return Answer(Truth.NO)
    return Answer(
        Truth.ERROR, error=f"the expression gives {type(result).__name__}, not true/false"
    )


def plain(value: Any) -> Any:
    """A value as CEL takes it: numbers as floats, tuples and sets as short lists."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in list(value)[:MAX_LIST]]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in list(value.items())[:MAX_LIST]}
    return str(value)


@cache
def _cel() -> Any:
    """The package cel, without the command line that it imports with itself.

    That one brings prompt_toolkit and rich, which are 0.13 s of 0.15.
    """
    if "cel" in sys.modules:
        return sys.modules["cel"]
    sys.modules["cel.cli"] = ModuleType("cel.cli")
    try:
        cel = importlib.import_module("cel")
    except (ImportError, AttributeError):  # a version that needs it
        del sys.modules["cel.cli"]
        return importlib.import_module("cel")
    # Whoever asks for it later gets the real one.
    del sys.modules["cel.cli"], vars(cel)["cli"]
    return cel


@cache
def _compile(source: str) -> Any:
    cel = _cel()
    try:
        return cel.compile(source)
    except ValueError as error:
        raise RuleError(f"not a CEL expression: {_first_sentence(error)}") from None


def _first_sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _macro_depth(source: str) -> int:
    """Deepest nesting of comprehension macros, counted on brackets outside strings."""
    text = _STRING.sub("''", source)
    stack: list[bool] = []
    depth = deepest = 0
    for position, char in enumerate(text):
        if char == "(":
            macro = bool(_MACRO.search(text[max(0, position - 24) : position]))
            stack.append(macro)
            depth += macro
            deepest = max(deepest, depth)
        elif char == ")" and stack:
            depth -= stack.pop()
    return deepest
