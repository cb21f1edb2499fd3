"""The diagram against the imports."""

from collections import defaultdict
from pathlib import Path

import architecture
import grimp
import pytest

import moe_advisor

SIDE_DOORS = {"scrub", "recipe"}
"""Packages beside the flow: they copy a trace, or call the program from elsewhere."""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    graph = grimp.build_graph("moe_advisor", exclude_type_checking_imports=True)
    found: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        room = module.split(".")[1] if "." in module else ""
        for other in graph.find_modules_directly_imported_by(module):
            target = other.split(".")[1] if "." in other else ""
            if room != target:
                found[room].add(target)
    found.pop("", None)
    return found


NAMES = {room.name for room in architecture.ROOMS}


@pytest.mark.parametrize("arrow", architecture.ARROWS, ids=lambda a: f"{a.start}-{a.end}")
def test_every_arrow_is_an_import_or_a_contract_that_both_import(
    arrow: architecture.Arrow, imports: dict[str, set[str]]
) -> None:
    if arrow.through in architecture.CONTRACTS:
        assert arrow.through in imports[arrow.start]
        assert arrow.through in imports[arrow.end]
    else:
        assert arrow.through == arrow.start
        assert arrow.start in imports[arrow.end]
    both_ways = any((a.start, a.end) == (arrow.end, arrow.start) for a in architecture.ARROWS)
    assert both_ways or arrow.end not in imports[arrow.start], "an import against the arrow"


def test_every_import_between_pictured_rooms_is_along_the_arrows(
    imports: dict[str, set[str]],
) -> None:
    onward: dict[str, set[str]] = {name: set() for name in NAMES}
    for name in NAMES:
        todo = [name]
        while todo:
            here = todo.pop()
            for arrow in architecture.ARROWS:
                if arrow.start == here and arrow.end not in onward[name]:
                    onward[name].add(arrow.end)
                    todo.append(arrow.end)
    against = [
        f"{room} imports {other}"
        for room in sorted(NAMES)
        for other in sorted(imports[room] & NAMES)
        if room not in onward[other]
    ]
    assert against == []


def test_no_package_is_missing() -> None:
    root = Path(moe_advisor.__file__).parent
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    known = NAMES | set(architecture.ORCHESTRATORS) | SIDE_DOORS
    assert packages - known == set(), "draw it in docs/architecture.py or list it here"
    modules = {path.stem for path in root.glob("*.py")}
    assert packages | modules >= NAMES, "drawn, but gone"
