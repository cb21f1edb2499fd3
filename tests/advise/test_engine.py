"""The engine: outcomes, completed or withheld changes, conditions with their questions."""

from typing import Any

from moe_advisor.advise import (
    Advice,
    Facts,
    advise,
    hardware,
    infer_config,
    load_rules,
    merge_config,
)
from moe_advisor.advise.engine import fill
from moe_advisor.advise.facts import effective
from moe_advisor.advise.rule import Rule, parse
from moe_advisor.result import ConfigValue, Estimate, MetricValue, Recommendation, Walls

SLOW_LINK = {
    "step_ms": 330.1,
    "ep_a2a_exposed_ms": 182.6,
    "ep_a2a_exposed_share": 0.553,
    "ep_a2a_wait_ms": 0.7,
    "ep_a2a_transfer_ms": 181.9,
}
TRACE = {
    "framework": "megatron", "ep_size": 16, "dispatcher": "alltoall", "a2a_slow_link": True,
    "recompute": "none",
}  # fmt: skip
OVERLAP = "exposed-expert-all-to-all"


def config(**values: Any) -> dict[str, ConfigValue]:
    return {key: ConfigValue(value=value, source="config") for key, value in values.items()}


def run(estimates: dict[str, Estimate] | None = None, **parts: Any) -> Advice:
    facts = Facts(
        m=parts.get("m", SLOW_LINK),
        t=TRACE | parts.get("t", {}),
        c=config(**parts.get("c", {})),
        hw=hardware.lookup(parts.get("gpu", "NVIDIA H100 80GB HBM3")),
        metric_status=parts.get("status", {}),
        walls=parts.get("walls"),
    )
    return advise(facts, load_rules(), estimates or {})


def found(advice: Advice, rule: str = OVERLAP) -> Recommendation:
    return next(item for item in advice.recommendations if item.rule == rule)


def outcome(advice: Advice, rule: str = OVERLAP) -> str:
    return next(item.outcome for item in advice.outcomes if item.id == rule)


def test_every_rule_has_an_outcome_and_none_is_an_error() -> None:
    advice = run()
    assert len(advice.outcomes) == len(load_rules())
    assert [item for item in advice.outcomes if item.outcome == "error"] == []


def test_no_facts_at_all_give_no_finding_and_no_pass_by_silence() -> None:
    advice = advise(Facts(), load_rules(), {})
    assert {item.outcome for item in advice.outcomes} <= {"not_measured", "not_applicable"}
    assert advice.recommendations == []
    assert advice.plan == []


def test_a_change_is_spelt_for_both_frameworks_with_its_present_value() -> None:
    changes = found(run(c={"overlap_moe_expert_parallel_comm": False})).changes
    spelt = {(item.framework, item.key): (item.from_, item.to) for item in changes}
    key = "comm_overlap.overlap_moe_expert_parallel_comm"
    assert spelt["megatron-bridge", key] == (False, True)
    assert spelt["megatron-lm", "--overlap-moe-expert-parallel-comm"] == (False, True)


def test_what_a_change_needs_is_added_where_it_can_be() -> None:
    item = found(run(c={"moe_shared_expert_overlap": True}))
    assert item.withheld is None
    added = [x for x in item.changes if x.key == "model.moe_shared_expert_overlap"]
    assert [(x.from_, x.to) for x in added] == [(True, False)]
    assert "needed" in (added[0].note or "")


def test_what_cannot_be_completed_withholds_the_change_with_the_reason() -> None:
    item = found(
        run(c={"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": None})
    )
    assert item.withheld is not None
    assert "virtual pipeline stages" in item.withheld
    assert "raises" in item.withheld


def test_full_recompute_withholds_the_overlap_and_comes_first() -> None:
    walls = Walls(
        verdict="communication", limiter="ep_a2a", margin=0.3, threshold=0.1, next="memory",
        scores={}, parts=[], not_measured={}, reasons=[], headline="", cause="",
    )  # fmt: skip
    metrics = SLOW_LINK | {
        "recompute_ms": 60.0, "memory_headroom_gib": 60.0, "memory_peak_gib": 10.0
    }  # fmt: skip
    advice = run(m=metrics, t={"recompute": "full"}, walls=walls)
    assert found(advice).withheld is not None
    ranks = {item.rule: item.rank for item in advice.recommendations}
    assert ranks["full-recompute-with-headroom"] < ranks[OVERLAP]


