"""Layer by layer figures on one micro-batch of two layers; µs in, exact figures out."""

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import FLASH, GEMM, GROUPED, TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"
FLASH_BACKWARD = "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<x>()"


def two_layers() -> TraceBuilder:
    """Forward 0-40 (layer 0, then 1), backward 50-90 (layer 1, then 0).

    A layer: attention, projection, dispatch, experts, combine; backward the other way round.
    """
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    for at in (0, 20):
        b.kernel(at, at + 3, FLASH, launch=at)
        b.kernel(at + 3, at + 5, GEMM, launch=at)
        b.collective(at + 5, at + 10, CollectiveKind.ALL_TO_ALL, "1", EP, launch=at)
        b.kernel(at + 10, at + 15, GROUPED, launch=at)
        b.collective(at + 15, at + 19, CollectiveKind.ALL_TO_ALL, "1", EP, launch=at)
    b.kernel(42, 45, GEMM, launch=41)  # the loss head
    for at in (50, 70):
        b.collective(at, at + 4, CollectiveKind.ALL_TO_ALL, "1", EP, launch=at, tid=2)
        b.kernel(at + 5, at + 12, GROUPED, launch=at, tid=2)
        b.collective(at + 12, at + 15, CollectiveKind.ALL_TO_ALL, "1", EP, launch=at, tid=2)
        b.kernel(at + 15, at + 16, GEMM, launch=at, tid=2)
        b.kernel(at + 16, at + 20, FLASH_BACKWARD, launch=at, tid=2)
    return b


def rows(b: TraceBuilder) -> dict[tuple[int, str], tuple[float, float]]:
    summary = summarise([measure_rank(b.build(), builtin()).partial], {})
    return {
        (row["layer"], row["phase"]): (row["forward_ms"], row["backward_ms"])
        for row in summary.layers
    }


def test_every_layer_gets_its_own_phases_forward_and_backward() -> None:
    found = rows(two_layers())
    assert len(found) == 2 * 5
    for layer in (0, 1):
        assert found[layer, "attention"] == (0.003, 0.004)
        assert found[layer, "expert_gemm"] == (0.005, 0.007)
        # On the wire the backward of a combine is a dispatch, and the other way round.
        assert found[layer, "dispatch"] == (0.005, 0.004)
        assert found[layer, "combine"] == (0.004, 0.003)
    assert found[0, "gap"] == (0.001, 0.001)
    assert found[1, "gap"] == (0.008, 0.001)  # until the first backward work


def test_marks_that_do_not_divide_evenly_give_no_layers() -> None:
    b = two_layers()
    b.kernel(92, 95, FLASH, launch=91)
    assert rows(b) == {}


EMBEDDING_BACKWARD = "void (anonymous namespace)::compute_grad_weight<c10::BFloat16, long>(x)"


def merged() -> TraceBuilder:
    """Two micro-batches of two layers; the second's forward runs amid the first's backward.

    Each forward layer: attention 3, experts 5; each backward one: experts 7, attention 4 µs.
    """
    b = TraceBuilder()
    b.range(0, 200, "iteration 1")

    def forward(at: float) -> None:
        b.kernel(at, at + 3, FLASH, launch=at)
        b.collective(at + 3, at + 4, CollectiveKind.ALL_TO_ALL, "1", EP, launch=at)
        b.kernel(at + 4, at + 9, GROUPED, launch=at)

    def backward(at: float) -> None:
        b.kernel(at, at + 7, GROUPED, launch=at, tid=2)
        b.kernel(at + 7, at + 11, FLASH_BACKWARD, launch=at, tid=2)

    for at in (0, 10, 22, 46):
        forward(at)
    for at in (32, 56, 80, 92):  # between the second micro-batch's layers, then after them
        backward(at)
    for at in (70, 110):
        b.kernel(at, at + 1, EMBEDDING_BACKWARD, launch=at, tid=2)
    return b


def test_merged_passes_are_cut_by_the_marks_of_each_direction() -> None:
    found = rows(merged())
    for layer in (0, 1):
        assert found[layer, "attention"] == (0.006, 0.008)  # two micro-batches
        assert found[layer, "expert_gemm"] == (0.01, 0.014)
    assert (0, "gap") not in found


def test_without_layers_the_reason_is_told() -> None:
    b = merged()
    b.kernel(120, 123, FLASH, launch=119)
    summary = summarise([measure_rank(b.build(), builtin()).partial], {})
    assert summary.layers == []
    assert summary.layers_reason == (
        "5 forward and 4 backward attention kernels do not mark the layers of 2 passes"
    )
