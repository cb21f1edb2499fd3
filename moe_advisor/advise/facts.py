"""What rules are evaluated on: measured metrics, configuration, hardware and trace facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_advisor.advise import hardware
from moe_advisor.advise.expressions import Context
from moe_advisor.ingest.run_config import OTHER_KEYS
from moe_advisor.keys import known, release
from moe_advisor.result import ConfigValue, MetricValue, Walls

VERSION_KEYS = ("megatron_core_version", "te_version", "torch_version")
"""Versions are compared as numbers in rules: major × 1000 + minor (2.6 is 2006)."""

_DISPATCHER_CONFIG: Mapping[str, tuple[str, str | None]] = {
    "allgather": ("allgather", None),
    "alltoall": ("alltoall", None),
    "deepep": ("flex", "deepep"),
    "hybridep": ("flex", "hybridep"),
    "ncclep": ("flex", "ncclep"),
}

_DEPRECATED: Mapping[str, Any] = {
    "enable_cuda_graph": False,
    "external_cuda_graph": False,
    "cuda_graph_scope": None,
    "moe_enable_deepep": False,
    "moe_deepep_num_sms": None,
    "moe_hybridep_num_sms": None,
    "moe_layer_recompute": False,
    "energon_native_packing": False,
    "fake_process_group": False,
    "hybrid_context_parallel": False,
    "tensor_parallel_num_weight_shards": None,
}
"""Switches that a given configuration would show if they were on."""

_SHARES = {
    "host_gap_share": "host_gap_ms",
    "compute_share": "compute_ms",
    "dp_exposed_share": "dp_collective_exposed_ms",
    "tp_exposed_share": "tp_collective_exposed_ms",
    "cp_exposed_share": "cp_collective_exposed_ms",
    "permute_share": "permute_ms",
    "attention_share": "attention_ms",
    "router_share": "router_ms",
    "optimizer_share": "optimizer_ms",
    "recompute_share": "recompute_ms",
    "offload_share": "offload_exposed_ms",
    "bubble_share": "pp_bubble_ms",
    "stage_imbalance_share": "pp_stage_imbalance_ms",
    "sync_gap_share": "host_gap_sync_ms",
    "alloc_gap_share": "host_gap_alloc_ms",
    "data_gap_share": "host_gap_data_ms",
    "launch_gap_share": "host_gap_launch_ms",
    "overlap_slowdown_share": "overlap_slowdown_ms",
    "elementwise_share": "elementwise_ms",
}
"""Trace facts that are a metric's share of the step, filled where the trace part is silent."""


_NEVER_NONE = frozenset(
    {
        "global_batch_size", "hidden_size", "log_interval", "micro_batch_size",
        "num_attention_heads", "num_layers", "seq_length", "world_size",
    }
)  # fmt: skip
"""Settings that every run has: one printed as None was not settled yet, and is unknown."""

_SIZES = ("ep_size", "pp_size", "tp_size", "cp_size")
_GIVEN = ("config", "log", "command-line")
"""Sources of a configuration that someone gave, unlike what the trace shows."""


_PARTS_OF = {
    "recompute_granularity": ("recompute_method", "recompute_num_layers", "recompute_modules"),
    "cuda_graph_impl": ("cuda_graph_modules",),
}
"""Settings that detail another one: given ones are not completed from what the trace shows."""


@dataclass(frozen=True)
class Facts:
    """Everything a rule may look at. A name that is not there is unknown, never zero."""

    m: dict[str, float] = field(default_factory=dict)
    """Metrics that were measured or estimated, in their registered units."""
    metric_status: dict[str, MetricValue] = field(default_factory=dict)
    c: dict[str, ConfigValue] = field(default_factory=dict)
    hw: dict[str, Any] = field(default_factory=dict)
    t: dict[str, Any] = field(default_factory=dict)
    walls: Walls | None = None


