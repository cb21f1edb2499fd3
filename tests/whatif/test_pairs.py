"""Predictions against what the change really brought, on captures of the lab trainer.

Measured gains are shares of the unprofiled step: medians of ten steps before and after the change.
"""

import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from moe_advisor import whatif
from moe_advisor.advise.hardware import lookup
from moe_advisor.ingest import kineto, nsys_sqlite
from moe_advisor.measure.rank import MeasuredRank, measure_rank
from moe_advisor.measure.summary import Summary, summarise
from moe_advisor.roles.roles import Family
from moe_advisor.roles.taxonomy import builtin
from moe_advisor.whatif.changes.wire import scale_wire
from moe_advisor.whatif.coarsen import coarsen
from moe_advisor.whatif.model import StepModel
from moe_advisor.whatif.replay import replay

Traces = Callable[[str], list[Path]]
H200 = lookup("NVIDIA H200")

CAPTURES = (
    *(f"nsys/{name}" for name in ("base", "bigmem_full", "deepep", "mcore_alltoall")),
    *(f"nsys/{name}" for name in ("shm_balanced", "shm_overlap", "small", "small_graph")),
    *(f"torch/{name}" for name in ("base", "base_mem", "bigmem_full", "dataload", "gcsync")),
    *(f"torch/{name}" for name in ("mcore_alltoall", "offload", "shm_balanced", "skew")),
)

# capture, change, unprofiled step before and after in ms
PAIRS = (
    ("nsys/base", "ep-overlap", 137.9, 146.4),
    ("torch/base", "ep-overlap", 139.3, 148.3),
    ("torch/shm_balanced", "ep-overlap", 330.3, 304.3),
    ("nsys/shm_balanced", "ep-overlap", 324.3, 301.9),
    ("nsys/small", "cuda-graphs=attn", 81.5, 70.2),
    ("torch/bigmem_full", "recompute", 352.0, 276.2),
    ("nsys/bigmem_full", "recompute", 355.0, 276.5),
    ("nsys/base", "dispatcher", 137.9, 128.1),
    ("torch/skew", "balanced-experts", 194.7, 137.2),
    ("torch/shm_balanced", "link", 330.3, 137.2),
)


@cache
def _measured(paths: tuple[Path, ...]) -> list[MeasuredRank]:
    load = nsys_sqlite.load if paths[0].suffix == ".sqlite" else kineto.load
    ranks = [rank for path in paths for rank in load(path).ranks]
    return [measure_rank(rank, builtin()) for rank in ranks]


@cache
def _model(paths: tuple[Path, ...]) -> tuple[StepModel, Summary]:
    measured = _measured(paths)
    return whatif.build(measured, H200), summarise([one.partial for one in measured], H200)


@pytest.fixture
def model_of(real_trace: Traces) -> Callable[[str], tuple[StepModel, Summary]]:
    return lambda name: _model(tuple(real_trace(name)))


def share(model: StepModel, ms: float | None) -> float:
    assert ms is not None
    return ms * 1e6 / model.step_ns


@pytest.mark.parametrize("name", CAPTURES)
def test_unchanged_replay_gives_the_measured_step(model_of, name: str) -> None:
    model, _ = model_of(name)
    assert whatif.replay_error(model) <= 0.02
    assert whatif.unexplained_share(model) <= 0.05


def test_host_and_gpu_times_come_from_dependencies_not_from_fixed_starts(model_of) -> None:
    model, _ = model_of("nsys/small")  # host-bound: halving host work must shorten it by a lot
    halved = replay(model, host_scale=0.5).mean_step_ns
    assert halved < 0.62 * model.step_ns
    model, _ = model_of("nsys/shm_balanced")  # bound by the wire: it must hardly change
    assert replay(model, host_scale=0.5).mean_step_ns > 0.97 * model.step_ns


@pytest.mark.parametrize(
    ("fast", "slow"), [("nsys/base", "nsys/shm_balanced"), ("torch/base", "torch/shm_balanced")]
)
def test_scaling_the_wire_turns_one_link_into_the_other(model_of, fast: str, slow: str) -> None:
    quick, late = model_of(fast)[0], model_of(slow)[0]

    def wire(model: StepModel, family: Family) -> float:
        return sum(float(i.transfer_ns[i.family(family)].sum()) for i in _items(model))

    families = (Family.EP, Family.DP)
    slower = {family: wire(late, family) / wire(quick, family) for family in families}
    assert slower[Family.EP] > 10
    predicted = replay(scale_wire(quick, slower)).mean_step_ns
    assert predicted == pytest.approx(late.step_ns, rel=0.08)
    faster = {family: 1 / factor for family, factor in slower.items()}
    predicted = replay(scale_wire(late, faster)).mean_step_ns
    assert predicted == pytest.approx(quick.step_ns, rel=0.08)


def _items(model: StepModel):
    return [lane.items for lane in model.lanes]


