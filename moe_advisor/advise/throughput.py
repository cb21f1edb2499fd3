"""Tokens and model FLOPs of a step from the configuration: what throughput figures divide.

The count is Megatron's: matrix products of forward and backward (three times the forward's),
causal attention at half, recomputation not counted. So it is model, not hardware, FLOPs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NEEDED = (
    "num_layers", "hidden_size", "num_attention_heads", "seq_length", "global_batch_size",
    "padded_vocab_size",
)  # fmt: skip
_MLA = ("kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
_PATTERN = re.compile(r"\[([01](?:,[01])*)\](?:\*(\d{1,4}))?")
_LOGGED = "as the log prints it, unprofiled steps"
_COUNTED = "FLOPs counted from the configuration, full attention in every layer, unprofiled steps"
MAX_LAYERS = 10_000
"""No model has so many; a longer pattern is a broken text."""


PEAKS: Mapping[str, str] = {
    "bf16": "bf16", "fp16": "bf16", "fp32": "bf16", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"
}  # fmt: skip
"""Precision of the GEMMs -> the peak that a utilisation is a share of."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Throughput of the unprofiled step; `missing` settings kept the FLOPs from being counted."""

    tokens_per_s_per_gpu: float | None
    tflops_per_gpu: float | None
    tflops_basis: str
    missing: tuple[str, ...] = ()


def rates(
    config: Mapping[str, Any], step_ms: float | None, gpus: Any, logged_tflops: float | None
) -> Rates:
    """Tokens and model TFLOP per second and GPU; the log's own figure for the latter goes first."""
    if not step_ms or not gpus:
        return Rates(None, logged_tflops, _LOGGED)
    if float(gpus) < _fewest_gpus(config):
        # A trace of some ranks says how many it saw, not how many the job had.
        return Rates(None, logged_tflops, _LOGGED, () if logged_tflops else ("world_size",))
    share = step_ms / 1e3 * float(gpus)
    tokens = tokens_per_step(config)
    per_gpu = tokens / share if tokens else None
    if logged_tflops is not None:
        return Rates(per_gpu, logged_tflops, _LOGGED)
    flops, missing = flops_per_step(config)
    if flops is None:
        return Rates(per_gpu, None, "", tuple(missing))
    return Rates(per_gpu, flops / share / 1e12, _COUNTED)


def _fewest_gpus(config: Mapping[str, Any]) -> float:
    """The GPUs that one copy of the model takes with its dense and with its experts' layout."""

    def size(key: str) -> float:
        return float(config.get(f"{key}_parallel_size") or 1)

    dense = size("tensor_model") * size("context")
    experts = size("expert_model") * float(config.get("expert_tensor_parallel_size") or 1)
    return size("pipeline_model") * max(dense, experts)


def precision(config: Mapping[str, Any], seen: Any = None) -> str:
    """Precision of the GEMMs by its published name: from the configuration, else from kernels."""
    if config.get("fp4"):
        return "nvfp4"
    if config.get("fp8"):
        return "mxfp8" if config.get("fp8_recipe") == "mxfp8" else "fp8"
    return seen if seen in PEAKS else "bf16"


def tokens_per_step(config: Mapping[str, Any]) -> float | None:
    """Tokens of a global batch; None where batch or sequence is not known."""
    batch, sequence = config.get("global_batch_size"), config.get("seq_length")
    return float(batch) * float(sequence) if batch and sequence else None


def flops_per_step(config: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    """Model FLOPs of a step over all GPUs, or None with the settings that are missing.

    The vocabulary may be given padded or not: padding changes the count by less than 0.1 %.
    """
    c = dict(config)
    c.setdefault("padded_vocab_size", c.get("vocab_size"))
    needed = [*_NEEDED]
    if c.get("num_moe_experts"):
        needed.append("moe_router_topk")
        if not c.get("moe_ffn_hidden_size"):
            needed.append("ffn_hidden_size")
    if c.get("multi_latent_attention"):
        needed += _MLA
    missing = [key for key in needed if not c.get(key)]
    kinds = moe_layers(c)
    if kinds is None:
        missing.append("moe_layer_freq")
    elif not all(kinds) and not c.get("ffn_hidden_size"):
        missing.append("ffn_hidden_size")
    if missing or kinds is None:
        return None, list(dict.fromkeys(missing))
    mtp = int(c.get("mtp_num_layers") or 0)
    hidden = float(c["hidden_size"])
    per_token = sum(_mlp(c, moe) + _attention(c) for moe in [*kinds, *kinds[-1:] * mtp])
    per_token += 2.0 * hidden * float(c["padded_vocab_size"]) * (1 + mtp)
    per_token += mtp * 2.0 * 2.0 * hidden * hidden  # joins the embedding with the layer before
    tokens = float(c["global_batch_size"]) * float(c["seq_length"])
    return 3.0 * tokens * per_token, []


def moe_layers(config: Mapping[str, Any]) -> list[bool] | None:
    """Which layers hold experts; None for a pattern that can't be read."""
    count = int(config.get("num_layers") or 0)
    if not config.get("num_moe_experts"):
        return [False] * min(count, MAX_LAYERS)
    pattern = config.get("moe_layer_freq", 1)
    if isinstance(pattern, Sequence) and not isinstance(pattern, str):
        return [str(item) == "1" for item in pattern]
    text = re.sub(r"[()\s]", "", str(pattern))
    if text.isdigit() and int(text) > 0:
        return [layer % int(text) == 0 for layer in range(min(count, MAX_LAYERS))]
    kinds: list[bool] = []
    for part in text.split("+"):
        found = _PATTERN.fullmatch(part)
        if found is None or len(kinds) > MAX_LAYERS:
            return None
        kinds += [item == "1" for item in found[1].split(",")] * int(found[2] or 1)
    return kinds


def _mlp(c: Mapping[str, Any], moe: bool) -> float:
    """Forward FLOPs per token of one layer's MLP or experts."""
    hidden = float(c["hidden_size"])
    gated = 1.5 if c.get("gated_linear_unit") else 1.0
    if not moe:
        return 4.0 * hidden * float(c["ffn_hidden_size"]) * gated
    width = float(c.get("moe_ffn_hidden_size") or c["ffn_hidden_size"])
    latent = float(c.get("moe_latent_size") or 0.0)
    routed = 4.0 * (latent or hidden) * width * float(c["moe_router_topk"]) * gated
    shared = 4.0 * hidden * float(c.get("moe_shared_expert_intermediate_size") or 0.0) * gated
    return routed + shared + 4.0 * hidden * latent


def _attention(c: Mapping[str, Any]) -> float:
    """Forward FLOPs per token of one layer's attention: projections and causal core."""
    hidden, heads = float(c["hidden_size"]), float(c["num_attention_heads"])
    sequence = float(c["seq_length"])
    if c.get("multi_latent_attention"):
        rank, head, rope, value = (float(c[key]) for key in _MLA)
        q_rank = float(c.get("q_lora_rank") or 0.0)
        wide = heads * (head + rope)
        weights = hidden * q_rank + q_rank * wide if q_rank else hidden * wide
        weights += hidden * (rank + rope) + rank * heads * (head + value) + heads * value * hidden
        return 2.0 * weights + sequence * heads * (head + rope + value)
    channels = float(c.get("kv_channels") or hidden / heads)
    groups = float(c.get("num_query_groups") or heads)
    weights = hidden * channels * (heads + 2.0 * groups) + heads * channels * hidden
    return 2.0 * weights + 2.0 * sequence * heads * channels