def infer_config(t: Mapping[str, Any]) -> dict[str, ConfigValue]:
    """Configuration values that the trace itself shows, with source `trace`."""
    found: dict[str, Any] = {"framework": t["framework"]} if t.get("framework") else {}
    found |= {
        key: t[name]
        for name, key in (
            ("ep_size", "expert_model_parallel_size"),
            ("pp_size", "pipeline_model_parallel_size"),
            ("tp_size", "tensor_model_parallel_size"),
            ("cp_size", "context_parallel_size"),
            ("fused_permute", "moe_permute_fusion"),
            ("fused_router", "moe_router_fusion"),
        )
        if t.get(name) is not None
    }
    dispatcher, backend = _DISPATCHER_CONFIG.get(str(t.get("dispatcher")), (None, None))
    if dispatcher:
        found["moe_token_dispatcher_type"] = dispatcher
    if backend:
        found["moe_flex_dispatcher_backend"] = backend
    if t.get("ep_overlap_active") is True and t.get("merged_schedule") is not False:
        found["overlap_moe_expert_parallel_comm"] = True
    recompute = t.get("recompute")
    if recompute in ("full", "selective"):
        found["recompute_granularity"] = recompute
    elif recompute == "none":
        found |= dict.fromkeys(
            ("recompute_granularity", "recompute_method", "recompute_num_layers")
        )
        found["recompute_modules"] = []
    if t.get("grouped_gemm") is True:
        found["moe_grouped_gemm"] = True
    if t.get("cuda_graphs") is False:
        found |= {"cuda_graph_impl": "none", "cuda_graph_modules": []}
    precision = t.get("precision")
    if precision in ("bf16", "fp8", "fp16", "fp32"):
        # FP8 recipes are layered on BF16.
        found |= {"bf16": precision in ("bf16", "fp8"), "fp16": precision == "fp16"}
    return {key: ConfigValue(value=value, source="trace") for key, value in found.items()}


