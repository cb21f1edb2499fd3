"""The verdict on small sets of numbers: what counts for which wall, and when none is named."""

from moe_advisor.measure.registry import METRICS
from moe_advisor.result import Issue, MetricValue, StepPart, Walls
from moe_advisor.walls import MARGIN, WORTHWHILE, doubted, judge

STEP_MS = 100.0


def verdict(
    parts: dict[str, float],
    causes: dict[str, float] | None = None,
    inside: dict[str, float] | None = None,
    unknown: tuple[str, ...] = (),
    estimated: dict[str, tuple[float, float]] | None = None,
    **values: float,
) -> Walls:
    """The walls of a 100 ms step; metrics not given are a measured 0."""
    metrics = {
        name: MetricValue(status="measured", value=values.get(name, 0.0), unit=metric.unit)
        for name, metric in METRICS.items()
    }
    metrics["step_ms"] = MetricValue(status="measured", value=STEP_MS, unit="ms/step")
    for name in unknown:
        metrics[name] = MetricValue(status="not_measured", value=None, unit="", reason="no data")
    for name, (low, high) in (estimated or {}).items():
        metrics[name] = MetricValue(
            status="estimated", value=high, unit="ms/step", low=low, high=high
        )
    rows = [
        StepPart(part=name, family="exposed_communication", label=name, ms=ms)
        for name, ms in parts.items()
    ]
    return judge(metrics, rows, causes, inside or {})


def test_exposed_transfer_is_the_communication_wall() -> None:
    walls = verdict({"ep_a2a_exposed_transfer": 40.0}, ep_a2a_exposed_ms=40.0)
    assert (walls.verdict, walls.limiter) == ("communication", "ep_a2a")
    assert walls.scores["communication"] == 0.4
    assert walls.margin == 0.4


def test_compute_slowed_by_overlap_belongs_to_the_communication_that_ran() -> None:
    walls = verdict({}, overlap_slowdown_ms=20.0, dp_collective_ms=60.0)
    assert (walls.verdict, walls.limiter) == ("communication", "dp_collective")
    assert "slower beside" in walls.headline
    assert "20.0 of 100.0 ms" in walls.headline
    with_experts = verdict({}, overlap_slowdown_ms=20.0, ep_a2a_ms=60.0, dp_collective_ms=5.0)
    assert with_experts.limiter == "ep_a2a"
    assert with_experts.headline.startswith(
        "Compute runs slower beside the expert all-to-all: 20.0"
    )


def test_waiting_counts_for_the_wall_that_causes_it() -> None:
    parts = {"ep_a2a_exposed_wait": 30.0, "ep_a2a_exposed_transfer": 5.0}
    none = {"host": 0.0, "imbalance": 0.0, "compute": 0.0, "unexplained": 0.0}
    host = verdict(parts, none | {"host": 30.0})
    assert (host.verdict, host.limiter) == ("compute_host", "host")
    uneven = verdict(parts, none | {"imbalance": 30.0})
    assert (uneven.verdict, uneven.limiter) == ("communication", "imbalance")
    slow = verdict(parts, none | {"compute": 30.0}, gpu_slowness=1.2)
    assert (slow.verdict, slow.limiter) == ("compute_host", "slow_gpu")
    more_work = verdict(parts, none | {"compute": 30.0}, gpu_slowness=1.0)
    assert (more_work.verdict, more_work.limiter) == ("compute_host", "compute")
    unexplained = verdict(parts, none | {"unexplained": 30.0})
    assert (unexplained.verdict, unexplained.limiter) == ("communication", "ep_a2a")


def test_recompute_owns_the_communication_and_permutation_inside_it() -> None:
    walls = verdict(
        {"ep_a2a_exposed_transfer": 12.0},
        inside={"comm": 4.0, "permute": 5.0},
        recompute_ms=25.0,
        permute_ms=10.0,
        compute_excess_ms=6.0,
    )
    assert (walls.verdict, walls.limiter) == ("memory", "recompute")
    assert walls.scores == {"memory": 0.25, "communication": 0.08, "compute_host": 0.03}


