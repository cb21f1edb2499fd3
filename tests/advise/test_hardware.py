"""The table of GPUs."""

import pytest

from moe_advisor.advise import hardware


@pytest.mark.parametrize(
    ("name", "family", "bf16", "domain"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989.4, 8),
        ("NVIDIA H200", "H200", 989.4, 8),
        ("NVIDIA GB200", "GB200", 2500, 72),
        ("NVIDIA B200", "B200", 2250, 8),
        ("NVIDIA A100-SXM4-80GB", "A100", 312, 8),
    ],
)
def test_a_gpu_is_known_by_the_name_a_trace_gives(
    name: str, family: str, bf16: float, domain: int
) -> None:
    found = hardware.lookup(name)
    assert found["gpu_family"] == family
    assert found["dense_bf16_tflops"] == bf16
    assert found["nvlink_domain_size"] == domain


def test_memory_is_binary_and_absent_peaks_are_absent() -> None:
    found = hardware.lookup("NVIDIA A100-SXM4-80GB")
    assert found["memory_gib"] == pytest.approx(74.5, abs=0.01)
    assert "dense_fp8_tflops" not in found


def test_an_unknown_gpu_and_no_gpu_give_nothing() -> None:
    assert hardware.lookup("Imagination 9000") == {}
    assert hardware.lookup(None) == {}


def test_a_pcie_board_has_no_nvlink_figures() -> None:
    assert "nvlink_domain_size" not in hardware.lookup("NVIDIA H100 PCIe")


def test_every_row_has_a_source_and_positive_figures() -> None:
    for row in hardware.table():
        assert row["source"]
        assert row["dense_bf16_tflops"] > 0
        assert row["memory_bandwidth_gbps"] > 0
