"""A stretch of items ends when they would have ended one by one; times in ns."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.whatif.model import NEVER_LATE
from moe_advisor.whatif.stretches import Stretches
from tests.whatif.steps import Step

ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),  # stream
        st.integers(0, 50),  # duration
        st.integers(0, 30),  # host
        st.one_of(st.integers(-5, 40), st.just(NEVER_LATE)),  # latency
        st.integers(-3, 5),  # gap
        st.integers(-3, 9),  # residual
        st.booleans(),  # apart
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_stretches_give_the_times_of_their_items_one_by_one(rows: list[tuple[int, ...]]) -> None:
    step = Step()
    for _ in rows[1:]:
        step.item(0)
    columns = (np.array(column) for column in zip(*rows, strict=True))
    stream, duration, host, latency, gap, residual, apart = columns
    items = (
        step.lane(0)
        .with_items(stream=stream, latency_ns=latency, gap_ns=gap, residual_ns=residual)
        .items
    )
    one_by_one = Stretches.of(items, host, duration, np.ones(len(rows), np.bool_))
    assert one_by_one.last.tolist() == list(range(len(rows)))
    expected = _walked(one_by_one)
    merged = Stretches.of(items, host, duration, apart.astype(np.bool_))
    assert all(np.array_equal(a, b) for a, b in zip(_walked(merged), expected, strict=True))


def test_items_of_one_stream_are_one_stretch_until_one_stands_apart() -> None:
    step = Step()
    for stream in (0, 0, 0, 1, 1):  # and the lane's last item on stream 0
        step.item(10, stream=stream)
    items = step.lane(60).items
    apart = np.array([False, False, True, False, False, False])
    found = Stretches.of(items, items.host_ns, items.duration_ns, apart)
    assert found.first.tolist() == [0, 2, 3, 5]
    assert found.last.tolist() == [1, 2, 4, 5]


def _walked(stretches: Stretches) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every item, as a replay without dependencies goes through the stretches."""
    count = len(stretches.items)
    start, end, free, host = [0] * count, [0] * count, [0, 0], 0
    came = []
    columns = (column.tolist() for column in stretches.columns())
    rows = zip(stretches.last.tolist(), *columns, strict=True)
    for item, stream, duration, host_ns, latency, gap, residual in rows:
        came.append((host, free[stream]))
        host += host_ns
        start[item] = max(free[stream] + gap, host + latency) + residual
        free[stream] = end[item] = start[item] + duration
    hosts, frees = zip(*came, strict=True)
    return stretches.times(hosts, frees, start, end)
