"""What compute really waited for: stream order, events, and structure where no events are known."""

from dataclasses import replace

import polars as pl
import pytest

from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import STREAM_WAIT_SCHEMA, CollectiveKind, RankTrace
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import TraceBuilder

EP = "EXPERT_MODEL_PARALLEL_GROUP"


def with_waits(builder: TraceBuilder, *pairs: tuple[dict, int, dict, int]) -> RankTrace:
    """The built trace; each pair is (wait call, its stream, record call, its stream)."""
    trace = builder.build()
    place = {id(row): n for n, row in enumerate(sorted(builder.calls, key=lambda r: r["start_ns"]))}
    rows = [(place[id(w)], stream, place[id(r)], other) for w, stream, r, other in pairs]
    table = pl.DataFrame(rows, schema=STREAM_WAIT_SCHEMA, orient="row")
    return replace(trace, waits=table)


def blocking(trace: RankTrace):
    summary = summarise([measure_rank(trace, builtin()).partial], {})
    return summary.metrics["ep_a2a_blocking_ms"]


def overlapped() -> tuple[TraceBuilder, dict, dict]:
    """Dispatch 20-60 on a side stream; a kernel that starts at 60, and its event calls."""
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 20, launch=0)
    b.collective(10, 60, CollectiveKind.ALL_TO_ALL, "1", EP, stream=9, launch=2)
    record = b.call(3, 3.5, "cudaEventRecord")
    wait = b.call(4, 4.5, "cudaStreamWaitEvent")
    b.kernel(60, 100, launch=5)
    return b, record, wait


def test_a_kernel_behind_the_communication_on_its_own_stream_is_blocked_by_order() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 20, launch=0)
    b.collective(20, 60, CollectiveKind.ALL_TO_ALL, "1", EP, launch=2)
    b.kernel(60, 100, launch=5)
    found = blocking(b.build())
    assert (found.status, found.value) == ("measured", 0.04)
    assert found.basis == "100 % by stream order; confidence high"


def test_an_event_ties_a_kernel_to_communication_of_another_stream() -> None:
    b, record, wait = overlapped()
    found = blocking(with_waits(b, (wait, 7, record, 9)))
    assert (found.status, found.value) == ("measured", 0.04)
    assert found.basis == "100 % by event dependencies; confidence high"


def test_a_kernel_that_waited_for_something_else_is_not_blocked() -> None:
    b = TraceBuilder()
    b.range(0, 100, "iteration 1")
    b.kernel(0, 20, launch=0)
    b.collective(10, 90, CollectiveKind.ALL_TO_ALL, "1", EP, stream=9, launch=2)
    b.collective(10, 60, CollectiveKind.ALL_REDUCE, "2", "DATA_PARALLEL", stream=11, launch=3)
    record = b.call(4, 4.5, "cudaEventRecord")
    wait = b.call(5, 5.5, "cudaStreamWaitEvent")
    b.kernel(60, 100, launch=6)
    found = blocking(with_waits(b, (wait, 7, record, 11)))
    assert (found.status, found.value) == ("measured", 0.0)


def test_a_copy_between_communication_and_consumer_does_not_hide_the_dependency() -> None:
    b, record, wait = overlapped()
    b.activities.pop()
    b.kernel(60, 65, "Memcpy DtoD", launch=5)
    b.kernel(65, 100, launch=6)
    found = blocking(with_waits(b, (wait, 7, record, 9)))
    assert found.value == 0.04


@pytest.mark.parametrize(("start", "value"), [(62, 0.04), (75, 0.0)])
def test_without_events_only_a_prompt_start_behind_a_wait_counts(start: int, value: float) -> None:
    b, _, _ = overlapped()
    b.activities.pop()
    b.kernel(start, 100, launch=5)
    found = blocking(b.build())
    assert found.value == value
    if value:
        assert found.status == "estimated"
        assert (found.low, found.high) == (0.0, 0.04)
        assert "low" in str(found.basis)
    else:
        assert found.basis == "nothing waited for it, as far as streams and events tell"


def test_time_before_the_waiting_kernel_was_issued_is_the_hosts() -> None:
    b, record, wait = overlapped()
    b.activities.pop()
    b.kernel(60, 100, launch=50)
    assert blocking(with_waits(b, (wait, 7, record, 9))).value == 0.01