def test_an_unknown_condition_asks_for_the_setting() -> None:
    conditions = found(run()).requires
    vpp = next(item for item in conditions if "virtual pipeline stages" in item.text)
    assert vpp.state == "unknown"
    assert "--set pipeline_model_parallel_size=N" in (vpp.question or "")
    assert vpp.consequence == "raises"


def test_a_known_condition_is_met() -> None:
    item = found(run(c={"torch_version": "2.9.1"}))
    torch = next(x for x in item.requires if "torch 2.6" in x.text)
    assert (torch.state, torch.question) == ("met", None)


def test_a_newer_minor_version_is_newer_though_its_digits_sort_lower() -> None:
    old = found(run(c={"torch_version": "2.5"}))
    new = found(run(c={"torch_version": "2.10"}))
    assert old.withheld is not None
    assert new.withheld is None


def test_an_estimate_that_is_a_loss_withholds_the_change() -> None:
    loss = Estimate(status="estimated", low_ms=-20.0, expected_ms=-8.0, high_ms=2.0)
    assert "8.0 ms slower" in (found(run({"ep-overlap": loss})).withheld or "")


def test_a_what_if_that_was_not_run_leaves_the_estimate_not_measured() -> None:
    estimate = found(run()).estimate
    assert (estimate.status, estimate.expected_ms) == ("not_measured", None)
    assert "ep-overlap" in (estimate.reason or "")


def test_settings_that_are_in_place_are_not_recommended_again() -> None:
    advice = run(c={"overlap_moe_expert_parallel_comm": True}, gpu="NVIDIA B200")
    assert "already has these settings" in (found(advice).withheld or "")


def test_waiting_keeps_the_overlap_silent_and_names_the_late_rank() -> None:
    metrics = SLOW_LINK | {
        "ep_a2a_wait_ms": 150.0, "ep_a2a_transfer_ms": 30.0, "expert_token_imbalance": 1.0
    }  # fmt: skip
    advice = run(m=metrics)
    assert outcome(advice) == "pass"
    assert outcome(advice, "straggling-expert-ranks") == "finding"


def test_an_estimated_split_of_one_rank_is_no_split() -> None:
    status = {"ep_a2a_wait_ms": MetricValue(status="estimated", value=0.7, unit="ms/step")}
    advice = run(status=status)
    assert outcome(advice) == "not_measured"


def test_the_question_for_an_absent_metric_is_the_reason_it_was_not_measured() -> None:
    status = {
        "graph_kernel_share": MetricValue(
            status="not_measured", value=None, unit="share", reason="no kernel rows"
        )
    }
    metrics = SLOW_LINK | {"host_gap_ms": 100.0, "host_gap_launch_ms": 90.0}
    advice = run(m=metrics, status=status)
    reason = next(x.reason for x in advice.outcomes if x.id == "launch-bound-host")
    assert "no kernel rows" in reason


def test_a_release_without_the_key_gets_the_older_spelling() -> None:
    metrics = {
        "step_ms": 97.9, "host_gap_ms": 43.2, "host_gap_launch_ms": 36.0,
        "graph_kernel_share": 0.0, "kernels_per_step": 2378.0,
    }  # fmt: skip
    old = found(run(m=metrics, c={"megatron_core_version": "0.16.1"}), "launch-bound-host")
    new = found(run(m=metrics), "launch-bound-host")
    assert "model.cuda_graph_scope" in {x.key for x in old.changes}
    assert "model.cuda_graph_modules" not in {x.key for x in old.changes}
    modules = next(x for x in new.changes if x.key == "model.cuda_graph_modules")
    assert modules.old_key == "model.cuda_graph_scope"


