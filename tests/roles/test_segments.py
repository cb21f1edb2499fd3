"""What kernels that no range explains are for, by what stands around them."""

from moe_advisor.model import CollectiveKind, RangeKind
from moe_advisor.roles.assign import assign_roles
from moe_advisor.roles.roles import Role, Source
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, FLASH, GEMM, GROUPED, TraceBuilder

SOFTMAX = "void at::native::(anonymous namespace)::cunn_SoftMaxForwardReg<float>(x)"
SOFTMAX_BACKWARD = "void at::native::(anonymous namespace)::cunn_SoftMaxBackwardSmem<4>(x)"
LOSS = "void at::native::(anonymous namespace)::cunn_SoftMaxForward<LogSoftMaxForwardEpilogue>(x)"
LOSS_BACKWARD = (
    "void at::native::(anonymous namespace)::cunn_SoftMaxBackward<LogSoftMaxBackwardEpilogue>(x)"
)
GATHER = "void at::native::vectorized_gather_kernel<16, long>(char*)"
TOP_K = "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>()"
NORM = "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<x>()"
SINGLE = "sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize64x64x8_stage3_x"
ABS = "void at::native::vectorized_elementwise_kernel<8, at::native::AbsFunctor<c10::BFloat16>>()"
FLOAT8 = "void at::native::vectorized_elementwise_kernel<4, float8_copy_kernel_cuda()>()"
SILU = "void at::native::elementwise_kernel<128, 4, silu_kernel()>()"


def roles(*names: str, stream: dict[int, int] | None = None) -> list[str]:
    """Roles of kernels one after the other, on stream 7 unless `stream` has their place."""
    b = TraceBuilder()
    for place, name in enumerate(names):
        b.kernel(10 * place, 10 * place + 8, name, stream=(stream or {}).get(place, 7))
    table = assign_roles(b.build(), builtin())
    return [Role(role).label for role in table.roles]


def test_all_between_two_products_around_a_softmax_is_attention() -> None:
    assert roles(GEMM, ADD, SOFTMAX, ADD, GEMM, ADD) == [
        *["attention"] * 5,
        "elementwise",
    ]


def test_backward_of_attention_has_two_products_on_each_side() -> None:
    found = roles(GEMM, GEMM, GEMM, ADD, SOFTMAX_BACKWARD, ADD, GEMM, ADD, GEMM, GEMM)
    assert found == [
        "gemm_unattributed",
        *["attention"] * 6,
        "elementwise",
        "attention",
        "gemm_unattributed",
    ]


def test_a_softmax_that_no_product_follows_explains_nothing_else() -> None:
    assert roles(GEMM, ADD, SOFTMAX) == ["gemm_unattributed", "elementwise", "attention"]


def test_a_kernel_of_another_stream_is_not_between() -> None:
    found = roles(GEMM, ADD, SOFTMAX, ADD, GEMM, stream={1: 9})
    assert found == ["attention", "elementwise", "attention", "attention", "attention"]


def test_softmax_beside_a_top_k_and_the_product_before_it_are_the_routers() -> None:
    assert roles(GEMM, SOFTMAX, TOP_K, GEMM)[:3] == ["router", "router", "router"]


def test_backward_products_of_the_routers_width_are_the_routers() -> None:
    """The router's range is known in forward only; its products are the only ones of 32 bits."""
    b = TraceBuilder()
    b.range(0, 10, "moe.router")
    b.kernel(1, 8, SINGLE, launch=1)
    b.kernel(20, 28, FLASH)
    b.collective(30, 38, CollectiveKind.ALL_TO_ALL, "1", "EXPERT_MODEL_PARALLEL_GROUP")
    b.kernel(40, 48, GROUPED)
    b.collective(50, 58, CollectiveKind.ALL_TO_ALL, "1", "EXPERT_MODEL_PARALLEL_GROUP")
    b.kernel(60, 68, SINGLE)
    b.kernel(70, 78, ADD)
    b.kernel(80, 88, NORM)
    b.kernel(90, 98, ADD)
    b.kernel(100, 108, FLASH)
    table = assign_roles(b.build(), builtin())
    found = [Role(role).label for role in table.roles]
    assert found[0] == "router"
    assert found[5:9] == ["router", "router", "norm", "elementwise"]
    assert Source(table.sources[5]) is Source.STRUCTURE


def test_what_leads_to_the_loss_and_from_its_gradient_is_the_loss() -> None:
    found = roles(FLASH, GEMM, ADD, LOSS, ADD, LOSS_BACKWARD, ADD, GEMM, ADD)
    assert found[2:] == [*["embedding_loss"] * 5, "gemm_unattributed", "elementwise"]
    # After the forward alone the next micro-batch may begin.
    assert roles(FLASH, GEMM, ADD, LOSS, ADD, GEMM)[2:5] == [
        "embedding_loss",
        "embedding_loss",
        "elementwise",
    ]


def test_gathers_next_to_an_experts_product_are_permutation_without_any_dispatch() -> None:
    found = roles(FLASH, GATHER, GEMM, GATHER, ADD, GATHER, GROUPED, ADD, GROUPED, GATHER, GEMM)
    assert found[1] == "elementwise"  # an embedding's, for all one knows
    assert found[3:10] == [
        "permute",
        "permute",
        "permute",
        "expert_gemm",
        "activation",
        "expert_gemm",
        "permute",
    ]


def test_quantisation_in_plain_operators_is_not_the_experts_activation() -> None:
    b = TraceBuilder()
    b.range(0, 100, "moe.experts")
    for place, name in enumerate((GROUPED, SILU, ADD, ABS, ADD, ADD, FLOAT8, ADD, GROUPED)):
        b.kernel(10 * place, 10 * place + 8, name, launch=place + 0.5)
    table = assign_roles(b.build(), builtin())
    assert [Role(role).label for role in table.roles] == [
        "expert_gemm",
        "activation",
        "activation",
        *["cast_quantize"] * 4,
        "activation",
        "expert_gemm",
    ]


def test_a_range_that_tells_one_kind_of_work_outweighs_the_place() -> None:
    b = TraceBuilder()
    b.kernel(0, 8, GEMM)
    b.range(9, 19, "aten::embedding", kind=RangeKind.OPERATOR)
    b.kernel(12, 18, ADD, launch=10)
    b.kernel(20, 28, SOFTMAX)
    b.kernel(30, 38, GEMM)
    table = assign_roles(b.build(), builtin())
    assert Role(table.roles[1]).label == "embedding_loss"
