"""A real FP8 step of Megatron-Core on Transformer Engine: rank 0 of lab variant mcore_te_fp8, cut to
one step. What the lab read from it must stay so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_advisor.analysis import analyze
from moe_advisor.result import Result


@pytest.fixture(scope="module")
def result(real_trace: Callable[[str], list[Path]]) -> Result:
    return analyze([str(path) for path in real_trace("nsys/mcore_te_fp8")])


def value(result: Result, name: str) -> float:
    number = result.metrics[name].value
    assert number is not None
    return float(number)


def test_no_gemm_and_no_compute_is_left_without_a_role(result: Result) -> None:
    roles = {one.role: one.ms for one in result.roles}
    assert "gemm_unattributed" not in roles
    assert roles.get("compute_other", 0) < 0.001 * value(result, "compute_ms")


def test_experts_are_one_gemm_per_expert_and_pass(result: Result) -> None:
    (experts,) = [one for one in result.roles if one.role == "expert_gemm"]
    # 16 local experts x 2 layers of weights x (forward, input and weight gradient) x 4 layers x 4
    assert experts.count == 16 * 2 * 3 * 4 * 4


def test_backward_gemm_ranges_are_no_recomputation(result: Result) -> None:
    assert value(result, "recompute_ms") == 0
    assert result.run.config["recompute_granularity"].value is None


def test_quantisation_and_fused_permutation_are_told(result: Result) -> None:
    roles = {one.role: one for one in result.roles}
    assert roles["cast_quantize"].count == 1240
    assert 0.02 < roles["cast_quantize"].ms / value(result, "compute_ms") < 0.25
    assert result.run.config["moe_permute_fusion"].value is True
