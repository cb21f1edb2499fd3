"""Which evidence decides a role: the smallest timelines that show it."""

import pytest

from moe_advisor.model import ActivityKind, CollectiveKind, RangeKind
from moe_advisor.roles.assign import assign_roles
from moe_advisor.roles.roles import Role, Source
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, ALL_REDUCE, FLASH, GEMM, GROUPED, SEND_RECV, TraceBuilder

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


def test_an_activation_that_runs_again_stands_before_the_experts_gemm() -> None:
    b = TraceBuilder()
    b.kernel(0, 10, FLASH)
    b.collective(20, 30, A2A, "comm-a")
    silu = "void at::native::vectorized_elementwise_kernel<4, silu_kernel()>"
    for at, name in ((31, ADD), (35, silu), (38, ADD), (43, GROUPED), (50, ADD)):
        b.kernel(at, at + 2, name)
    b.collective(60, 70, A2A, "comm-a")
    b.kernel(85, 90, FLASH)
    middle = ["permute", "activation", "activation", "expert_gemm", "permute"]
    assert roles_of(b) == ["attention", "ep_dispatch", *middle, "ep_combine", "attention"]


def test_gradients_added_to_the_main_ones_are_neither_permutation_nor_activation() -> None:
    add = (
        "void at::native::unrolled_elementwise_kernel<at::native::CUDAFunctor_add<float>, "
        "std::array<char*, 3ul>, 4, at::native::memory::LoadWithCast<2>>(int)"
    )
    b = TraceBuilder()
    b.kernel(0, 10, FLASH)
    b.collective(20, 30, A2A, "comm-a")
    for at, name in ((31, add), (33, GROUPED), (40, add), (43, GROUPED), (50, ADD)):
        b.kernel(at, at + 2, name)
    b.collective(60, 70, A2A, "comm-a")
    b.kernel(85, 90, FLASH)
    middle = ["elementwise", "expert_gemm", "elementwise", "expert_gemm", "permute"]
    assert roles_of(b) == ["attention", "ep_dispatch", *middle, "ep_combine", "attention"]


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


def exchanged(layers: int, *, where: str) -> TraceBuilder:
    """Layers of projection, attention, projection and experts; exchanges of no known purpose."""
    b = TraceBuilder()
    at = 0

    def put(name: str) -> None:
        nonlocal at
        b.kernel(at, at + 5, name, launch=0)
        at += 5

    for layer in range(layers):
        for name in (GEMM, FLASH, GEMM, GROUPED):
            if where == "attention" and name == FLASH:
                put(SEND_RECV)
            if where == "experts" and name == GROUPED:
                put(SEND_RECV)
            put(name)
            if where == "experts" and name == GROUPED:
                put(SEND_RECV)
        if where == "stage" and layer % 2:
            put(SEND_RECV)
    trace = b.activities
    for row in trace:
        if row["name"] == b.name(SEND_RECV):
            row["collective"] = {
                "kind": CollectiveKind.UNKNOWN,
                "group": b.name(""),
                "description": b.name(""),
                "group_size": -1,
                "bytes_sent": -1,
                "bytes_received": -1,
                "bytes_self": -1,
                "in_splits": [],
                "out_splits": [],
            }
    return b


@pytest.mark.parametrize(
    ("where", "role"),
    [("attention", "cp_collective"), ("experts", "ep_dispatch"), ("stage", "pp_p2p")],
)
def test_exchanges_without_metadata_are_told_by_what_lies_between_them(
    where: str, role: str
) -> None:
    found = set(roles_of(exchanged(6, where=where)))
    assert role in found
    assert not found & ({"cp_collective", "pp_p2p", "collective_other"} - {role})


def test_the_routers_small_reductions_are_no_gradient_norm() -> None:
    b = TraceBuilder()
    for at in (0, 20):
        b.range(at, at + 10, "layers.0.router")
        b.collective(
            at + 2, at + 5, CollectiveKind.ALL_REDUCE, "c", name=ALL_REDUCE, sent=256, launch=at + 1
        )
    b.collective(50, 55, CollectiveKind.ALL_REDUCE, "d", name=ALL_REDUCE, sent=4, launch=45)
    assert roles_of(b) == ["collective_other", "collective_other", "dp_norm"]


def test_sizes_tell_a_dispatch_from_a_combine_where_layers_interleave() -> None:
    b = TraceBuilder()
    b.kernel(0, 200, GEMM, launch=0, stream=3)  # compute beside all of it
    routed = (90, 120, 80)
    pairs = [pair for back in routed for pair in ((100, back), (back, 100))]
    for at, (sent, received) in zip(range(0, 120, 20), pairs, strict=True):
        b.collective(
            at,
            at + 10,
            A2A,
            "1",
            "EXPERT_MODEL_PARALLEL_GROUP",
            sent=sent << 20,
            received=received << 20,
            launch=at,
        )
    assert [one for one in roles_of(b) if one.startswith("ep")] == [
        *("ep_dispatch", "ep_combine") * 3
    ]