def test_a_release_that_lacks_a_feature_withholds_it() -> None:
    item = found(run(c={"megatron_core_version": "0.13.0"}))
    assert "needs Megatron-Core 0.14" in (item.withheld or "")


def test_the_trace_fills_what_the_configuration_does_not_give() -> None:
    inferred = infer_config({"ep_size": 8, "dispatcher": "deepep", "recompute": "none"})
    assert inferred["expert_model_parallel_size"] == ConfigValue(value=8, source="trace")
    assert inferred["moe_token_dispatcher_type"].value == "flex"
    assert inferred["moe_flex_dispatcher_backend"].value == "deepep"
    assert inferred["recompute_granularity"].value is None
    given = Facts(c=config(expert_model_parallel_size=4), t={"ep_size": 8})
    assert effective(given)["c"]["expert_model_parallel_size"] == 4
    assert effective(given)["t"]["ep_size"] == 8


def test_microbatches_follow_from_the_batch_sizes() -> None:
    facts = Facts(
        c=config(
            global_batch_size=1024, micro_batch_size=1, world_size=16, tensor_model_parallel_size=2,
            pipeline_model_parallel_size=2, context_parallel_size=1,
        )
    )  # fmt: skip
    assert effective(facts)["t"]["microbatches"] == 256


def test_a_group_inside_one_domain_can_still_have_a_slow_link() -> None:
    one_host = {"ep_size": 2, "nodes": 1}
    hw = hardware.lookup("H200")
    assert "ep_link_slow" not in effective(Facts(t=one_host, hw=hw))["t"]
    assert effective(Facts(t=one_host | {"a2a_slow_link": True}, hw=hw))["t"]["ep_link_slow"]
    assert effective(Facts(t={"ep_size": 16}, hw=hw))["t"]["ep_link_slow"] is True


