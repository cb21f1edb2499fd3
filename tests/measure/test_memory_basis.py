"""What the memory figures of a log are taken against."""

from pathlib import Path

import pytest

from moe_advisor.analysis import Options, analyze
from moe_advisor.result import MetricValue
from tests.nsys_builder import NsysExport, two_steps


def headroom(builder: NsysExport, folder: Path) -> MetricValue:
    trace = builder.write(folder / "a.sqlite")
    log = folder / "train.log"
    log.write_text(
        "[Rank 0] (after 2 iterations) memory (MB) | allocated: 1024.0 | max allocated: 10240.0 | "
        "reserved: 11264.0 | max reserved: 12288.0\n"
    )
    return analyze([str(trace)], Options(log=str(log))).metrics["memory_headroom_gib"]


def test_headroom_from_a_log_says_that_the_size_is_the_catalogues(tmp_path: Path) -> None:
    builder = two_steps()
    builder.add(
        "TARGET_INFO_GPU", id=0, name="NVIDIA H100 80GB HBM3", totalMemory=80 << 30,
        memoryBandwidth=3_350, smCount=132, computeMajor=9, computeMinor=0, cuDevice=0,
    )  # fmt: skip
    builder.add("TARGET_INFO_CUDA_DEVICE", gpuId=0, cudaId=0, pid=10)
    found = headroom(builder, tmp_path)
    size = float(str(found.basis).split(" GiB")[0])
    assert 70 < size <= 80
    assert found.value == pytest.approx(size - 10.0, abs=0.05)
    assert "by the catalogue, less the log's highest peak" in str(found.basis)


def test_of_an_unknown_gpu_only_the_peak_is_known(tmp_path: Path) -> None:
    found = headroom(two_steps(), tmp_path)
    assert found.status == "not_measured"
    assert str(found.reason).startswith("the trace does not name the GPU")
