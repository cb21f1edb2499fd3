"""Whatever a run is configured like, its plan breaks no validation and names no unknown key."""

import random
from typing import Any

import pytest

from moe_advisor.advise import Facts, advise, checks, hardware, load_rules
from moe_advisor.advise.expressions import names
from moe_advisor.advise.facts import effective
from moe_advisor.advise.rule import blocks
from moe_advisor.keys import in_release, known, release
from moe_advisor.result import ConfigValue

RULES = load_rules()
SETTINGS = sorted(
    {
        name[2:]
        for check in checks.catalogue()
        for name in names(check.violated)
        if name.startswith("c.")
    }
)
SHARES = (
    "ep_a2a_exposed_ms", "ep_a2a_wait_ms", "ep_a2a_transfer_ms", "host_gap_ms", "permute_ms",
    "host_gap_launch_ms", "host_gap_sync_ms", "host_gap_after_sync_ms", "host_gap_alloc_ms",
    "expert_gemm_ms", "dense_gemm_ms", "attention_ms", "router_ms", "optimizer_ms",
    "dp_collective_exposed_ms", "tp_collective_exposed_ms", "cp_collective_exposed_ms",
    "recompute_ms", "pp_bubble_ms", "pp_p2p_exposed_ms", "offload_exposed_ms",
    "overlap_slowdown_ms", "gemm_unattributed_ms",
)  # fmt: skip


def _setting(key: str, rng: random.Random) -> Any:
    row = known().get(key)
    if key.isupper():
        return rng.choice(["0", "1", "8", "32"])
    if key in ("te_version", "torch_version"):
        return rng.choice(["1.9", "2.5", "2.9", "2.14"])
    if key.endswith("_parallel_size"):
        return rng.choice([1, 2, 4, 8])
    if row is None or row.kind == "bool":
        return rng.random() < 0.3
    if row.kind == "list":
        return rng.sample(row.values, rng.randint(0, min(2, len(row.values))))
    return rng.choice([*row.values, row.default] if row.values else [row.default, 1, 2, 64])


def _run(rng: random.Random) -> Facts:
    config = {key: _setting(key, rng) for key in SETTINGS if rng.random() < 0.85}
    config |= {
        "framework": rng.choice(["megatron-bridge", "megatron-lm"]), "micro_batch_size": 1,
        "world_size": rng.choice([16, 256]), "global_batch_size": 1024, "seq_length": 4096,
        "megatron_core_version": rng.choice(["main", "0.15", "0.18"]),
    }  # fmt: skip
    metrics = {name: 400.0 * rng.random() for name in SHARES}
    metrics |= {
        "step_ms": 1000.0, "ep_a2a_exposed_share": metrics["ep_a2a_exposed_ms"] / 1000.0,
        "graph_kernel_share": rng.random(), "kernels_per_step": 1000.0, "memory_peak_gib": 40.0,
        "memory_headroom_gib": rng.choice([1.0, 30.0, 100.0]), "alloc_retries": 2.0,
        "permute_to_expert_gemm": 1.0, "permute_floor_ms": 1.0, "expert_token_imbalance": 1.5,
        "ep_a2a_bus_gbps": 20.0,
    }  # fmt: skip
    trace = {
        "dispatcher": rng.choice(["alltoall", "allgather", "deepep", "hybridep"]),
        "recompute": rng.choice(["none", "full", "selective"]), "precision": "bf16",
        "expert_gemm_launches_per_layer": 32.0, "syncs_per_microbatch": 8.0,
    }  # fmt: skip
    switches = (
        "ep_overlap_active", "fused_attention", "sequential_experts", "a2a_slow_link",
        "cuda_graphs", "shared_experts", "fused_permute", "dp_overlap_active",
    )  # fmt: skip
    trace |= {name: rng.random() < 0.4 for name in switches if rng.random() < 0.9}
    gpu = rng.choice(["NVIDIA H100 80GB HBM3", "NVIDIA B200", "NVIDIA GB200"])
    return Facts(
        m=metrics,
        t=trace,
        c={key: ConfigValue(value=value, source="config") for key, value in config.items()},
        hw=hardware.lookup(gpu),
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_breaks_no_validation_and_uses_the_releases_own_keys(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        facts = _run(rng)
        advice = advise(facts, RULES, {})
        assert [item for item in advice.outcomes if item.outcome == "error"] == []
        before = {item.check.id for item in checks.violations(effective(facts))}
        broken = {
            check.id
            for check in checks.catalogue()
            if blocks(check.consequence)
            and f"{check.text}: {check.consequence}" in advice.violations
        }
        assert broken <= before
        version = release(facts.c["megatron_core_version"].value)
        for found in advice.recommendations:
            for change in found.changes:
                if change.framework in ("megatron-bridge", "megatron-lm") and not found.withheld:
                    assert in_release(change.since, change.until, version), change
