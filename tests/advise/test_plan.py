"""The plan: order, causes and symptoms, alternatives, gains that are not added."""

import msgspec
import pytest

from moe_advisor.advise import Facts, advise
from moe_advisor.advise.rule import EstimateSpec, Rule, parse
from moe_advisor.result import ConfigValue, Estimate, PlanStep, Recommendation, Walls

TEMPLATE = """\
id: {id}
title: Change {id}
wall: {wall}
severity: {severity}
confidence: low
phase: {phase}
when: m.step_ms > 1.0
finding: f
passes: p
changes: [{change}]
estimate: {estimate}
verify: v
why: w
{more}
cases:
  - {{name: a, expect: finding}}
  - {{name: b, expect: pass}}
  - {{name: c, expect: not_measured}}
"""


def rule(
    name: str,
    wall: str = "communication",
    severity: str = "medium",
    phase: str = "profile",
    whatif: str | None = None,
    change: str = "{framework: job, key: k, to: v}",
    more: str = "",
) -> Rule:
    estimate = f"{{whatif: {whatif}}}" if whatif else "{reason: none}"
    text = TEMPLATE.format(
        id=name, wall=wall, severity=severity, phase=phase, estimate=estimate, change=change,
        more=more,
    )  # fmt: skip
    found = parse(text, f"{name}.yaml")
    assert isinstance(found, Rule)
    return found


def walls(verdict: str, limiter: str | None = None) -> Walls:
    empty = Walls(
        verdict="mixed", limiter=limiter, margin=0.1, threshold=0.1, next=None, scores={},
        parts=[], not_measured={}, reasons=[], headline="", cause="",
    )  # fmt: skip
    return msgspec.structs.replace(empty, verdict=verdict)


def gain(ms: float) -> Estimate:
    return Estimate(status="estimated", low_ms=ms / 2, expected_ms=ms, high_ms=ms * 1.5)


def plan(
    rules: list[Rule],
    estimates: dict[str, Estimate] | None = None,
    current: Walls | None = None,
    **metrics: float,
) -> tuple[list[Recommendation], list[PlanStep]]:
    facts = Facts(m={"step_ms": 100.0} | metrics, walls=current)
    advice = advise(facts, rules, estimates or {})
    return advice.recommendations, advice.plan


def test_fit_comes_before_scale_before_profile() -> None:
    rules = [rule("c", phase="profile"), rule("a", phase="fit"), rule("b", phase="scale")]
    found, _ = plan(rules)
    assert [item.rule for item in found] == ["a", "b", "c"]
    assert [item.rank for item in found] == [1, 2, 3]


def test_the_current_wall_comes_first_and_what_limits_it_before_the_rest() -> None:
    rules = [
        rule("fits", wall="memory", phase="fit", severity="high"),
        rule("dp", phase="scale", severity="high"),
        rule("overlap", whatif="ep-overlap"),
    ]
    found, _ = plan(rules, current=walls("communication", "ep_a2a"))
    assert [item.rule for item in found] == ["overlap", "dp", "fits"]


def test_a_symptom_belongs_to_its_cause() -> None:
    rules = [rule("late-rank", more="symptom_of: [host]"), rule("host", wall="compute_host")]
    found, steps = plan(rules, current=walls("communication"))
    assert [item.rule for item in found] == ["host", "late-rank"]
    assert found[1].withheld is not None
    assert "a symptom of 'Change host'" in found[1].withheld
    assert [step.rules for step in steps] == [["host", "late-rank"]]


def test_symptoms_of_symptoms_belong_to_the_root() -> None:
    rules = [
        rule("c", more="symptom_of: [b]"),
        rule("b", more="symptom_of: [a]"),
        rule("a"),
    ]
    _, steps = plan(rules)
    assert [sorted(step.rules) for step in steps] == [["a", "b", "c"]]


def test_rules_that_blame_each_other_stand_alone() -> None:
    rules = [rule("a", more="symptom_of: [b]"), rule("b", more="symptom_of: [a]")]
    found, _ = plan(rules)
    assert len(found) == 2


def test_of_two_that_exclude_each_other_the_second_is_an_alternative() -> None:
    rules = [rule("a", severity="high"), rule("b", severity="low", more="excludes: [a]")]
    found, steps = plan(rules)
    assert [(item.rule, item.alternative_to) for item in found] == [("a", None), ("b", "a")]
    assert [step.rules for step in steps] == [["a"]]
    assert "b" in steps[0].title


