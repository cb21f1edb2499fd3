"""What the rules say of runs whose outcome was published: never against what was measured."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_advisor.advise import Advice, Facts, advise, hardware, load_rules
from moe_advisor.result import ConfigValue

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "published_cases.yaml").read_text(encoding="utf-8")
)

BYTES_BF16 = 2
ALL_TO_ALLS = 4  # dispatch and combine, forward and backward


def _transfer_ms(model: dict[str, float]) -> float:
    """Wire time of a step: bytes of balanced alltoall that cross hosts, over the network rate."""
    crossing = (model["hosts"] - 1) / model["hosts"]
    per_dispatch = model["tokens"] * model["top_k"] * model["hidden"] * BYTES_BF16 * crossing
    step_bytes = per_dispatch * ALL_TO_ALLS * model["layers"] * model["microbatches"]
    return step_bytes / (model["gbps"] * 1e9) * 1e3


def _advice(case: dict[str, Any]) -> Advice:
    m = {key: float(value) for key, value in case["m"].items()}
    if "estimated" in case:
        transfer_ms = _transfer_ms(case["estimated"])
        m |= {
            "ep_a2a_exposed_ms": transfer_ms,
            "ep_a2a_exposed_share": transfer_ms / m["step_ms"],
            "ep_a2a_transfer_ms": transfer_ms,
            "ep_a2a_wait_ms": 0.0,
        }
    # Published runs are Megatron-Bridge's; the project's own two-GPU runs are own code.
    own = case["name"].startswith("two H200")
    given = case["c"] | ({} if own else {"framework": "megatron-bridge"})
    facts = Facts(
        m=m,
        c={key: ConfigValue(value=value, source="config") for key, value in given.items()},
        hw=hardware.lookup(case["gpu"]),
        t=case["t"] | case.get("derived", {}),
    )
    return advise(facts, load_rules(), {})


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_advice_is_what_the_published_outcome_supports(case: dict[str, Any]) -> None:
    advice = _advice(case)
    outcomes = {item.id: item for item in advice.outcomes}
    for rule, allowed in case["allowed"].items():
        assert outcomes[rule].outcome in allowed, outcomes[rule].reason
    for rule, text in case.get("asks", {}).items():
        assert text in outcomes[rule].reason
    made = {item.rule for item in advice.recommendations if item.withheld is None}
    assert made >= set(case.get("recommends", ()))
    assert not made & set(case.get("never", ()))
    assert [item for item in advice.outcomes if item.outcome == "error"] == []


def test_the_published_gain_of_overlap_is_offered_as_the_setting_that_made_it() -> None:
    advice = _advice(next(case for case in CASES if "cost model" in case["name"]))
    assert advice.change is not None
    overlap = "comm_overlap.overlap_moe_expert_parallel_comm=true"
    assert overlap in advice.change.bridge_overrides
    assert advice.change.broken == []


def test_the_cost_model_gives_the_published_share_of_an_unoptimised_run() -> None:
    case = next(case for case in CASES if "estimated" in case)
    assert 0.3 < _transfer_ms(case["estimated"]) / case["m"]["step_ms"] < 0.5


def test_no_rule_ever_offers_what_ran_out_of_memory_in_every_published_try() -> None:
    offered = {change.key for rule in load_rules() for change in rule.changes}
    assert "cpu_offloading" not in offered
    assert "cpu_offloading_num_layers" not in offered
