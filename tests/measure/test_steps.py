"""Step boundaries: where they come from and where they lie on the GPU."""

import pytest

from moe_advisor.errors import ConfigError
from moe_advisor.measure.steps import StepWindows, find_steps
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.assign import assign_roles
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ADD, GEMM, TraceBuilder

ADAM = "void at::native::multi_tensor_apply_kernel<x>()"


def steps_of(b: TraceBuilder, **options) -> StepWindows:
    rank = b.build()
    return find_steps(rank, assign_roles(rank, builtin()), **options)


def windows_us(windows: StepWindows) -> list[tuple[float, float]]:
    return [(a / 1e3, b / 1e3) for a, b in zip(windows.start, windows.end, strict=True)]


def two_steps() -> TraceBuilder:
    b = TraceBuilder()
    b.range(0, 40, "iteration 7")
    b.range(50, 90, "iteration 8")
    b.kernel(10, 45, launch=5)
    b.kernel(60, 100, launch=55)
    return b


def test_iterations_are_preferred_to_profiler_steps() -> None:
    b = two_steps()
    b.range(0, 95, "ProfilerStep#3")
    windows = steps_of(b)
    assert windows.names == ("iteration 7", "iteration 8")
    assert (windows.source, windows.pattern) == ("annotation", "iteration")


def test_a_boundary_lies_where_the_device_falls_idle_but_not_before_the_host_range() -> None:
    assert windows_us(steps_of(two_steps())) == [(0, 50), (50, 100)]


def test_a_boundary_is_the_first_launched_activity_if_the_device_is_still_busy() -> None:
    b = TraceBuilder()
    b.range(0, 40, "iteration 1")
    b.range(40, 80, "iteration 2")
    b.kernel(10, 70, launch=5)
    b.kernel(70, 90, launch=50)
    assert windows_us(steps_of(b)) == [(0, 70), (70, 90)]


def test_early_communication_does_not_move_a_boundary() -> None:
    b = TraceBuilder()
    b.range(0, 40, "iteration 1")
    b.range(40, 80, "iteration 2")
    b.kernel(10, 70, launch=5)
    b.collective(50, 60, CollectiveKind.ALL_GATHER, "1", "DATA_PARALLEL_GROUP", stream=9, launch=45)
    b.kernel(70, 90, launch=50)
    assert windows_us(steps_of(b)) == [(0, 70), (70, 90)]


def test_cut_and_special_steps_are_dropped_with_a_reason() -> None:
    b = TraceBuilder()
    for number, (start, end) in enumerate([(0, 100), (100, 200), (200, 300), (300, 320)]):
        b.range(start, end, f"iteration {number}")
        b.kernel(start + 5, end - 5, launch=start + 1)
    b.range(110, 120, "save_checkpoint")
    windows = steps_of(b)
    assert windows.names == ("iteration 0", "iteration 2")
    assert dict(windows.dropped) == {
        "iteration 1": "saves a checkpoint or evaluates",
        "iteration 3": "cut by the edge of the capture",
    }


def test_a_user_chooses_steps_and_their_pattern() -> None:
    b = two_steps()
    b.range(2, 38, "my phase")
    assert steps_of(b, select="1:").names == ("iteration 8",)
    assert steps_of(b, pattern="^my").names == ("my phase",)
    for options, message in (
        ({"select": "9:"}, "selects none of the 2 steps"),
        ({"select": "x"}, "write A:B"),
        ({"pattern": "nothing"}, "matches no range"),
        ({"pattern": "("}, "not a regular expression"),
    ):
        with pytest.raises(ConfigError, match=message):
            steps_of(b, **options)


def test_without_annotations_optimizer_clusters_bound_the_steps() -> None:
    b = TraceBuilder()
    for at in (0, 100, 200):
        b.kernel(at, at + 50, GEMM)
        b.kernel(at + 60, at + 65, ADAM)
        b.kernel(at + 66, at + 70, ADAM)
    windows = steps_of(b)
    assert windows.source == "optimizer"
    assert windows_us(windows) == [(70, 170), (170, 270)]


def test_without_optimizer_a_steady_rare_kernel_repeats_once_a_step() -> None:
    b = TraceBuilder()
    for at in range(0, 400, 100):
        b.kernel(at, at + 10, "rare_kernel")
        for offset in (20, 31, 50):
            b.kernel(at + offset, at + offset + 5, ADD)
    windows = steps_of(b)
    assert (windows.source, windows.pattern) == ("repetition", "rare_kernel")
    assert windows_us(windows) == [(0, 100), (100, 200), (200, 300)]


def test_a_trace_without_steps_is_one_window() -> None:
    b = TraceBuilder()
    b.kernel(10, 20)
    windows = steps_of(b)
    assert (windows.source, windows_us(windows)) == ("whole-trace", [(10, 20)])
