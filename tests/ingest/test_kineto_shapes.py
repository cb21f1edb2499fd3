"""Operations and token rows of matrix products, from recorded shapes."""

from pathlib import Path

import pytest

from moe_advisor.ingest import kineto
from moe_advisor.ingest.kineto_shapes import product
from moe_advisor.model import NONE
from tests.kineto_builder import LAUNCHED, METADATA, operator, trace, write


@pytest.mark.parametrize(
    ("name", "dims", "expected"),
    [
        ("aten::mm", "[[4, 5], [5, 6]]", (240, NONE, NONE)),
        ("aten::addmm", "[[6], [4, 5], [5, 6], [], []]", (240, NONE, NONE)),
        ("aten::bmm", "[[2, 4, 5], [2, 5, 6]]", (480, NONE, NONE)),
        ("aten::_grouped_mm", "[[100, 5], [8, 5, 6], [8], [], []]", (6_000, 100, 8)),
        ("aten::_grouped_mm", "[[5, 100], [100, 6], [8], [], []]", (6_000, 100, NONE)),
        ("aten::_grouped_mm", "[[8, 6, 5], [5, 100], [8]]", (6_000, 100, 8)),
        ("aten::mm", "[[4, 5]]", None),
        ("aten::mm", "[[4, 5], [5, -6]]", None),
        ("aten::mm", '[["a", 5], [5, 6]]', None),
        ("aten::mm", "[[1000000000, 1000000000], [1000000000, 1000000000]]", None),
        ("aten::mm", "{}", None),
        ("aten::mm", "", None),
    ],
)
def test_operations_follow_from_the_shapes(
    name: str, dims: str, expected: tuple[int, int, int] | None
) -> None:
    assert product(name, dims.encode()) == expected


def test_products_stand_at_their_operators_time_and_thread(tmp_path: Path) -> None:
    dims = {"Input Dims": [[100, 5], [8, 5, 6], [8]]}
    text = trace(
        *LAUNCHED,
        operator("aten::_grouped_mm", 3, 2, **dims),
        operator("aten::linear", 2, 4, **{"Input Dims": [[4, 5], [5, 6]]}),
        operator("aten::mm", 1, 1, **{"Input Dims": "damaged"}),
        **METADATA,
    )
    (rank,) = kineto.load(write(tmp_path, text)).ranks
    (row,) = rank.matmuls.rows(named=True)
    assert (row["flops"], row["rows"], row["groups"]) == (6_000, 100, 8)
    assert row["end_ns"] - row["start_ns"] == 2_000
    assert row["tid"] in rank.calls["tid"]