def merge_config(*configs: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
    """Configurations in one, later ones winning, but a framework's default never beats a value."""
    merged: dict[str, ConfigValue] = {}
    for config in configs:
        for key, item in config.items():
            if item.source != "default" or key not in merged:
                merged[key] = item
    for key, parts in _PARTS_OF.items():
        if key in merged and merged[key].source in _GIVEN:
            # The trace that shows none of it says nothing about how it was set up.
            for part in parts:
                if part in merged and merged[part].source == "trace":
                    del merged[part]
    return dict(sorted(merged.items()))


def effective(facts: Facts) -> Context:
    """The maps that expressions see: given values first, then what follows from them."""
    merged = merge_config(infer_config(facts.t), facts.c)
    c = {
        key: _clean(key, item.value)
        for key, item in merged.items()
        if item.value is not None or key not in _NEVER_NONE
    }
    if c.get("recompute_granularity") == "selective" and c.get("recompute_modules") == []:
        c["recompute_modules"] = ["core_attn"]  # the framework's default
    if any(item.source in ("config", "log") for item in facts.c.values()):
        for key in _DEPRECATED:
            c.setdefault(key, _DEPRECATED[key])
    hw = dict(facts.hw)
    if "gpu_family" not in hw and c.get("gpu_name"):
        hw |= hardware.lookup(str(c["gpu_name"]))
    m = dict(facts.m)
    t = {key: value for key, value in facts.t.items() if value is not None}
    # What the trace shows, before the configuration fills the gaps: for contradictions.
    t |= {f"seen_{key}": t[key] for key in _SIZES if key in t}
    if t.get("merged_schedule") is False and str(c.get("framework")).startswith("megatron"):
        # Megatron overlaps the routed experts in the merged schedule only.
        t |= {"ep_overlap_active": False} if "ep_overlap_active" in t else {}
    t["config_given"] = any(item.source in _GIVEN for item in facts.c.values())
    _derive(t, m, c, hw, facts.metric_status)
    walls: dict[str, Any] = {}
    if facts.walls is not None:
        walls = {"verdict": facts.walls.verdict, "limiter": facts.walls.limiter}
    return {"m": m, "c": c, "hw": hw, "t": t, "walls": walls}


def _clean(key: str, value: Any) -> Any:
    """A configuration value in the form rules expect of its key."""
    if key in VERSION_KEYS:
        number = release(value)
        return None if number is None else number[0] * 1000 + number[1]
    known_key = known().get(key)
    if value is None and known_key is not None:
        if known_key.kind == "bool":
            return False
        if known_key.kind == "list":
            return []
    return value


def _derive(
    t: dict[str, Any],
    m: Mapping[str, float],
    c: Mapping[str, Any],
    hw: Mapping[str, Any],
    status: Mapping[str, MetricValue],
) -> None:
    """Fill trace facts that follow from others; none that is already there is changed."""

    def fill(name: str, value: Any) -> None:
        if value is not None:
            t.setdefault(name, value)

    for name, key in (
        ("ep_size", "expert_model_parallel_size"),
        ("pp_size", "pipeline_model_parallel_size"),
        ("tp_size", "tensor_model_parallel_size"),
        ("cp_size", "context_parallel_size"),
        ("world_size", "world_size"),
    ):
        fill(name, c.get(key))
    if "virtual_pipeline_model_parallel_size" in c:
        fill("vpp_size", c["virtual_pipeline_model_parallel_size"] or 1)
    fill("etp_size", _expert_tensor_size(c, t))
    step_ms = m.get("step_ms")
    if step_ms:
        for name, metric in _SHARES.items():
            if metric in m:
                fill(name, m[metric] / step_ms)
        if "expert_gemm_ms" in m and "dense_gemm_ms" in m:
            gemm_ms = m["expert_gemm_ms"] + m["dense_gemm_ms"] + m.get("gemm_unattributed_ms", 0.0)
            fill("gemm_share", gemm_ms / step_ms)
        _derive_wait(t, m, step_ms, status)
    fill("microbatches", m.get("microbatches_per_step") or _microbatches(c, t))
    fill("ep_spans_domains", _spans_domains(t, hw))
    fill("ep_link_slow", _link_slow(t))


def _derive_wait(
    t: dict[str, Any], m: Mapping[str, float], step_ms: float, status: Mapping[str, MetricValue]
) -> None:
    """Split the exposed all-to-all into waiting and transfer, only where both were measured.

    Waiting is taken out of the exposed time first: a late peer's wait is rarely hidden, and what
    remains is the least that overlap could still hide.
    """
    names = ("ep_a2a_exposed_ms", "ep_a2a_wait_ms", "ep_a2a_transfer_ms")
    estimated = any(name in status and status[name].status != "measured" for name in names)
    if estimated or any(name not in m for name in names):
        t.pop("a2a_wait_share", None)
        t.pop("a2a_transfer_share", None)
        return
    t.setdefault("a2a_wait_share", m["ep_a2a_wait_ms"] / step_ms)
    t.setdefault("a2a_transfer_share", m["ep_a2a_transfer_ms"] / step_ms)
    exposed_transfer_ms = max(0.0, m["ep_a2a_exposed_ms"] - m["ep_a2a_wait_ms"])
    t.setdefault(
        "a2a_exposed_transfer_share", min(exposed_transfer_ms, m["ep_a2a_transfer_ms"]) / step_ms
    )


def _expert_tensor_size(c: Mapping[str, Any], t: Mapping[str, Any]) -> Any:
    if c.get("expert_tensor_parallel_size"):
        return c["expert_tensor_parallel_size"]
    if c.get("framework") == "megatron-bridge" and "expert_tensor_parallel_size" in c:
        return 1
    # Megatron-LM takes the tensor-parallel size; with that 1, both frameworks agree.
    size = t.get("tp_size")
    return size if c.get("framework") == "megatron-lm" or size == 1 else None


def _microbatches(c: Mapping[str, Any], t: Mapping[str, Any]) -> float | None:
    """Micro-batches of a step: global batch / (micro batch × data-parallel size)."""
    parts = [t.get("tp_size"), t.get("pp_size"), t.get("cp_size")]
    world, batch, micro = (
        t.get("world_size"),
        c.get("global_batch_size"),
        c.get("micro_batch_size"),
    )
    if not (world and batch and micro and all(parts)):
        return None
    tp, pp, cp = (float(part) for part in parts if part)
    return float(batch) * tp * pp * cp / (float(micro) * float(world))


def _spans_domains(t: Mapping[str, Any], hw: Mapping[str, Any]) -> bool | None:
    """Whether an expert group reaches over more than one NVLink domain."""
    if t.get("ep_size") == 1:
        return False
    if t.get("nodes") == 1:
        return False
    domain, ep_size = hw.get("nvlink_domain_size"), t.get("ep_size")
    if not domain or not ep_size:
        return None
    # Expert ranks are laid out next to each other: expert tensor ranks first, then expert ranks.
    return bool(float(ep_size) * float(t.get("etp_size") or 1) > float(domain))


def _link_slow(t: Mapping[str, Any]) -> bool | None:
    """Whether the experts' wire is slower than one NVLink domain; None when not known."""
    if t.get("a2a_slow_link") is True or t.get("link") in ("host", "pcie", "network"):
        return True
    if t.get("ep_spans_domains") is True:
        return True
    if t.get("a2a_slow_link") is False or t.get("link") == "nvlink":
        return False
    # One domain does not prove a fast wire: peer-to-peer can be off on a host with NVLink.
    return None


_TRACE_QUESTIONS = {
    "a2a_wait_share": "give the traces of all ranks of an expert group, so that waiting and "
    "transfer can be told apart",
    "dispatcher": "--set moe_token_dispatcher_type=allgather|alltoall|flex, or trace a step with "
    "expert communication in it",
    "ep_size": "give --config FILE, or --set expert_model_parallel_size=N",
    "pp_size": "give --config FILE, or --set pipeline_model_parallel_size=N",
    "tp_size": "give --config FILE, or --set tensor_model_parallel_size=N",
    "cp_size": "give --config FILE, or --set context_parallel_size=N",
    "vpp_size": "give --config FILE, or --set virtual_pipeline_model_parallel_size=N",
    "etp_size": "give --config FILE, or --set expert_tensor_parallel_size=N",
    "microbatches": "give --config FILE, or --set global_batch_size=N --set micro_batch_size=N",
    "world_size": "give --config FILE, or --set world_size=N",
    "ep_spans_domains": "give --config FILE, or --set expert_model_parallel_size=N "
    "--set gpu_name=NAME",
    "ep_link_slow": "give --config FILE, or --set expert_model_parallel_size=N --set gpu_name=NAME",
    "fused_attention": "capture kernel names: nsys with --trace=cuda, or the torch profiler with "
    "CUDA activities",
    "gc_suspected": "capture with torch.profiler(with_stack=True), or run once with manual_gc and "
    "compare",
    "shared_experts": "give --config FILE, or --set moe_shared_expert_intermediate_size=N",
    "graph_opaque": "capture with nsys profile --cuda-graph-trace=node",
    "profiler_overhead_share": "give the training log with --log FILE: it holds the unprofiled "
    "step time",
    "imbalance_sticky": "give the traces of all ranks of an expert group, with at least two steps",
    "peer_access": "look at nvidia-smi topo -m",
    **dict.fromkeys(
        ("seen_ep_size", "seen_pp_size", "seen_tp_size", "seen_cp_size"),
        "the trace has no process groups to compare with",
    ),
    "emit_nvtx": "capture host ranges: nsys profile --trace=cuda,nvtx",
}
_TRACE_QUESTIONS |= dict.fromkeys(
    ("a2a_transfer_share", "a2a_exposed_transfer_share"), _TRACE_QUESTIONS["a2a_wait_share"]
)


def questions(names: Sequence[str], facts: Facts) -> str:
    """One sentence that asks for all of `names`, configuration values together."""
    keys = [name[2:] for name in names if name.startswith("c.")]
    asked = [_ask_config(*keys)] if keys else []
    asked += [question(name, facts) for name in names if not name.startswith("c.")]
    return "; ".join(dict.fromkeys(asked))


def question(name: str, facts: Facts) -> str:
    """What the user can do so that the fact `name` (`c.x`, `m.x` ...) becomes known."""
    root, _, leaf = name.partition(".")
    if root == "c":
        return _ask_config(leaf)
    if root == "hw":
        return "the GPU is not known: --set gpu_name=H100 (or the name the vendor gives it)"
    if root == "m":
        status = facts.metric_status.get(leaf)
        return f"{leaf}: {status.reason}" if status and status.reason else f"{leaf} is not measured"
    if root == "walls":
        return "the verdict is not known"
    if leaf in _TRACE_QUESTIONS:
        return _TRACE_QUESTIONS[leaf]
    if leaf in _SHARES:
        return question(f"m.{_SHARES[leaf]}", facts)
    return f"the trace does not show {leaf.replace('_', ' ')}"


def _ask_config(*keys: str) -> str:
    wanted = " ".join(f"--set {key}={_value_form(key)}" for key in keys)
    return f"give --config FILE, or {wanted}"


_FORMS = {"bool": "true|false", "int": "N", "float": "X"}


def _value_form(key: str) -> str:
    known_key = known().get(key)
    if key in VERSION_KEYS:
        value = "X.Y"
    elif known_key is None:
        value = _FORMS.get(OTHER_KEYS.get(key, ""), "VALUE")
    elif known_key.values:
        none = known_key.default is None and "none" not in known_key.values
        value = "|".join([*known_key.values, *(["none"] if none else [])])
    else:
        value = _FORMS.get(known_key.kind, "VALUE")
    return value
