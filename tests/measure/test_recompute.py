"""What counts as forward work run again where only ranges tell it (Nsight Systems)."""

import pytest

from moe_advisor.measure.recompute import find_recompute
from moe_advisor.roles.assign import assign_roles
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import GEMM, TraceBuilder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvte_cublas_gemm_v2", 0),  # the gradients' GEMMs open it too
        ("quantize_transpose_vector_blockwise", 0),
        ("nvte_rmsnorm_fwd", 1),
        ("moe.experts", 1),
    ],
)
def test_a_forward_range_on_the_backward_thread_is_recompute_unless_backward_has_its_own(
    name: str, expected: int
) -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration1")
    for start in (1, 11):
        b.range(start, start + 3, name)
        b.kernel(start + 4, start + 5, GEMM, launch=start + 1)
    b.range(40, 44, name, tid=2)
    b.kernel(45, 46, GEMM, launch=41, tid=2)
    rank = b.build()
    assert find_recompute(rank, assign_roles(rank, builtin())).rows.sum() == expected
