"""Changes to inputs that keep their structure, so that what is broken lies deep inside.

Every choice comes from `pick(n)`, a number from 0 to n - 1: atheris draws it from a seeded
generator, hypothesis from its own, so that it can shrink what it finds.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Pick = Callable[[int], int]

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 256, 65_535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**53 + 1,
    2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, 0.5, -0.0, 1e-300, 1e300, 1e308,
)  # fmt: skip
TEXTS = (
    "", " ", "0", "-1", "NaN", "Infinity", "null", "true", "[0, 1]", "[]", "{}", "a" * 300,
    "\u202e\x1b[31m", "\x00", "\ud7ff", "é漢", "<script>", "%s%n{0}", "../../x", "${HOME}",
    "iteration 1", "ProfilerStep#1", "ncclDevKernel_SendRecv", "void gemm<int>(float*)",
    "nccl:all_to_all", "record_param_comms", "1e999", "9" * 40, "2026-99-99", "!!python/object:x",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None})
TOKENS = (
    b"\x00", b"\xff", b"\x1f\x8b", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"\r",
    b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"-", b"null", b'"traceEvents":[', b'"ph":"X"',
    b"\xef\xbb\xbf", b"}]}", b"%", b"'", b"#", b"&a *a", b"!!x", b"--", b"=", b"$(", b"\xed\xa0\x80",
)  # fmt: skip


def pick_from(pick: Pick, values: Any) -> Any:
    """One of `values`."""
    return values[pick(len(values))]


def scalar(pick: Pick) -> Any:
    """A value that programs stumble over."""
    return pick_from(pick, (NUMBERS, TEXTS, OTHERS)[pick(3)])


# --- trees: JSON documents ------------------------------------------------------------------


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in the tree."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        items: Iterator[tuple[Any, Any]] = (
            iter(node.items()) if isinstance(node, dict) else iter(enumerate(node))
        )
        for key, child in items:
            found.append((node, key))
            if isinstance(child, dict | list):
                stack.append(child)
    return found


def _place(tree: Any, pick: Pick, stop_one_in: int = 4) -> tuple[Any, Any] | None:
    """A random place, reached by walking down and stopping at one step in `stop_one_in`."""
    node, found = tree, None
    while isinstance(node, dict | list) and node:
        key = pick_from(pick, list(node) if isinstance(node, dict) else range(len(node)))
        found = (node, key)
        if pick(stop_one_in) == 0:
            break
        node = node[key]
    return found


def mutate_tree(tree: Any, pick: Pick, donor: Any = None) -> Any:
    """`tree`, a list or dict, changed in place at one to four spots; returned."""
    for _ in range(1 + pick(4)):
        spot = _place(tree, pick)
        if spot is None:
            return tree
        node, key = spot
        value = node[key]
        kind = pick(12)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node[key:key] = [json.loads(json.dumps(value))] * (1 + pick(3))
        elif kind == 2 and isinstance(node, dict):
            node[pick_from(pick, TEXTS)] = node.pop(key)
        elif kind == 3:
            other = _place(tree, pick)
            if other is not None and key in _keys(node) and other[1] in _keys(other[0]):
                # A copy, since a tree that holds itself can't be written.
                node[key] = json.loads(json.dumps(other[0][other[1]]))
        elif kind == 4:
            node[key] = [value] if pick(2) else {"value": value}
        elif kind == 5 and isinstance(value, int | float) and not isinstance(value, bool):
            node[key] = (-value, value + 1, value - 1, value * 1000, value / 7, str(value))[pick(6)]
        elif kind == 6 and isinstance(value, list) and value:
            value.reverse() if pick(2) else value.sort(key=str)
        elif kind == 7 and isinstance(value, str):
            node[key] = mutate_text(value, pick)
        elif kind == 8 and donor is not None:
            other = _place(donor, pick)
            if other is not None:
                node[key] = json.loads(json.dumps(other[0][other[1]]))
        elif kind == 9 and isinstance(value, list) and len(value) > 1:
            del value[pick(len(value)) :]
        elif kind == 10 and isinstance(key, str):
            _everywhere(tree, key, scalar(pick), pick)
        else:
            node[key] = scalar(pick)
    return tree


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _everywhere(tree: Any, key: str, value: Any, pick: Pick) -> None:
    """Sets, or drops, `key` in every object that has it: a field that a writer leaves out."""
    drop = pick(2) == 0
    for node, name in _places(tree):
        if name == key and isinstance(node, dict) and key in node:
            if drop:
                del node[key]
            else:
                node[key] = value


def mutate_values(tree: Any, pick: Pick, donor: Any) -> Any:
    """`tree` changed at one to four spots so that every value keeps its type; returned.

    What a schema allows stays likely to be allowed: texts come from the same key elsewhere.
    """
    pool: dict[Any, list[Any]] = {}
    for node, key in [*_places(tree), *_places(donor)]:
        pool.setdefault(key if isinstance(key, str) else None, []).append(node[key])
    for _ in range(1 + pick(4)):
        spot = _place(tree, pick, stop_one_in=8)  # a schema's outer places are few
        if spot is None:
            return tree
        node, key = spot
        value = node[key]
        if isinstance(value, bool):
            node[key] = not value
        elif isinstance(value, int | float):
            node[key] = _number_like(value, pick)
        elif isinstance(value, list) and value:
            kind = pick(4)
            if kind == 0:
                del value[pick(len(value)) :]
            elif kind == 1:
                value.append(json.loads(json.dumps(pick_from(pick, value))))
            elif kind == 2:
                value.reverse()
            else:
                del value[pick(len(value))]
        elif isinstance(value, dict) and value and pick(3) == 0:
            del value[pick_from(pick, list(value))]
        elif isinstance(value, str) and isinstance(node, dict) and pick(4) == 0:
            node[key] = str(pick_from(pick, TEXTS))
        else:
            same = [one for one in pool.get(key, ()) if type(one) is type(value) or value is None]
            if same:
                node[key] = json.loads(json.dumps(pick_from(pick, same)))
    return tree


def _number_like(value: int | float, pick: Pick) -> int | float:
    """Another number of the same type."""
    if isinstance(value, int):
        whole = [one for one in NUMBERS if isinstance(one, int)]
        return pick_from(pick, (value + 1, -value, 0, value * 1000, pick_from(pick, whole)))
    real = [float(one) for one in NUMBERS if abs(one) < 10**300]
    return pick_from(pick, (value * 2, -value, value / 7, 0.0, pick_from(pick, real)))


# --- tables: {table: {"columns": {name: type}, "rows": [[cell]]}} --------------------------------


def mutate_tables(tables: dict[str, Any], pick: Pick) -> dict[str, Any]:
    """An export with columns, rows or cells changed in place; returned."""
    for _ in range(1 + pick(3)):
        if not tables:
            return tables
        name = pick_from(pick, sorted(tables))
        table = tables[name]
        columns, rows = table["columns"], table["rows"]
        kind = pick(12)
        at = pick(len(columns)) if columns else 0
        if kind == 0:
            del tables[name]
        elif kind == 1 and columns:
            table["columns"] = columns[:at] + columns[at + 1 :]
            for row in rows:
                del row[at]
        elif kind == 2 and columns:
            columns[at][0] = pick_from(pick, TEXTS) or "renamed"
        elif kind == 3 and columns:
            columns[at][1] = pick_from(pick, ("TEXT", "INTEGER", "REAL", "BLOB", ""))
        elif kind in (4, 5) and columns and rows:
            value = cell(pick)
            for row in rows:
                row[at] = value
        elif kind in (6, 7) and columns and rows:
            pick_from(pick, rows)[at] = cell(pick)
        elif kind == 8 and rows:
            table["rows"] = [list(row) for row in rows for _ in range(2)][: 2 * pick(len(rows)) + 2]
        elif kind == 9 and rows:
            del rows[pick(len(rows)) :]
        elif kind == 10 and columns and rows:
            factor = pick_from(pick, (-1, 0, 2, 10**9, 10**15))
            for row in rows:
                if isinstance(row[at], int):
                    row[at] *= factor
        elif kind == 11 and columns and rows:
            other = pick(len(columns))
            for row in rows:
                row[at] = row[other]
    return tables


def cell(pick: Pick) -> Any:
    """A cell: number, text, NULL, or bytes as {"hex": ...}."""
    kind = pick(4)
    if kind == 0:
        return {"hex": bytes(pick(256) for _ in range(pick(40))).hex()}
    value = scalar(pick)
    return value if kind == 1 and not isinstance(value, dict | list) else pick_from(pick, NUMBERS)


# --- text and bytes --------------------------------------------------------------------------

_WORDS = re.compile(r"\w+|\s+|[^\w\s]+")


def mutate_text(text: str, pick: Pick, donor: str = "") -> str:
    """Words and lines dropped, doubled, swapped and replaced."""
    by_line = pick(2) == 0
    parts = text.splitlines(keepends=True) if by_line else _WORDS.findall(text[:20_000])
    for _ in range(1 + pick(4)):
        if not parts:
            return str(pick_from(pick, TEXTS))
        at, kind = pick(len(parts)), pick(7)
        if kind == 0:
            del parts[at : at + 1 + pick(4)]
        elif kind == 1:
            parts[at:at] = parts[at : at + 1 + pick(6)] * (1 + pick(3))
        elif kind == 2:
            other = pick(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = str(scalar(pick))
        elif kind == 4 and donor:
            parts[at] = pick_from(pick, donor.splitlines(keepends=True) or [""])
        elif kind == 5:
            parts[at] = parts[at][: pick(len(parts[at]) + 1)]
        else:
            parts[at] += str(pick_from(pick, TEXTS))
    return "".join(parts)


def mutate_bytes(data: bytes, pick: Pick, donor: bytes = b"") -> bytes:
    """Bytes flipped, cut, doubled, overwritten and spliced."""
    out = bytearray(data)
    for _ in range(1 + pick(4)):
        at, kind = pick(len(out) + 1), pick(8)
        if kind == 0:
            for _ in range(1 + pick(8)):
                if out:
                    out[pick(len(out))] ^= 1 << pick(8)
        elif kind == 1:
            del out[at : at + 1 + pick(1 + pick(4096))]
        elif kind == 2:
            out[at:at] = out[at : at + 1 + pick(512)]
        elif kind == 3:
            out[at:at] = pick_from(pick, TOKENS)
        elif kind == 4:
            value = pick_from(pick, (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31, 2**32 - 1))
            size = pick_from(pick, (1, 2, 4, 8))
            wide = (value & (256**size - 1)).to_bytes(size, pick_from(pick, ("big", "little")))
            out[at : at + size] = wide
        elif kind == 5:
            del out[at:]
        elif kind == 6 and donor:
            begin = pick(len(donor))
            out[at : at + pick(256)] = donor[begin : begin + pick(1024)]
        elif kind == 7:
            length = 1 + pick(64)
            out[at : at + length] = bytes([pick_from(pick, (0, 255, 32))]) * length
    return bytes(out)