def test_two_values_for_one_setting_are_alternatives() -> None:
    key = "{key: moe_token_dispatcher_type, to: %s}"
    rules = [
        rule("a", severity="high", change=key % "flex"),
        rule("b", severity="low", change=key % "alltoall"),
    ]
    found, _ = plan(rules)
    assert [(item.rule, item.alternative_to) for item in found] == [("a", None), ("b", "a")]


def test_changes_that_break_a_validation_only_together_are_not_both_in_the_plan() -> None:
    rules = [
        rule("a", severity="high", change="{key: overlap_moe_expert_parallel_comm, to: true}"),
        rule("b", severity="low", change="{key: recompute_granularity, to: full}"),
    ]
    found, steps = plan(rules)
    assert [item.rule for item in found] == ["a", "b"]
    assert "together with the changes before it" in (found[1].withheld or "")
    assert [step.rules for step in steps] == [["a"]]


def test_after_puts_a_prerequisite_first_against_severity() -> None:
    rules = [rule("a", severity="high", more="after: [b]"), rule("b", severity="low")]
    found, _ = plan(rules)
    assert [item.rule for item in found] == ["b", "a"]


def test_gains_from_one_pool_are_less_than_their_sum() -> None:
    rules = [rule("a", whatif="ep-overlap"), rule("b", whatif="link")]
    estimates = {"ep-overlap": gain(20.0), "link": gain(20.0)}
    _, steps = plan(rules, estimates, ep_a2a_exposed_ms=40.0)
    assert steps[0].combined.expected_ms == pytest.approx(20.0)
    assert steps[1].combined.expected_ms == pytest.approx(30.0)
    assert steps[1].combined.high_ms is not None
    assert steps[1].combined.high_ms <= 40.0


def test_gains_from_two_pools_never_exceed_the_step() -> None:
    rules = [rule("a", whatif="ep-overlap"), rule("b", whatif="cuda-graphs")]
    estimates = {"ep-overlap": gain(80.0), "cuda-graphs": gain(80.0)}
    _, steps = plan(rules, estimates)
    assert steps[1].combined.expected_ms == pytest.approx(96.0)


def test_the_same_what_if_counts_once() -> None:
    rules = [rule("a", whatif="recompute"), rule("b", whatif="recompute")]
    _, steps = plan(rules, {"recompute": gain(30.0)}, recompute_ms=60.0)
    assert steps[-1].combined.expected_ms == pytest.approx(30.0)


def test_a_plan_without_estimates_says_so() -> None:
    _, steps = plan([rule("a")])
    assert steps[0].combined.status == "not_measured"
    assert steps[0].combined.reason


def test_a_withheld_change_is_last_and_in_no_step() -> None:
    more = "withhold: [{when: 'm.step_ms > 1.0', reason: not yet}]"
    found, steps = plan([rule("a", severity="high", more=more), rule("b", severity="low")])
    assert [(item.rule, item.withheld) for item in found] == [("b", None), ("a", "not yet")]
    assert [step.rules for step in steps] == [["b"]]


def bounded(name: str, metric: str, **more: str) -> Rule:
    text = rule(name, **more)
    return msgspec.structs.replace(
        text, estimate=EstimateSpec(reason="the most this can gain", bound=metric)
    )


def test_in_a_stage_gains_come_before_bounds_and_bounds_before_unpriced_checks() -> None:
    rules = [
        rule("check", severity="high"),
        bounded("bound", "dp_collective_exposed_ms", severity="medium"),
        rule("small", whatif="host-syncs", severity="high"),
        rule("large", whatif="ep-overlap", severity="low"),
    ]
    estimates = {"ep-overlap": gain(20.0), "host-syncs": gain(5.0)}
    found, _ = plan(rules, estimates, dp_collective_exposed_ms=30.0)
    assert [item.rule for item in found] == ["large", "small", "bound", "check"]


def test_a_published_loss_comes_before_a_check_without_any_figure() -> None:
    evidence = "evidence: [{text: t, source: s, change_share: -0.1}]"
    found, _ = plan([rule("a", severity="high"), rule("b", more=evidence)])
    assert [item.rule for item in found] == ["b", "a"]


def test_a_bound_is_an_estimate_from_nothing_to_its_share_of_the_metric() -> None:
    one = bounded("a", "ep_a2a_exposed_ms")
    quarter = msgspec.structs.replace(
        one, estimate=msgspec.structs.replace(one.estimate, share=0.25)
    )
    found, steps = plan([quarter], ep_a2a_exposed_ms=40.0)
    estimate = found[0].estimate
    assert (estimate.status, estimate.low_ms, estimate.expected_ms, estimate.high_ms) == (
        "estimated", 0.0, None, 10.0,
    )  # fmt: skip
    assert steps[0].combined.status == "not_measured"
    without, _ = plan([one])
    assert without[0].estimate.status == "not_measured"