def test_a_configuration_that_the_trace_contradicts_is_a_finding() -> None:
    advice = run(c={"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "deepep"})
    assert outcome(advice, "dispatcher-fallback") == "finding"
    advice = run(c={"overlap_moe_expert_parallel_comm": True}, t={"ep_overlap_active": False})
    assert outcome(advice, "ineffective-ep-overlap") == "finding"


def test_a_text_shows_unknown_and_none_and_never_evaluates_anything() -> None:
    context = {"m": {"a": 1.234}, "c": {"x": None}, "t": {"s": "{m.a}"}}
    text = "{m.a:.1f} {m.gone:.1f} {c.x} {t.s} {m.__class__} {m.a:zz}"
    assert fill(text, context) == "1.2 unknown none {m.a} unknown 1.234"


FOREIGN = """\
id: mine
title: Mine
wall: compute_host
severity: low
confidence: low
phase: profile
when: m.step_ms > 1.0
finding: Found.
passes: Fine.
changes: [{key: moe_permute_fusion, to: true}]
estimate: {reason: none}
verify: v
why: w
cases:
  - {name: a, expect: finding}
  - {name: b, expect: pass}
  - {name: c, expect: not_measured}
"""


def test_a_rule_of_the_user_is_judged_in_a_child_process_with_the_same_conditions() -> None:
    import msgspec

    rule = parse(FOREIGN, "mine.yaml")
    assert isinstance(rule, Rule)
    advice = advise(Facts(m={"step_ms": 2.0}), [msgspec.structs.replace(rule, foreign=True)], {})
    assert advice.outcomes[0].outcome == "finding"
    assert any("Transformer Engine 2.1" in x.text for x in advice.recommendations[0].requires)


def test_a_default_never_beats_what_the_trace_or_another_source_shows() -> None:
    default = {"moe_token_dispatcher_type": ConfigValue(value="allgather", source="default")}
    facts = Facts(t={"dispatcher": "alltoall"}, c=default)
    assert effective(facts)["c"]["moe_token_dispatcher_type"] == "alltoall"
    merged = merge_config(config(moe_router_topk=8), default | {
        "moe_router_topk": ConfigValue(value=2, source="default")
    })  # fmt: skip
    assert merged["moe_router_topk"].value == 8
    assert merged["moe_token_dispatcher_type"].value == "allgather"


def test_own_code_gets_no_megatron_setting_beside_a_gain_that_is_not_that_settings() -> None:
    own = found(run(t={"framework": None, "microbatches": 2}))
    assert {item.framework for item in own.changes} == {"pytorch"}
    assert own.withheld is None
    assert all(item.state != "unmet" for item in (*own.requires, *own.conflicts))
    megatron = found(run(t={"microbatches": 2}))
    assert "fewer than 4 micro-batches" in " ".join(x.text for x in megatron.conflicts)
    assert "raise them to 4" in (megatron.withheld or "")


def test_a_list_is_edited_and_what_else_is_in_it_stays() -> None:
    modules = {"recompute_granularity": "selective", "recompute_modules": ["moe", "mlp"]}
    metrics = {"step_ms": 657.0, "memory_headroom_gib": 30.0, "memory_peak_gib": 44.0}
    advice = run(m=metrics, c=modules)
    changes = found(advice, "whole-moe-recompute").changes
    assert [x.to for x in changes if x.key == "model.recompute_modules"] == [["mlp", "moe_act"]]


def test_a_tight_run_climbs_the_recompute_ladder_and_never_down() -> None:
    tight = {"step_ms": 657.0, "memory_headroom_gib": 1.0, "memory_peak_gib": 78.0}

    def rung(modules: list[str], **more: Any) -> Any:
        c = {"recompute_granularity": "selective", "recompute_modules": modules, **more}
        advice = run(m=tight, c=c, t={"recompute": "selective"})
        changes = found(advice, "tight-memory").changes
        return [x.to for x in changes if x.key == "model.recompute_modules"]

    assert rung(["mlp"]) == [["mlp", "moe_act"]]
    assert rung(["moe_act"]) == [["moe_act", "layernorm"]]
    assert rung(["moe_act"], multi_latent_attention=True) == [["moe_act", "mla_up_proj"]]
    assert rung(["moe_act", "layernorm"]) == [["layernorm", "moe"]]
    assert rung(["moe"]) == []


def test_core_attention_alone_leaves_nothing_to_recompute() -> None:
    c = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    item = found(run(c=c, t={"fused_attention": True}), "useless-attention-recompute")
    lm = {x.key: x.to for x in item.changes if x.framework == "megatron-lm"}
    assert lm == {"--recompute-granularity": None, "--recompute-modules": []}


def test_a_value_made_of_an_unknown_one_is_left_out() -> None:
    c = {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "deepep"}
    item = found(run(c=c, t={"ep_size": None}, gpu="NVIDIA GB200"), "refused-deepep-backend")
    assert "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN" not in {x.key for x in item.changes}
    assert "unknown" not in {x.to for x in item.changes if isinstance(x.to, str)}


def test_a_setting_without_effect_owns_the_symptoms_of_its_absence() -> None:
    c = {"overlap_moe_expert_parallel_comm": True, "framework": "megatron-bridge"}
    advice = run(c=c, t={"ep_overlap_active": False}, gpu="NVIDIA B200")
    assert "a symptom of 'Find out why the expert overlap hides nothing'" in (
        found(advice).withheld or ""
    )


def test_sizes_that_only_the_configuration_gives_are_not_called_an_agreement() -> None:
    rule = "parallel-size-mismatch"
    assert outcome(run(c={"expert_model_parallel_size": 16}), rule) == "pass"
    assert outcome(run(c={"expert_model_parallel_size": 8}), rule) == "finding"
    alone = run(c={"expert_model_parallel_size": 8}, t={"ep_size": None})
    assert outcome(alone, rule) == "not_measured"
    assert outcome(run(), rule) == "not_applicable"


def test_a_smaller_setting_that_a_validation_wants_as_well_is_added() -> None:
    c = {"moe_router_dtype": None, "num_moe_experts": 64}
    item = found(run(c=c, t={"a2a_slow_link": False, "permute_share": 0.3}), DISPATCH)
    assert "model.moe_router_dtype" in {x.key for x in item.changes}


DISPATCH = "row-expanding-dispatch"