def test_beside_complete_grouped_gemms_the_other_gemms_are_dense() -> None:
    def built(backward: int) -> list[str]:
        b = TraceBuilder()
        b.range(0, 1, "iteration 1")
        b.kernel(2, 5, GROUPED, launch=2)
        b.kernel(5, 8, GEMM, launch=3)
        for number in range(backward):
            b.kernel(10 + number, 11 + number, GROUPED, launch=9, tid=2)
        return [one for one in roles_of(b) if one != "expert_gemm"]

    assert built(2) == ["dense_gemm"]
    assert built(1) == ["gemm_unattributed"]  # the experts' weight gradients may be plain GEMMs


@pytest.mark.parametrize(("again", "role"), [(2, "dense_gemm"), (1, "gemm_unattributed")])
def test_ordinary_gemms_under_grouped_linear_ranges_count_as_grouped(again: int, role: str) -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration1")
    b.range(1, 5, "nvte_multi_tensor_gemm")
    b.kernel(10, 12, GEMM, launch=2)
    for n in range(again):
        b.range(20 + 10 * n, 25 + 10 * n, "nvte_multi_tensor_gemm", tid=2)
        b.kernel(21 + 10 * n, 24 + 10 * n, GEMM, launch=20.5 + 10 * n, tid=2)
    b.kernel(60, 62, GEMM, launch=50)
    assert roles_of(b)[-1] == role


def test_the_thread_whose_ranges_cover_most_time_is_the_forward_thread() -> None:
    """Backward opens more of Transformer Engine's ranges: two GEMMs a layer, not one."""
    b = TraceBuilder()
    b.range(0, 100, "iteration1")
    b.range(1, 2, "nvte_cublas_gemm_v2")
    b.kernel(3, 4, GEMM, launch=1.5)
    for start in (20, 30, 40):
        b.range(start, start + 2, "nvte_cublas_gemm_v2", tid=2)
        b.kernel(start + 3, start + 4, GEMM, launch=start + 1, tid=2)
    contexts = assign_roles(b.build(), builtin()).contexts
    assert contexts.backward.tolist() == [False, True, True, True]


@pytest.mark.parametrize(("replayed", "role"), [(True, "ep"), (False, "collective_other")])
def test_exchanges_around_experts_inside_graphs_are_expert_traffic(
    replayed: bool, role: str
) -> None:
    """Nsight Systems gives NCCL kernels of a CUDA graph no communicator."""
    b = TraceBuilder()
    for layer in range(3):
        at = 100 * layer
        b.kernel(at, at + 10, FLASH)
        for start in (at + 20, at + 50):
            b.kernel(start, start + 10, "ncclDevKernel_SendRecv(x)")["in_graph"] = replayed
        b.kernel(at + 35, at + 45, GROUPED)
    found = [one for one in roles_of(b) if one not in ("attention", "expert_gemm")]
    assert len(found) == 6
    assert all(one.startswith(role) for one in found)


GATHER, SCATTER = CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER


def test_a_group_that_gathers_before_experts_and_scatters_behind_them_is_expert_traffic() -> None:
    """Megatron-Core's all-gather dispatcher, of whose group nothing is known but its calls."""
    b = TraceBuilder()
    for at in range(0, 300, 100):
        b.kernel(at, at + 10, FLASH)
        b.kernel(at + 10, at + 15, GEMM)
        b.collective(at + 20, at + 25, GATHER, "c", name="ncclDevKernel_AllGather(x)", sent=1 << 17)
        b.collective(at + 30, at + 40, GATHER, "c", name="ncclDevKernel_AllGather(x)", sent=1 << 24)
        b.kernel(at + 40, at + 60, GROUPED)
        b.collective(at + 60, at + 70, SCATTER, "c", name="ncclDevKernel_ReduceScatter(x)")
    assert roles_of(b)[2:7] == [
        "ep_notify",
        "ep_dispatch",
        "expert_gemm",
        "ep_combine",
        "attention",
    ]


def test_a_group_that_gathers_and_scatters_around_attention_is_no_expert_traffic() -> None:
    b = TraceBuilder()
    for at in range(0, 300, 100):
        b.collective(at, at + 5, GATHER, "c", name="ncclDevKernel_AllGather(x)")
        b.kernel(at + 10, at + 20, FLASH)
        b.collective(at + 20, at + 25, SCATTER, "c", name="ncclDevKernel_ReduceScatter(x)")
        b.kernel(at + 30, at + 35, GEMM)  # the router
        b.kernel(at + 40, at + 60, GROUPED)
    assert not [one for one in roles_of(b) if one.startswith("ep")]


