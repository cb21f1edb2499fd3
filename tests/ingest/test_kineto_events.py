"""Events come with all arguments that are used, whichever way their text had to be decoded."""

import json
from typing import Any

import pytest

from moe_advisor.ingest.kineto_events import EventDecoder, FullArgs

OPERATOR: dict[str, Any] = {"cat": "cpu_op", "name": "aten::add", "ts": 1, "dur": 1, "args": {}}
COLLECTIVE = {"Collective name": "allreduce", "In msg nelems": 8, "Process Group Ranks": "[0, 1]"}
MEMORY = {"Device Type": 1, "Device Id": 3, "Total Allocated": 5, "Total Reserved": 7}


def decoded(*arguments: dict[str, Any], decoder: EventDecoder | None = None) -> list[FullArgs]:
    """What the events with these arguments keep of them, among operators that have none."""
    events = [OPERATOR] * 40
    events += [{**OPERATOR, "args": one} for one in arguments]
    found = (decoder or EventDecoder()).decode(json.dumps(events + [OPERATOR] * 40).encode())
    kept = [event.args for event in found[40:-40]]
    assert len(found) == 80 + len(arguments)
    assert all(isinstance(one, FullArgs) for one in kept)
    return kept  # type: ignore[return-value]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"before": "a { in a text", "after": "a } in a text", "Seq": 4},
        {"before": {"nested": 1}, "after": {"nested": {"Collective name": "other"}}, "Seq": 4},
        {"Concrete Inputs": ['"Collective name": "no"}', "{"], "correlation": 6},
    ],
)
@pytest.mark.parametrize("collective_last", [False, True])
def test_a_collective_has_all_its_arguments(more: dict[str, Any], collective_last: bool) -> None:
    args = {**more, **COLLECTIVE} if collective_last else {**COLLECTIVE, **more}
    (kept,) = decoded(args)
    assert (kept.collective, kept.sent_elements, kept.group_ranks) == ("allreduce", 8, "[0, 1]")
    assert kept.collective_sequence == more.get("Seq")
    assert kept.correlation == more.get("correlation", -1)


def test_each_of_several_has_its_own() -> None:
    kept = decoded(COLLECTIVE | {"Seq": 1}, MEMORY, COLLECTIVE | {"Seq": 2})
    assert [one.collective_sequence for one in kept] == [1, None, 2]
    assert [one.allocated for one in kept] == [None, 5, None]


def test_many_that_have_more_arguments_are_all_read_in_this_batch_and_the_next() -> None:
    decoder = EventDecoder()
    for _ in range(2):
        kept = decoded(*[MEMORY] * 100, decoder=decoder)
        assert {(one.device_type, one.device_id, one.reserved) for one in kept} == {(1, 3, 7)}


def test_numbers_given_as_text_do_not_cost_the_arguments() -> None:
    (kept,) = decoded(COLLECTIVE | {"stream": "7"})
    assert (kept.stream, kept.sent_elements) == (7, 8)


def test_a_collective_named_null_is_none() -> None:
    (kept,) = decoded({"Collective name": None, "Seq": 3})
    assert kept.collective is None
