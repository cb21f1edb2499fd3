"""What a Kineto reader keeps of an event must not hold the file's text in memory."""

from moe_advisor.ingest.kineto_columns import Columns
from moe_advisor.ingest.kineto_events import EventDecoder

CALL = (
    b'[{"ph": "X", "cat": "%s", "name": "record_param_comms", "ts": 1, "dur": 1, "pid": 1,'
    b' "tid": 1, "args": {"Collective name": "allreduce", "Input Dims": [[4]]}}]'
)


def test_kept_arguments_hold_no_part_of_the_text() -> None:
    columns, decoder = Columns(), EventDecoder()
    for category in (b"cpu_op", b"kernel"):
        events = decoder.decode(CALL % category)
        assert bytes(events[0].args.dims) == b"[[4]]"
        columns.add(events)
    kept = [columns.comms[0].args, columns.collectives[0]]
    assert [(one.collective, bytes(one.dims)) for one in kept] == [("allreduce", b"")] * 2


def test_columns_of_many_batches_come_whole_and_all_but_one_can_be_given_up() -> None:
    columns, decoder = Columns(), EventDecoder()
    for _ in range(3):
        columns.add(decoder.decode(CALL % b"kernel"))
    assert columns.activities.column("start").tolist() == [1000, 1000, 1000]
    assert len(columns.activities) == 3
    columns.activities.keep("start")
    assert [list(piece) for piece in columns.activities.pieces] == [["start"]]
    assert columns.activities.column("start").tolist() == [1000, 1000, 1000]
