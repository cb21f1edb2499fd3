"""Micro-batches from the embedding's gradient, which every schedule computes once for each."""

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, TraceBuilder

GRADIENT = "void at::native::(anonymous namespace)::compute_grad_weight<c10::BFloat16, long>(x)"


def metric(per_step: tuple[int, ...]):
    b = TraceBuilder()
    for step, count in enumerate(per_step):
        b.range(step * 1_000, (step + 1) * 1_000, f"iteration {step}")
        for place in range(10):
            at = step * 1_000 + place * 100
            b.kernel(at, at + 90, GRADIENT if place < count else ADD, launch=at)
        b.collective(
            step * 1_000 + 991,
            step * 1_000 + 995,
            CollectiveKind.SEND_RECV,
            "1",
            "PIPELINE_MODEL_PARALLEL_GROUP",
        )
    partial = measure_rank(b.build(), builtin()).partial
    return summarise([partial], {}).metrics["microbatches_per_step"]


def test_the_embeddings_gradients_count_the_micro_batches_of_a_pipeline() -> None:
    found = metric((4, 4))
    assert found.value == 4.0
    assert "embedding" in str(found.basis)


def test_steps_that_disagree_or_no_embedding_tell_nothing() -> None:
    assert metric((4, 3)).status == "not_measured"
    assert metric((0, 0)).status == "not_measured"
