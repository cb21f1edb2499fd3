"""Published throughput of the same model on the same GPU, and what differs from this run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moe_advisor.advise import safe_yaml

_DATA = Path(__file__).parent / "data" / "reference_points.yaml"

REMARK = "Published throughput is force-balanced: an upper bound for the model's own routing."

_LAYOUT = {
    "gpus": "world_size",
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "global_batch_size": "global_batch_size",
    "micro_batch_size": "micro_batch_size",
    "seq_length": "seq_length",
}


@dataclass(frozen=True, slots=True)
class ReferencePoint:
    """One published run with what differs in layout and flags: key -> (published, here)."""

    model: str
    gpu: str
    precision: str
    tokens_per_s_per_gpu: float
    tflops_per_gpu: float
    release: str
    source: str
    layout: Mapping[str, Any]
    differences: Mapping[str, tuple[Any, Any]]


@cache
def _table() -> Mapping[str, Any]:
    rows: dict[str, Any] = safe_yaml.load(_DATA.read_text(encoding="utf-8"))
    return rows


def model_of(config: Mapping[str, Any]) -> str | None:
    """The published model a configuration describes, by its experts, top-k, width and depth.

    Two of these values must be there, and none may differ. None where the model is not known.
    """
    candidates = []
    for name, signature in _table()["models"].items():
        given = {key: config[key] for key in signature if config.get(key) is not None}
        same = all(given[key] == signature[key] for key in given)
        if same and {"num_moe_experts", "hidden_size"} <= set(given):
            candidates.append(name)
    return candidates[0] if len(candidates) == 1 else None


def points_for(
    config: Mapping[str, Any], gpu_family: str | None, precision: str | None = None
) -> list[ReferencePoint]:
    """Published runs of the configuration's model on this GPU, fewest differences first.

    With `precision` (bf16, fp8, mxfp8, nvfp4) those of that precision come first. Empty where the
    model or the GPU has no published run.
    """
    model = model_of(config)
    if model is None or gpu_family is None:
        return []
    found = [
        _point(row, config)
        for row in _table()["points"]
        if row["model"] == model and row["gpu"] == gpu_family
    ]
    return sorted(
        found,
        key=lambda point: (point.precision != precision, len(point.differences), point.release),
    )


def _point(row: Mapping[str, Any], config: Mapping[str, Any]) -> ReferencePoint:
    layout = {name: row[name] for name in _LAYOUT if name in row}
    there = {_LAYOUT[name]: value for name, value in layout.items()} | row.get("flags", {})
    differences = {
        key: (value, config[key])
        for key, value in there.items()
        if key in config and config[key] != value
    }
    return ReferencePoint(
        model=row["model"],
        gpu=row["gpu"],
        precision=row["precision"],
        tokens_per_s_per_gpu=float(row["tokens_per_s_per_gpu"]),
        tflops_per_gpu=float(row["tflops_per_gpu"]),
        release=str(row["release"]),
        source=row["source"],
        layout=layout,
        differences=differences,
    )
