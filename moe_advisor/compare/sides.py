"""What a side of a comparison means: one run, or the repeats in a folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from moe_advisor.errors import InputError
from moe_advisor.ingest import sniff
from moe_advisor.privacy import display_name

REPEAT = re.compile(r"(?:run|repeat|rep|seed|try|attempt)[-_.]?\d+(?:\..*)?", re.IGNORECASE)
"""Names of repeats. Other folders and files inside a folder are the ranks of one run."""

MAX_REPEATS = 1000


def runs_of(text: str) -> list[str]:
    """The paths of the runs that a side names, one each; a side that is one run is itself.

    A folder holds repeats where it holds several results, or where all its folders and trace
    files are named as repeats (run1, repeat-2, seed3.sqlite ...).
    """
    path = Path(text)
    if not path.is_dir():
        return [text]
    children = sorted(
        (child for child in path.iterdir() if not child.name.startswith(".")),
        key=lambda child: [
            int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", child.name)
        ],
    )
    results = [child for child in children if child.is_file() and is_result(child)]
    if results:
        found = results
    else:
        named = [child for child in children if REPEAT.fullmatch(child.name)]
        traces = [child for child in children if child.is_dir() or _is_trace(child)]
        found = named if named and set(traces) <= set(named) else []
    if len(found) > MAX_REPEATS:
        raise InputError(f"{display_name(path)}: {len(found)} repeats; at most {MAX_REPEATS}")
    return [str(child) for child in found] or [text]


def is_result(path: Path) -> bool:
    """Whether the file is an earlier result."""
    return path.suffix == ".json" and _detected(path) == "result"


def _is_trace(path: Path) -> bool:
    return _detected(path) is not None


def _detected(path: Path) -> str | None:
    try:
        return sniff.detect(path)
    except InputError:
        return None


def name_of(text: str, others: Sequence[str] = ()) -> str:
    """A short name for a side, without the folders that lead to it."""
    path = Path(text)
    name = path.name or path.resolve().name
    for ending in (".gz", ".json", ".sqlite", ".nsys-rep", ".moe"):
        name = name.removesuffix(ending)
    name = re.sub(r"[._-]?rank[*\d\[\]-]*$", "", name) or name
    if name in ("result", *others) and path.parent.name:
        name = f"{path.parent.name}/{name}"
    return display_name(name) if name else "run"
