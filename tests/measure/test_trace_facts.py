"""What a trace shows of the configuration: only what it proves, never a look-alike."""

from dataclasses import replace
from typing import Any

import pytest

from moe_advisor.advise.facts import Facts, effective, infer_config, merge_config
from moe_advisor.measure.facts import trace_facts
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CollectiveKind, ProcessGroup, RangeKind
from moe_advisor.result import ConfigValue
from moe_advisor.roles.taxonomy import builtin
from moe_advisor.walls import judge
from tests.trace_builder import GEMM, TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"


def partial(number: int, experts: str, *, forward: str = "", passes: bool = False) -> RankPartial:
    """Two dispatches with four plain GEMMs under `experts` between them."""
    b = TraceBuilder(rank=number, world_size=2)
    b.range(0, 1_000, "iteration 1")
    b.kernel(0, 100, launch=0)
    b.collective(100, 200, CollectiveKind.ALL_TO_ALL, "1|[0, 1]", EP, launch=1)
    b.range(10, 50, experts)
    if forward:
        b.range(0.2, 60, forward)
    for place in range(4):
        at = 200 + place * 50
        b.kernel(at, at + 50, GEMM, launch=12 + place)
    b.collective(500, 600, CollectiveKind.ALL_TO_ALL, "1|[0, 1]", EP, launch=70)
    if passes:
        b.range(80, 90, "MmBackward0", tid=2, kind=RangeKind.OPERATOR, sequence=1, forward_tid=1)
        b.kernel(700, 800, GEMM, launch=81, tid=2)
    b.kernel(900, 1_000, launch=95)
    return measure_rank(b.build(), builtin()).partial


def facts(experts: str, **options: object) -> dict[str, Any]:
    ranks = [partial(number, experts, **options) for number in (0, 1)]  # type: ignore[arg-type]
    return trace_facts(ranks, summarise(ranks, {}), {}, "torch")


def test_grouped_linear_of_transformer_engine_is_grouped_though_it_launches_each_expert() -> None:
    loop = facts("moe.experts")
    assert (loop["sequential_experts"], loop["grouped_gemm"]) == (True, False)
    for name in ("_GroupedLinear", "nvte_multi_tensor_gemm"):
        library = facts(name)
        assert (library["sequential_experts"], library["grouped_gemm"]) == (False, True)
        assert infer_config(library)["moe_grouped_gemm"].value is True


def test_the_merged_schedule_is_proved_by_its_ranges_and_refuted_by_whole_passes() -> None:
    assert facts("moe.experts", forward="moe_dispatch forward")["merged_schedule"] is True
    assert facts("moe.experts", passes=True)["merged_schedule"] is False
    assert "merged_schedule" not in facts("moe.experts")


@pytest.mark.parametrize(("merged", "value"), [(True, True), (False, None), (None, True)])
def test_hidden_all_to_all_without_the_merged_schedule_is_no_expert_overlap(
    merged: bool | None, value: bool | None
) -> None:
    t = {"ep_overlap_active": True, "framework": "megatron"}
    t |= {} if merged is None else {"merged_schedule": merged}
    found = infer_config(t).get("overlap_moe_expert_parallel_comm")
    assert (found.value if found else None) is value
    assert effective(Facts(t=t))["t"]["ep_overlap_active"] is (value or False)


def test_stages_are_counted_by_the_pipelines_process_group_though_no_transfer_names_it() -> None:
    stages = ProcessGroup("9", "PIPELINE_MODEL_PARALLEL_GROUP", (0, 1))
    ranks = []
    for number in (0, 1):
        b = TraceBuilder(rank=number, world_size=2)
        b.range(0, 1_000, "iteration 1")
        b.kernel(0, 1_000, GEMM, launch=0)
        trace = replace(b.build(), groups=(stages,))
        ranks.append(measure_rank(trace, builtin()).partial)
    assert trace_facts(ranks, summarise(ranks, {}), {}, "torch")["pp_size"] == 2


def test_an_uneven_pipeline_is_seen_from_its_metric() -> None:
    t = effective(Facts(m={"step_ms": 100.0, "pp_stage_imbalance_ms": 15.0}))["t"]
    assert t["stage_imbalance_share"] == 0.15


def test_a_given_setting_is_not_completed_from_a_trace_that_shows_none_of_it() -> None:
    seen = infer_config({"recompute": "none", "cuda_graphs": False})
    given = {
        "recompute_granularity": ConfigValue(value="full", source="config"),
        "cuda_graph_impl": ConfigValue(value="transformer_engine", source="command-line"),
    }
    assert merge_config(seen, given) == dict(sorted(given.items()))


def test_a_capture_without_calls_says_nothing_of_the_host() -> None:
    b = TraceBuilder()
    b.range(0, 1_000, "iteration 1")
    for at in (0, 400):
        b.kernel(at, at + 300, GEMM, launch=None)
    one = measure_rank(b.build(), builtin()).partial
    summary = summarise([one], {})
    for name in (
        "host_gap_ms", "host_gap_launch_ms", "host_gap_after_sync_ms", "dependency_idle_ms",
        "launch_starved_ms", "compute_absent_unresolved_ms", "syncs_per_step", "alloc_retries",
        "device_allocs_per_step",
    ):  # fmt: skip
        metric = summary.metrics[name]
        assert (metric.status, metric.value) == ("not_measured", None), name
        assert metric.reason == "rank 0: the capture holds no CUDA API calls"
    assert summary.metrics["gpu_idle_ms"].status == "measured"
    told = trace_facts([one], summary, {}, "nsys")
    assert {"allocator_thrash", "gc_suspected", "long_gap_share"} & told.keys() == set()
    walls = judge(summary.metrics, summary.step_parts, summary.wait_causes_ms, {})
    assert walls.scores["compute_host"] == 0.0
    assert walls.not_measured["compute_host"].startswith("Host gaps: rank 0: ")
    assert walls.headline == (
        "Whether the host holds this run up is not in the capture: the GPU idles 0.4 of 1.0 ms."
    )
