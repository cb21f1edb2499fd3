"""Which evidence decides a role: the smallest timelines that show it."""

from moe_advisor.model import ActivityKind, CollectiveKind, RangeKind
from moe_advisor.roles.assign import assign_roles
from moe_advisor.roles.roles import Role, Source
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, ALL_REDUCE, FLASH, GEMM, GROUPED, TraceBuilder

A2A = CollectiveKind.ALL_TO_ALL


def roles_of(builder: TraceBuilder) -> list[str]:
    table = assign_roles(builder.build(), builtin())
    return [Role(role).label for role in table.roles]


def sources_of(builder: TraceBuilder) -> list[Source]:
    return [Source(source) for source in assign_roles(builder.build(), builtin()).sources]


def test_the_process_group_decides_what_a_send_recv_is() -> None:
    b = TraceBuilder()
    b.collective(0, 10, A2A, "1", "EXPERT_MODEL_PARALLEL_GROUP")
    b.collective(20, 30, CollectiveKind.SEND_RECV, "2", "PIPELINE_MODEL_PARALLEL_GROUP")
    b.collective(40, 50, A2A, "3", "CONTEXT_PARALLEL_GROUP")
    b.collective(60, 70, A2A, "1", "EXPERT_MODEL_PARALLEL_GROUP", sent=256)
    assert roles_of(b) == ["ep_dispatch", "pp_p2p", "cp_collective", "ep_notify"]
    assert set(sources_of(b)) == {Source.METADATA}


def test_a_pipeline_without_description_is_told_from_expert_traffic() -> None:
    b = TraceBuilder()
    b.collective(0, 10, A2A, "comm-a")
    b.kernel(12, 20, GROUPED)
    b.collective(20, 30, CollectiveKind.SEND_RECV, "comm-b")
    assert roles_of(b) == ["ep_dispatch", "expert_gemm", "pp_p2p"]


def test_gradient_norm_is_not_expert_traffic() -> None:
    b = TraceBuilder()
    group = "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP"
    b.collective(0, 5, CollectiveKind.ALL_REDUCE, "9", group, name=ALL_REDUCE, sent=4)
    b.collective(
        6, 9, CollectiveKind.ALL_GATHER, "8", "EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP", sent=256
    )
    assert roles_of(b) == ["dp_norm", "ep_notify"]


def test_an_unnamed_send_recv_is_never_assumed_to_be_expert_traffic() -> None:
    b = TraceBuilder()
    b.kernel(0, 10, "ncclDevKernel_SendRecv(x)")
    assert roles_of(b) == ["collective_other"]


def test_the_range_a_gemm_was_launched_under_tells_experts_from_dense_layers() -> None:
    b = TraceBuilder()
    for at, name in (
        (0, "moe.experts"),
        (20, "layer0.attention"),
        (40, "moe.router"),
        (60, "shared_experts"),
    ):
        b.range(at, at + 10, name)
        b.kernel(at + 2, at + 8, GEMM)
    b.kernel(82, 88, GEMM)
    assert roles_of(b) == ["expert_gemm", "dense_gemm", "router", "dense_gemm", "gemm_unattributed"]


def test_the_innermost_range_wins() -> None:
    b = TraceBuilder()
    b.range(0, 100, "layer0.moe")
    b.range(10, 30, "moe.experts")
    b.kernel(12, 20, GEMM)
    b.kernel(40, 50, "void at::native::vectorized_gather_kernel<16>()")
    assert roles_of(b) == ["expert_gemm", "permute"]


def test_backward_work_takes_the_range_of_its_forward_operator() -> None:
    b = TraceBuilder()
    b.range(0, 10, "moe.experts")
    b.range(1, 9, "aten::mm", kind=RangeKind.OPERATOR, sequence=7)
    b.kernel(2, 8, GEMM)
    b.range(20, 30, "MmBackward0", tid=2, kind=RangeKind.OPERATOR, sequence=7, forward_tid=1)
    b.kernel(22, 28, GEMM, tid=2)
    b.range(40, 50, "MmBackward0", tid=2, kind=RangeKind.OPERATOR, sequence=8, forward_tid=1)
    b.kernel(42, 48, GEMM, tid=2)
    assert roles_of(b) == ["expert_gemm", "expert_gemm", "gemm_unattributed"]
    assert sources_of(b)[1] is Source.FORWARD_LINK


def moe_pass(b: TraceBuilder, at: float, *, known: bool, tid: int) -> None:
    """Attention, dispatch, two expert GEMMs, combine: 100 µs."""
    b.kernel(at, at + 10, FLASH, tid=tid)
    b.kernel(at + 12, at + 18, GEMM, tid=tid)
    b.collective(at + 20, at + 30, A2A, "comm-a", tid=tid)
    for offset in (32, 42):
        b.kernel(at + offset, at + offset + 8, GROUPED if known else GEMM, tid=tid)
    b.collective(at + 60, at + 70, A2A, "comm-a", tid=tid)


def test_gemms_between_dispatch_and_combine_are_the_experts() -> None:
    b = TraceBuilder()
    moe_pass(b, 0, known=False, tid=1)
    moe_pass(b, 100, known=False, tid=2)
    one = ["attention", "dense_gemm", "ep_dispatch", "expert_gemm", "expert_gemm", "ep_combine"]
    assert roles_of(b) == one * 2
    assert sources_of(b)[3] is Source.STRUCTURE


def test_pointwise_kernels_around_the_experts_permute_and_between_them_activate() -> None:
    b = TraceBuilder()
    b.kernel(0, 10, FLASH)
    b.collective(20, 30, A2A, "comm-a")
    for at, name in ((31, ADD), (33, GROUPED), (40, ADD), (43, GROUPED), (50, ADD)):
        b.kernel(at, at + 2, name)
    b.collective(60, 70, A2A, "comm-a")
    b.kernel(75, 80, ADD)
    b.kernel(85, 90, FLASH)
    middle = ["permute", "expert_gemm", "activation", "expert_gemm", "permute"]
    assert roles_of(b) == [
        *("attention", "ep_dispatch", *middle, "ep_combine", "elementwise", "attention"),
    ]


def test_structure_says_nothing_where_micro_batches_overlap() -> None:
    b = TraceBuilder()
    moe_pass(b, 0, known=False, tid=1)
    b.kernel(20, 30, GEMM, stream=9)
    b.kernel(60, 70, GEMM, stream=9)
    assert "expert_gemm" not in roles_of(b)


def test_dispatch_libraries_are_known_by_name_and_their_local_kernels_are_no_communication() -> (
    None
):
    b = TraceBuilder()
    b.kernel(0, 1, "void deep_ep::layout::get_dispatch_layout<256, 32, 8>()")
    b.kernel(2, 3, "void deep_ep::intranode::notify_dispatch<2>()")
    b.kernel(4, 9, "void deep_ep::intranode::dispatch<2, 768, 8192>()")
    b.kernel(10, 15, "void deep_ep::intranode::combine<2>()")
    assert roles_of(b) == ["permute", "ep_notify", "ep_dispatch", "ep_combine"]


def test_an_opaque_graph_launch_has_a_role_of_its_own() -> None:
    b = TraceBuilder()
    b.kernel(0, 9, "graph", kind=ActivityKind.GRAPH)
    b.kernel(10, 11, "some_kernel_nobody_knows")
    b.kernel(12, 13, ADD)
    table = assign_roles(b.build(), builtin())
    assert [Role(role).label for role in table.roles] == [
        "graph_opaque",
        "compute_other",
        "elementwise",
    ]
    assert table.known.tolist() == [True, False, True]