@pytest.mark.parametrize("feeds", [True, False])
def test_gathers_without_metadata_before_a_dispatch_are_its_counts(feeds: bool) -> None:
    """A CUDA graph that holds the dispatch's preparation replays them without metadata."""
    b = TraceBuilder()
    for at in range(0, 300, 100):
        b.collective(at, at + 5, GATHER, "", name="ncclDevKernel_AllGather(x)", sent=-1)
        if feeds:
            b.collective(at + 10, at + 15, A2A, "e", "EXPERT_MODEL_PARALLEL_GROUP")
        b.kernel(at + 20, at + 30, GROUPED)
    assert roles_of(b)[0] == ("ep_notify" if feeds else "dp_param_gather")


def test_what_a_checkpoint_runs_again_is_told_by_what_stands_around_it() -> None:
    """Its range holds whatever was left out of the forward pass: here unfused attention."""
    b = TraceBuilder()
    b.range(0, 100, "CheckpointFunctionBackward")
    names = (GEMM, ADD, "cunn_SoftMaxForwardReg<float>", ADD, GEMM)
    for place, name in enumerate(names):
        b.kernel(10 * place, 10 * place + 5, name, launch=1 + place)
    assert roles_of(b)[:4] == ["attention"] * 4


def test_reductions_in_a_forward_projection_are_tensor_parallel() -> None:
    """Few beside many attention kernels, as fused attention launches five a layer."""
    b = TraceBuilder()
    for at in range(0, 400, 100):
        b.range(at + 5, at + 20, "attention.forward.qkv")
        b.collective(at + 10, at + 12, GATHER, "c", launch=at + 6)
        b.kernel(at + 15, at + 18, GEMM, launch=at + 7)
        for place in range(5):
            b.kernel(at + 30 + place, at + 31 + place, FLASH, launch=at + 21)
        b.range(at + 40, at + 60, "linear_proj")
        b.kernel(at + 45, at + 50, GEMM, launch=at + 41)
        b.collective(at + 55, at + 58, SCATTER, "c", launch=at + 42)
    assert set(roles_of(b)) == {"tp_collective", "dense_gemm", "attention"}


def test_one_stray_reduction_in_a_projection_does_not_make_a_group_tensor_parallel() -> None:
    b = TraceBuilder()
    b.range(5, 20, "attention.forward.qkv")
    for at in range(0, 2000, 100):
        b.kernel(at + 20, at + 60, FLASH, launch=at + 21)
        b.collective(at + 70, at + 90, SCATTER, "c", launch=at + 6)
    assert set(roles_of(b)) == {"dp_grad_reduce", "attention"}


def test_gathers_in_core_attention_next_to_it_are_context_parallel() -> None:
    b = TraceBuilder()
    for at in range(0, 400, 100):
        b.kernel(at, at + 5, GEMM, launch=at)
        b.range(at + 6, at + 40, "self_attention.core_attention")
        b.collective(at + 10, at + 20, GATHER, "c", launch=at + 7)
        b.kernel(at + 25, at + 35, FLASH, launch=at + 8)
        b.kernel(at + 50, at + 55, GEMM, launch=at + 45)
    assert roles_of(b).count("cp_collective") == 4


def test_a_pipelines_group_that_also_sums_a_norm_still_carries_activations() -> None:
    b = TraceBuilder()
    for at in range(0, 400, 100):
        b.kernel(at, at + 30, FLASH)
        b.collective(at + 40, at + 60, CollectiveKind.SEND_RECV, "p")
    b.collective(500, 505, CollectiveKind.ALL_REDUCE, "p", name=ALL_REDUCE, sent=4)
    found = [role for role in roles_of(b) if role != "attention"]
    assert found == ["pp_p2p"] * 4 + ["dp_norm"]


@pytest.mark.parametrize("scaled", [True, False])
def test_sums_before_new_fp8_scales_are_no_gradient_norm(scaled: bool) -> None:
    update = "void transformer_engine::delayed_scaling_recipe::kernel_bulk<x>()"
    b = TraceBuilder()
    for at in range(0, 400, 100):
        b.kernel(at, at + 30, GEMM)
        b.collective(at + 40, at + 50, CollectiveKind.ALL_REDUCE, "a", name=ALL_REDUCE, sent=1184)
        b.kernel(at + 60, at + 70, update if scaled else ADD)
    assert ("dp_norm" in roles_of(b), "collective_other" in roles_of(b)) == (not scaled, scaled)