def test_walls_closer_than_the_margin_are_mixed() -> None:
    close = 20.0 - 100.0 * MARGIN / 2
    walls = verdict({"ep_a2a_exposed_transfer": 20.0}, host_gap_ms=close)
    assert walls.verdict == "mixed"
    assert walls.next == "compute_host"
    clear = 20.0 - 100.0 * MARGIN * 1.01
    assert verdict({"ep_a2a_exposed_transfer": 20.0}, host_gap_ms=clear).verdict == "communication"


def test_a_run_that_nothing_limits_much_is_the_good_end() -> None:
    walls = verdict({"ep_a2a_exposed_transfer": 100.0 * WORTHWHILE * 0.9})
    assert (walls.verdict, walls.limiter) == ("compute_host", "compute")
    assert walls.headline.startswith("Nothing limits this run much")


def test_from_one_rank_only_the_certain_part_of_the_wire_can_win() -> None:
    parts = {"ep_a2a_exposed": 40.0}
    open_bounds = verdict(parts, estimated={"ep_a2a_transfer_ms": (2.0, 38.0)})
    assert open_bounds.verdict == "inconclusive"
    assert "all ranks of one EP group" in open_bounds.cause
    certain = verdict(parts, estimated={"ep_a2a_transfer_ms": (30.0, 38.0)})
    assert certain.verdict == "communication"
    host = verdict(parts, estimated={"ep_a2a_transfer_ms": (2.0, 10.0)}, host_gap_ms=50.0)
    assert (host.verdict, host.limiter) == ("compute_host", "host")


def test_an_unmeasured_floor_that_could_turn_the_order_makes_the_verdict_mixed() -> None:
    parts = {"ep_a2a_exposed_transfer": 12.0}
    known = verdict(parts, permute_ms=15.0)
    assert known.verdict == "communication"
    unknown = verdict(parts, permute_ms=15.0, unknown=("compute_excess_ms",))
    assert unknown.verdict == "mixed"
    assert any("not measured" in reason for reason in unknown.reasons)


def test_without_a_step_nothing_is_judged() -> None:
    metrics = {
        name: MetricValue(status="not_measured", value=None, unit=metric.unit, reason="no GPU work")
        for name, metric in METRICS.items()
    }
    walls = judge(metrics, [], None, {})
    assert (walls.verdict, walls.limiter, walls.next) == ("inconclusive", None, None)


def issue(identifier: str, severity: str) -> Issue:
    return Issue(id=identifier, severity=severity, count=1, message="")


def test_a_verdict_from_damaged_data_says_so() -> None:
    walls = verdict({"ep_a2a_exposed_transfer": 40.0}, ep_a2a_exposed_ms=40.0)
    lost = doubted(walls, [issue("launches-without-kernel", "error")], {})
    assert lost.headline == f"From a damaged capture: {walls.headline}"
    assert lost.reasons[-1] == (
        "Drawn from a damaged capture (launches-without-kernel): capture again to be sure."
    )
    shaky = doubted(walls, [issue("clock-skew", "warning")], {})
    assert shaky.headline == walls.headline
    assert "clock-skew" in shaky.reasons[-1]


def test_healthy_warnings_leave_the_verdict_alone() -> None:
    walls = verdict({"ep_a2a_exposed_transfer": 40.0}, ep_a2a_exposed_ms=40.0)
    quiet = [issue("profiler-errors", "info"), issue("ranks-missing", "warning")]
    assert doubted(walls, quiet, {}) == walls


def test_hidden_graph_kernels_are_said_beside_the_gaps() -> None:
    walls = verdict({"ep_a2a_exposed_transfer": 40.0}, ep_a2a_exposed_ms=40.0)
    share = MetricValue(status="measured", value=0.004, unit="share")
    assert doubted(walls, [], {"graph_opaque_share": share}).reasons[-1].startswith("0.4 % of the")
