"""Floating-point operations of matrix products, from the shapes that `record_shapes` writes."""

from functools import lru_cache

import msgspec

from moe_advisor.model import NONE

MAX_FLOPS = 1 << 60
"""More than any GPU does in an hour: damage."""

_PLAIN = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::addmm": 1,
    "aten::baddbmm": 1,
    "aten::_scaled_mm": 0,
}
_GROUPED = {"aten::_grouped_mm": 0, "aten::_scaled_grouped_mm": 0}
PRODUCTS = frozenset({*_PLAIN, *_GROUPED})
"""Operators that do one product each. Those that call them (`aten::linear`) are not counted."""

_DIMS = msgspec.json.Decoder(list[list[object]])


@lru_cache(1 << 12)  # a model has few shapes
def product(name: str, dims: bytes) -> tuple[int, int, int] | None:
    """(operations, token rows, groups) of operator `name` with the JSON text of its `Input Dims`.

    None where the shapes are missing or do not fit a product. The token rows of a grouped product
    are the rows of all its groups together; NONE stands for what does not show or is not grouped.
    """
    try:
        shapes = _DIMS.decode(dims)
    except (msgspec.DecodeError, RecursionError):
        return None
    first = _PLAIN.get(name, _GROUPED.get(name, 0))
    if len(shapes) < first + 2:
        return None
    left, right = shapes[first], shapes[first + 1]
    sizes: list[int] = []
    for size in (*left, *right):
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 40:
            return None
        sizes.append(size)
    a, b = sizes[: len(left)], sizes[len(left) :]
    grouped = name in _GROUPED
    groups = NONE
    match (len(a), len(b)):
        case (2, 2):  # plain, or a grouped weight gradient: the token dimension is summed over
            flops, rows = 2 * a[0] * a[1] * b[1], a[1]
        case (2, 3) if grouped:
            flops, rows, groups = 2 * a[0] * a[1] * b[2], a[0], b[0]
        case (3, 2) if grouped:
            flops, rows, groups = 2 * a[1] * a[2] * b[1], b[1], a[0]
        case (3, 3):
            flops, rows, groups = 2 * a[0] * a[1] * a[2] * b[2], a[0] * a[1], a[0]
        case _:
            return None
    if flops > MAX_FLOPS:
        return None
    return (flops, rows, groups) if grouped else (flops, NONE, NONE)