@pytest.mark.parametrize(("name", "change", "before", "after"), PAIRS)
def test_measured_gain_lies_in_an_honest_range(
    model_of, name: str, change: str, before: float, after: float
) -> None:
    model, summary = model_of(name)
    found = whatif.estimate(model, summary, [change])[0].estimate
    low, expected, high = (
        share(model, ms) for ms in (found.low_ms, found.expected_ms, found.high_ms)
    )
    measured = 1 - after / before
    assert low <= measured <= high
    if abs(measured) > 0.03:
        assert expected * measured > 0
    assert abs(expected - measured) <= max(0.04, 0.4 * abs(measured))
    assert high - low <= max(0.08, 1.5 * abs(expected)) + 1e-9
    assert high - low <= 0.4 or measured > 0.4


def test_a_range_with_a_loss_says_so_and_names_what_comes_next(model_of) -> None:
    model, summary = model_of("nsys/base")
    found = whatif.estimate(model, summary, ["ep-overlap"])[0].estimate
    assert found.low_ms is not None
    assert found.low_ms < 0
    assert f"loss of up to {-found.low_ms:.1f} ms" in (found.basis or "")
    assert found.next_wall == "compute_host"


def test_combined_changes_are_simulated_together_not_added(model_of) -> None:
    model, summary = model_of("nsys/shm_balanced")
    both = whatif.combine(model, ("ep-overlap", "link=4"), summary=summary)
    apart = whatif.estimate(model, summary, ["ep-overlap", "link=4"])
    added = sum(one.estimate.expected_ms or 0.0 for one in apart)
    assert both.expected_ms is not None
    assert both.expected_ms < added - 5


def test_order_of_combined_changes_does_not_matter(model_of) -> None:
    model, _ = model_of("torch/bigmem_full")
    first = whatif.combine(model, ("ep-overlap", "recompute"))
    assert first == whatif.combine(model, ("recompute", "ep-overlap"))
    assert first.status == "estimated"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("nsys/base", "recompute", "no forward work runs again"),
        ("nsys/base", "grouped-gemm", "grouped GEMMs already"),
        ("nsys/base", "balanced-experts", "tokens are balanced"),
        ("nsys/deepep", "dispatcher", "dispatch library already"),
        ("nsys/shm_overlap", "ep-overlap", "beside compute already"),
        ("torch/bigmem_full", "ep-overlap", "apply recompute first"),
        ("torch/base_mem", "stragglers", "can't be told from one rank"),
        ("nsys/base", "ep-overlap=1f1b", "2 micro-batches per step leave too few"),
        ("nsys/base", "link=fast", "neither nvlink nor a factor above 0"),
        ("nsys/base", "link", "that is NVLink already"),
        ("torch/base_mem", "link", "all ranks of a group"),
    ],
)
def test_a_change_that_does_not_apply_says_why(model_of, name, change, reason) -> None:
    model, summary = model_of(name)
    found = whatif.estimate(model, summary, [change])[0].estimate
    assert found.status == "not_measured"
    assert found.expected_ms is None
    assert reason in (found.reason or "")


def test_a_log_with_the_unprofiled_step_replaces_the_assumed_stretch(model_of) -> None:
    model, summary = model_of("nsys/small")
    name = ["cuda-graphs=attn"]
    assumed = whatif.estimate(model, summary, name)[0].estimate
    known = whatif.estimate(model, summary, name, unprofiled_step_ms=98.0)[0].estimate
    assert "stretched" in (assumed.basis or "")
    assert "stretched" not in (known.basis or "")
    # The log says that the profiler stretched almost nothing: more host time can be gained.
    assert (known.expected_ms or 0.0) > (assumed.expected_ms or 0.0)


@pytest.mark.parametrize("name", ["nsys/small", "torch/mcore_alltoall", "nsys/shm_overlap"])
def test_merging_neighbours_keeps_the_timing(model_of, name: str) -> None:
    model, _ = model_of(name)
    small = coarsen(model, len(model.lanes) * 1_000)
    assert sum(map(len, _items(small))) < 0.7 * sum(map(len, _items(model)))
    assert replay(small).mean_step_ns == pytest.approx(model.step_ns, rel=0.001)
    faster = replay(model, host_scale=0.6).mean_step_ns
    assert replay(small, host_scale=0.6).mean_step_ns == pytest.approx(faster, rel=0.005)


def test_a_model_can_be_sent_to_another_process(model_of) -> None:
    model, _ = model_of("nsys/base")
    again = pickle.loads(pickle.dumps(model))
    assert replay(again).step_ns == replay(model).step_ns


def test_a_long_step_is_modelled_by_its_first_micro_batches(
    real_trace: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = _measured(tuple(real_trace("nsys/shm_balanced")))
    whole = whatif.build(measured, H200)
    monkeypatch.setattr(sys.modules["moe_advisor.whatif.build"], "SECTION_ITEMS", 2_400)
    part = whatif.build(measured, H200)
    assert 1.5 < part.repeats < 3.0
    assert part.step_ns == whole.step_ns
    assert whatif.replay_error(part) <= 0.02
    for change in ("link", "ep-overlap"):
        predicted = whatif.combine(part, (change,))
        exact = whatif.combine(whole, (change,))
        assert "modelled on its first" in (predicted.basis or "")
        assert exact.low_ms is not None
        assert exact.high_ms is not None
        assert exact.low_ms <= (predicted.expected_ms or 0.0) <= exact.high_ms
