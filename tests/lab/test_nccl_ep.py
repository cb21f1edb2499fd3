"""NCCL's expert-parallel library in both profilers: lab variant ncclep, two ranks; the Kineto capture
is cut to one step. Its kernels carry no process group, and its counts travel in a gather of its own.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_advisor.analysis import analyze
from moe_advisor.result import Result

PROFILERS = ("nsys", "torch")


@pytest.fixture(scope="module")
def results(real_trace: Callable[[str], list[Path]]) -> dict[str, Result]:
    return {one: analyze([str(path) for path in real_trace(f"{one}/ncclep")]) for one in PROFILERS}


@pytest.mark.parametrize("profiler", PROFILERS)
def test_four_passes_of_four_layers_dispatch_combine_and_notify(
    results: dict[str, Result], profiler: str
) -> None:
    counts = {one.role: one.count for one in results[profiler].roles}
    # 4 layers x 2 micro-batches, forward and backward; a scan and a gather of counts per dispatch
    assert [counts[role] for role in ("ep_dispatch", "ep_combine", "ep_notify")] == [16, 16, 16]
    assert counts["dp_grad_reduce"] == 1


@pytest.mark.parametrize(
    ("metric", "share"),
    [("ep_a2a_transfer_ms", 0.03), ("compute_ms", 0.01), ("expert_gemm_ms", 0.01)],
)
def test_both_profilers_measure_the_same(
    results: dict[str, Result], metric: str, share: float
) -> None:
    nsys, torch = (results[one].metrics[metric].value for one in PROFILERS)
    assert nsys is not None
    assert torch == pytest.approx(nsys, rel=share)


@pytest.mark.parametrize("profiler", PROFILERS)
def test_the_dispatcher_is_read_from_its_kernels(results: dict[str, Result], profiler: str) -> None:
    config = results[profiler].run.config
    assert config["moe_token_dispatcher_type"].value == "flex"
    assert config["moe_flex_dispatcher_backend"].value == "ncclep"
