"""Algorithm and bus bandwidth by the factors of nccl-tests, apart by kind and span."""

from dataclasses import replace

import pytest

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ALL_REDUCE, SEND_RECV, TraceBuilder

H200 = {"nvlink_gbps_per_direction": 450, "nic_gbps": 400, "nvlink_domain_size": 8}
DP, TP, CP = "DATA_PARALLEL_GROUP", "TENSOR_MODEL_PARALLEL_GROUP", "CONTEXT_PARALLEL_GROUP"
MIB = 1 << 20


def job(
    kind: CollectiveKind,
    description: str,
    *,
    ranks: int = 2,
    size: int = 100 * MIB,
    each: float = 1_000,
    own: int = -1,
    world: list[int] | None = None,
):
    """Ranks with one collective of `each` µs; size per rank as torch counts it."""
    numbers = world or list(range(ranks))
    found = []
    for number in numbers:
        b = TraceBuilder(rank=number, world_size=max(numbers) + 1)
        b.range(0, 5_000, "iteration 1")
        b.kernel(0, 10, launch=0)
        gathered = kind == CollectiveKind.ALL_GATHER
        scattered = kind == CollectiveKind.REDUCE_SCATTER
        b.collective(
            20,
            20 + each,
            kind,
            "1|group",
            description,
            name=ALL_REDUCE if kind != CollectiveKind.ALL_TO_ALL else SEND_RECV,
            sent=size // len(numbers) if gathered else size,
            received=size // len(numbers) if scattered else size,
            own=own,
            size=len(numbers),
            launch=1,
        )
        b.kernel(2_000, 2_010, launch=1_900)
        found.append(measure_rank(b.build(), builtin()).partial)
    return found


@pytest.mark.parametrize(
    ("kind", "description", "metric", "factor"),
    [
        (CollectiveKind.ALL_REDUCE, DP, "dp_collective_bus_gbps", 1.5),
        (CollectiveKind.ALL_GATHER, TP, "tp_collective_bus_gbps", 0.75),
        (CollectiveKind.REDUCE_SCATTER, TP, "tp_collective_bus_gbps", 0.75),
        (CollectiveKind.ALL_GATHER, CP, "cp_collective_bus_gbps", 0.75),
    ],
)
def test_bus_bandwidth_of_four_ranks(
    kind: CollectiveKind, description: str, metric: str, factor: float
) -> None:
    summary = summarise(job(kind, description, ranks=4), H200)
    alg = 100 * MIB / 1e6  # GB/s of 1 ms
    assert summary.metrics[metric].value == pytest.approx(alg * factor)
    assert summary.why is not None
    (rate,) = summary.why.rates
    assert rate.alg_gbps == pytest.approx(alg)
    assert rate.link_share == pytest.approx(alg * factor / 450, abs=1e-6)
    assert (rate.ranks, rate.count, rate.transfer_ms) == (4, 1.0, 1.0)


def test_all_to_all_counts_what_leaves_the_rank() -> None:
    summary = summarise(
        job(CollectiveKind.ALL_TO_ALL, "EXPERT_MODEL_PARALLEL_GROUP", own=60 * MIB), H200
    )
    assert summary.why is not None
    (rate,) = summary.why.rates
    assert rate.alg_gbps == pytest.approx(100 * MIB / 1e6)
    assert rate.bus_gbps == pytest.approx(40 * MIB / 1e6)
    share = summary.metrics["ep_a2a_link_share"]
    assert share.value == pytest.approx(40 * MIB / 1e6 / 450, abs=1e-6)
    assert share.basis == "of 450 GB/s in one direction, intra-node, by rank numbers"


def test_a_group_across_nodes_is_held_against_the_nic() -> None:
    ranks = job(CollectiveKind.ALL_REDUCE, DP, world=[0, 8])
    for one in ranks:
        one.facts["group_sizes"] = {}
    summary = summarise(ranks, H200)
    assert summary.why is not None
    (rate,) = summary.why.rates
    assert (rate.span, rate.link_gbps) == ("across nodes, by rank numbers", 50.0)


def test_one_reports_machines_decide_the_span() -> None:
    same = [
        replace(one, rank_source="communicator", epoch_ns=5, host=1)
        for one in job(CollectiveKind.ALL_REDUCE, DP)
    ]
    apart = [replace(one, host=one.rank + 1) for one in same]
    for ranks, span in ((same, "intra-node"), (apart, "across nodes")):
        why = summarise(ranks, H200).why
        assert why is not None
        assert why.rates[0].span == span


def test_small_collectives_are_counted_but_say_nothing_about_the_link() -> None:
    summary = summarise(job(CollectiveKind.ALL_REDUCE, DP, size=1000), H200)
    assert summary.metrics["dp_collective_bus_gbps"].status == "not_measured"
    assert summary.why is not None
    assert summary.why.rates[0].status == "not_measured"
    assert summary.why.rates[0].count == 1.0


def test_from_one_rank_alone_the_rate_is_a_bound() -> None:
    ranks = job(CollectiveKind.ALL_REDUCE, DP)
    why = summarise(ranks[:1], H200).why
    assert why is not None
    (rate,) = why.rates
    assert rate.status == "estimated"
    assert rate.bus_gbps == pytest.approx(100 * MIB / 1e6)
    assert "at least 104.9 GB/s" in str(rate.remark)


def test_communication_holds_an_sm_per_block() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 10, launch=0)
    b.collective(10, 40, CollectiveKind.ALL_TO_ALL, "1", "EXPERT_GROUP", blocks=32, launch=1)
    b.collective(40, 50, CollectiveKind.ALL_REDUCE, "2", DP, name=ALL_REDUCE, blocks=24, launch=2)
    found = summarise([measure_rank(b.build(), builtin()).partial], {}).metrics["comm_sms_held"]
    assert found.value == 30.0
    assert "dp_collective 24" in str(found.basis)
