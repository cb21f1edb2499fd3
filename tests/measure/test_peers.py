"""Waiting and transfer across ranks, and what the late rank was doing."""

from dataclasses import replace

import numpy as np

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"


def rank(number: int, start: float, *, compute: float = 0, received: int = 1 << 20, world: int = 2):
    """One step of 100 µs: optional compute from 10 µs on, then an all-to-all that ends at 80."""
    b = TraceBuilder(rank=number, world_size=world)
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    if compute:
        b.kernel(10, 10 + compute, launch=1)
    b.collective(
        start, 80, CollectiveKind.ALL_TO_ALL, "1|[0, 1]", EP, received=received, launch=start - 1
    )
    b.kernel(80, 100, launch=start)
    return measure_rank(b.build(), builtin()).partial


def test_transfer_is_the_shortest_participant_and_waiting_the_rest() -> None:
    summary = summarise([rank(0, 20), rank(1, 60, compute=49)], {})
    metrics = summary.metrics
    assert metrics["ep_a2a_transfer_ms"].value == 0.02
    assert [one.value for one in metrics["ep_a2a_wait_ms"].per_rank] == [0.04, 0.0]
    assert [one.arrived_last for one in summary.ranks] == [0, 1]
    parts = {part.part: part.ms for part in summary.parts_by_rank[0].parts}
    assert parts["ep_a2a_exposed_wait"] == 0.04
    assert parts["ep_a2a_exposed_transfer"] == 0.02


def test_the_cause_of_waiting_is_what_the_late_rank_did_meanwhile() -> None:
    even = summarise([rank(0, 20), rank(1, 60, compute=49)], {}).wait_causes_ms
    assert even == {"host": 0.0, "imbalance": 0.0, "compute": 0.02, "unexplained": 0.0}
    uneven = [rank(0, 20, received=1), rank(1, 60, compute=49, received=1 << 21)]
    assert summarise(uneven, {}).wait_causes_ms == {
        "host": 0.0,
        "imbalance": 0.02,
        "compute": 0.0,
        "unexplained": 0.0,
    }
    held = summarise([rank(0, 20), rank(1, 60)], {}).wait_causes_ms
    assert held == {"host": 0.02, "imbalance": 0.0, "compute": 0.0, "unexplained": 0.0}


def test_tokens_received_give_the_imbalance() -> None:
    ranks = [rank(0, 20, received=100), rank(1, 60, received=300)]
    assert summarise(ranks, {}).metrics["expert_token_imbalance"].value == 1.5


def test_from_one_rank_alone_transfer_is_bounded_not_measured() -> None:
    found = summarise([rank(0, 20)], {"nvlink_gbps_per_direction": 450}).metrics[
        "ep_a2a_transfer_ms"
    ]
    assert found.status == "estimated"
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.high <= 0.06


def test_a_rank_that_is_missing_from_its_group_leaves_waiting_unmeasured() -> None:
    trio = [rank(0, 20, world=3), rank(1, 60, world=3)]
    for one in trio:
        one.facts["group_sizes"] = {"1|[0, 1]": 3}
    assert summarise(trio, {}).metrics["ep_a2a_wait_ms"].status != "measured"


def test_ranks_merge_in_any_order_and_renumbering_changes_only_numbers() -> None:
    ranks = [rank(0, 20), rank(1, 60, compute=49)]
    assert summarise(ranks, {}).metrics == summarise(ranks[::-1], {}).metrics
    renumbered = [replace(one, rank=one.rank + 5) for one in ranks]
    one, other = summarise(ranks, {}), summarise(renumbered, {})
    for name, metric in one.metrics.items():
        assert metric.value == other.metrics[name].value, name
    assert np.isclose(sum(p.ms for p in one.step_parts), sum(p.ms for p in other.step_parts))
