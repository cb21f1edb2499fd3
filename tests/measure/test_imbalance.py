"""How unevenly experts are loaded, from sizes, shapes or times, and what balance would save."""

from dataclasses import replace

import polars as pl
import pytest

from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import MATMUL_SCHEMA, NONE, CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import GROUPED, TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"
DISPATCH, COMBINE = "moe_dispatch", "moe_combine"
H200 = {"dense_bf16_tflops": 1000.0}


def rank(
    number: int,
    gemm: float,
    *,
    received: int = NONE,
    tokens: int = 0,
    kind: CollectiveKind = CollectiveKind.ALL_TO_ALL,
) -> RankPartial:
    """Dispatch, an expert GEMM of `gemm` µs under a product of `tokens` rows, combine."""
    b = TraceBuilder(rank=number, world_size=2)
    b.range(0, 1_000, "iteration 1")
    b.kernel(0, 100, launch=0)
    b.collective(100, 200, kind, "1|[0, 1]", EP, sent=received, received=received, launch=1)
    b.kernel(200, 200 + gemm, GROUPED, launch=12)
    b.collective(700, 800, kind, "1|[0, 1]", EP, sent=received, received=received, launch=20)
    b.kernel(800, 1_000, launch=21)
    trace = b.build()
    if tokens:
        row = {"start_ns": 11_000, "end_ns": 13_000, "tid": 1, "rows": tokens, "groups": 4}
        row["flops"] = tokens * 1_000_000
        trace = replace(trace, matmuls=pl.DataFrame([row], schema=MATMUL_SCHEMA))
    return measure_rank(trace, builtin()).partial


def test_gemm_time_per_rank_shows_the_imbalance_beside_tokens() -> None:
    ranks = [rank(0, 100, received=1 << 20), rank(1, 300, received=3 << 20)]
    summary = summarise(ranks, {})
    assert summary.metrics["expert_token_imbalance"].value == 1.5
    assert summary.metrics["expert_gemm_imbalance"].value == 1.5
    assert summary.why is not None
    assert [one.tokens_received for one in summary.why.experts] == [0.25, 0.75]


def test_a_perfect_balance_saves_the_tokens_above_the_mean() -> None:
    ranks = [rank(0, 100, received=1 << 20), rank(1, 300, received=3 << 20)]
    saving = summarise(ranks, {}).metrics["balance_saving_ms"]
    # 400 µs for 4 MiB; the fullest rank has 1 MiB more than the mean.
    assert (saving.status, saving.low) == ("estimated", 0.1)
    even = [rank(0, 200, received=1 << 20), rank(1, 200, received=1 << 20)]
    assert summarise(even, {}).metrics["balance_saving_ms"].value == 0.0


def test_without_split_sizes_the_rows_of_the_gemms_stand_for_tokens() -> None:
    found = summarise([rank(0, 100, tokens=100), rank(1, 300, tokens=300)], {}).metrics[
        "expert_token_imbalance"
    ]
    assert (found.status, found.value) == ("measured", 1.5)
    assert "shapes" in str(found.basis)


def test_without_sizes_and_shapes_durations_bound_it_and_say_so() -> None:
    found = summarise([rank(0, 100), rank(1, 300)], {}).metrics["expert_token_imbalance"]
    assert (found.status, found.value) == ("estimated", 1.5)
    assert (found.low, found.high) == (1.0, 2.0)
    assert "time per rank" in str(found.basis)


def test_an_all_gather_delivers_the_same_everywhere_and_says_nothing_about_experts() -> None:
    ranks = [
        rank(n, gemm, received=1 << 20, tokens=tokens, kind=CollectiveKind.ALL_GATHER)
        for n, gemm, tokens in ((0, 100, 100), (1, 300, 300))
    ]
    found = summarise(ranks, {}).metrics["expert_token_imbalance"]
    assert found.value == 1.5
    assert "shapes" in str(found.basis)


def test_grouped_gemms_achieve_their_operations_over_their_kernels_time() -> None:
    metrics = summarise([rank(0, 100, tokens=10_000)], H200).metrics
    assert metrics["expert_gemm_tflops"].value == pytest.approx(100.0)  # 1e10 in 100 µs
    assert metrics["expert_gemm_peak_share"].value == pytest.approx(0.1)
    assert metrics["rows_per_local_expert"].value == 2_500.0
    without = summarise([rank(0, 100)], H200).metrics["expert_gemm_tflops"]
    assert "record_shapes=True" in str(without.reason)
