"""What is known of a GPU from its name: peaks, memory, links. The figures carry their source."""

from functools import cache
from pathlib import Path
from typing import Any

from moe_advisor.advise import safe_yaml

_DATA = Path(__file__).parent / "data" / "hardware.yaml"
_BYTES_PER_GB = 1e9
_BYTES_PER_GIB = 2**30


@cache
def table() -> tuple[dict[str, Any], ...]:
    """All GPU families, most specific name first."""
    return tuple(safe_yaml.load(_DATA.read_text(encoding="utf-8")))


def lookup(gpu_name: str | None) -> dict[str, Any]:
    """Figures of the GPU called `gpu_name`, the `hw` of rules; empty for a GPU not in the table.

    Keys: gpu_name, gpu_family, compute_capability, memory_gib (of the whole device),
    memory_bandwidth_gbps and nvlink_gbps_per_direction (GB/s), nic_gbps (Gb/s), nvlink_domain_size,
    dense_bf16_tflops, dense_fp8_tflops, dense_fp4_tflops, source. A peak that the GPU does not
    have is absent. A PCIe or NVL board keeps no NVLink figures: the table is of SXM boards.
    """
    if not gpu_name:
        return {}
    name = gpu_name.lower()
    for row in table():
        if any(part in name for part in row["names"]):
            found = {"gpu_name": gpu_name, "gpu_family": row["family"]}
            found |= {k: v for k, v in row.items() if k not in ("family", "names", "memory_gb")}
            found["memory_gib"] = row["memory_gb"] * _BYTES_PER_GB / _BYTES_PER_GIB
            if "pcie" in name:
                del found["nvlink_gbps_per_direction"], found["nvlink_domain_size"]
            return {key: value for key, value in found.items() if value is not None}
    return {}