def test_the_whole_plan_is_one_change_with_its_check() -> None:
    rules = [
        rule("a", severity="high", change="{key: overlap_param_gather, to: true}"),
        rule("b", severity="medium", change="{key: CUDA_DEVICE_MAX_CONNECTIONS, framework: env, "
             "to: '8'}"),
        rule("c", severity="low", change="{key: recompute_granularity, to: full}",
             more="withhold: [{when: 'm.step_ms > 1.0', reason: not yet}]"),
    ]  # fmt: skip
    config = {
        "overlap_grad_reduce": False, "use_distributed_optimizer": True, "use_megatron_fsdp": False
    }  # fmt: skip
    facts = Facts(
        m={"step_ms": 100.0},
        c={key: ConfigValue(value=value, source="config") for key, value in config.items()},
    )
    advice = advise(facts, rules, {})
    change = advice.change
    assert change is not None
    assert change.bridge_overrides == [
        "ddp.overlap_param_gather=true", "ddp.overlap_grad_reduce=true"
    ]  # fmt: skip
    assert change.megatron_bridge == [
        "cfg.ddp.overlap_param_gather = True", "cfg.ddp.overlap_grad_reduce = True"
    ]  # fmt: skip
    assert change.megatron_lm == ["--overlap-param-gather", "--overlap-grad-reduce"]
    assert change.environment == ["export CUDA_DEVICE_MAX_CONNECTIONS=8"]
    assert change.broken == []
    assert change.checked == change.passed + len(change.unknown)
    assert change.passed >= 1
    assert all("--set" in text for text in change.unknown)


def test_a_given_configuration_that_cannot_start_is_not_called_unbroken() -> None:
    one = rule("a", change="{key: moe_permute_fusion, to: true}")
    config = {
        "overlap_moe_expert_parallel_comm": True, "recompute_granularity": "full",
        "moe_token_dispatcher_type": "alltoall", "moe_permute_fusion": False,
    }  # fmt: skip
    facts = Facts(
        m={"step_ms": 100.0},
        c={key: ConfigValue(value=value, source="config") for key, value in config.items()},
    )
    change = advise(facts, [one], {}).change
    assert change is not None
    assert change.broken == [
        "not with full recompute (selective recompute goes) while EP overlap is on: raises "
        "(already so in the configuration as given)"
    ]
    assert change.checked == change.passed + len(change.unknown) + 1


def test_a_plan_of_work_outside_the_configuration_is_no_change_to_paste() -> None:
    assert advise(Facts(m={"step_ms": 100.0}), [rule("a")], {}).change is None


def test_a_change_that_takes_back_the_gain_of_those_before_it_waits() -> None:
    rules = [rule("a", whatif="permute-fusion"), rule("b", whatif="dispatcher")]
    estimates = {"permute-fusion": gain(12.0), "dispatcher": gain(1.0)}
    asked: list[tuple[str, ...]] = []

    def combine(names: tuple[str, ...]) -> Estimate:
        asked.append(names)
        return gain(5.0)

    advice = advise(Facts(m={"step_ms": 100.0}), rules, estimates, combine)
    assert "12.0 ms without this one and 5.0 ms with it" in (
        advice.recommendations[1].withheld or ""
    )
    assert [step.rules for step in advice.plan] == [["a"]]
    assert advice.plan[0].combined.expected_ms == pytest.approx(12.0)
    assert asked == [("dispatcher", "permute-fusion")]


@pytest.mark.parametrize(
    ("together", "waits"),
    [
        (118.4, False),  # 0.4 ms of the 80 ms that are left, as much as between two runs
        (116.2, True),  # 2.6 ms, a fortieth
    ],
)
def test_a_change_waits_where_the_step_that_is_left_gets_longer_than_runs_differ(
    together: float, waits: bool
) -> None:
    rules = [rule("a", whatif="link"), rule("b", whatif="ep-overlap")]
    estimates = {"link": gain(118.8), "ep-overlap": gain(10.0)}
    facts = Facts(m={"step_ms": 200.0})
    advice = advise(facts, rules, estimates, lambda names: gain(together))
    assert (advice.recommendations[1].withheld is not None) == waits


def test_half_of_a_gain_that_is_small_beside_the_step_is_not_given_back() -> None:
    rules = [rule("a", whatif="permute-fusion"), rule("b", whatif="dispatcher")]
    estimates = {"permute-fusion": gain(1.0), "dispatcher": gain(0.5)}
    facts = Facts(m={"step_ms": 1_000.0})
    advice = advise(facts, rules, estimates, lambda names: gain(0.4))
    assert advice.recommendations[1].withheld is not None
