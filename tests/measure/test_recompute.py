"""What counts as forward work run again, by ranges and kernel names (nsys) or operators."""

import pytest

from moe_advisor.measure.recompute import find_recompute
from moe_advisor.model import RangeKind
from moe_advisor.roles.assign import assign_roles
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, GEMM, TraceBuilder


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


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("cunn_SoftMaxForwardReg<float>", 3),
        ("cunn_SoftMaxBackward", 0),
        ("at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>", 3),
        ("at::native::(anonymous namespace)::silu_kernel(at::TensorIteratorBase&)", 3),
        ("at::native::(anonymous namespace)::silu_backward_kernel(at::TensorIteratorBase&)", 0),
    ],
)
def test_a_kernel_named_after_the_forward_pass_marks_what_runs_again_around_it(
    kernel: str, expected: int
) -> None:
    """Attention that a selective recompute runs again opens no range of its own."""
    b = TraceBuilder()
    b.range(0, 100, "iteration1")
    b.range(1, 60, "attention")
    for start, tid in ((10, 1), (70, 2)):
        if tid == 2:
            b.kernel(start - 5, start - 4, "backward_of_the_loss", launch=start - 6, tid=2)
        for place, name in enumerate((GEMM, kernel, ADD)):
            at = start + 5 * place
            b.kernel(at + 1, at + 2, name, launch=at, tid=tid)
    b.kernel(90, 91, "gradient", launch=89, tid=2)
    rank = b.build()
    assert find_recompute(rank, assign_roles(rank, builtin())).rows.sum() == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [(["aux_loss", "aux_scale"], 10), (["aux_backward", "aux_scale"], 2), (["aux_loss"] * 40, 2)],
    ids=["a loss that needs gradients", "real backward in between", "too much in between"],
)
def test_a_rerun_goes_on_behind_kernels_that_only_run_where_gradients_are_recorded(
    extra: list[str], expected: int
) -> None:
    """A router that runs again computes its auxiliary loss too: 2 + 2 of it + 6 kernels."""
    forward = ["sbtopk::gatherTopK<float>", ADD, *(f"permute_{n}" for n in range(6))]
    b = TraceBuilder()
    b.range(0, 1000, "iteration1")
    b.range(1, 60, "moe")
    b.kernel(201, 202, "backward_of_the_loss", launch=200, tid=2)
    for place, name in enumerate(forward):
        b.kernel(5 * place + 6, 5 * place + 7, name, launch=5 * place + 5)
    for place, name in enumerate([*forward[:2], *extra, *forward[2:], "gradient"]):
        at = 210 + 5 * place
        b.kernel(at + 1, at + 2, name, launch=at, tid=2)
    rank = b.build()
    assert find_recompute(rank, assign_roles(rank, builtin())).rows.sum() == expected


def operators(function: str) -> TraceBuilder:
    """A Function in forward on thread 1; the same one inside two backward nodes of thread 2."""
    b = TraceBuilder()
    operator = {"kind": RangeKind.OPERATOR}
    b.range(0, 5, function, sequence=1, **operator)
    b.kernel(3, 4, ADD, launch=2)
    b.range(20, 40, "autograd::engine::evaluate_function: CheckpointBackward", tid=2, **operator)
    b.range(25, 30, function, tid=2, sequence=2, **operator)
    b.kernel(28, 29, ADD, launch=27, tid=2)
    node = {"tid": 2, "sequence": 1, "forward_tid": 1, **operator}
    b.range(50, 60, f"{function}Backward", **node)
    return b


def test_a_function_run_again_inside_another_nodes_backward_is_recompute() -> None:
    rank = operators("_LayerNorm").build()
    rows = find_recompute(rank, assign_roles(rank, builtin())).rows
    assert rows.tolist() == [False, True]


def test_a_function_that_its_own_backward_applies_is_no_recompute() -> None:
    b = operators("_AllToAll")
    b.range(52, 58, "_AllToAll", tid=2, sequence=3, kind=RangeKind.OPERATOR)
    b.kernel(55, 56, ADD, launch=54, tid=2)
    rank = b.build()
    assert not find_recompute(rank, assign_roles(rank, builtin())).rows.any()
