"""Tables are read ahead in their order, and each is handed over once."""

import pytest

from moe_advisor.ingest.nsys_tables import Reader


def test_what_is_read_ahead_comes_in_the_order_asked_for() -> None:
    begun: list[str] = []
    with Reader() as reader:
        first = reader.read(lambda: begun.append("first"))
        second = reader.read(lambda: begun.append("second"))
        second.take()
        first.take()
    assert begun == ["first", "second"]


def test_what_is_not_read_ahead_waits_until_it_is_taken() -> None:
    begun: list[str] = []
    with Reader() as reader:
        late = reader.read(lambda: begun.append("late"), ahead=False)
        reader.read(lambda: begun.append("soon")).take()
        late.take()
    assert begun == ["soon", "late"]


def test_what_reading_raises_meets_who_takes_it() -> None:
    def fail() -> None:
        raise OSError("gone")

    with Reader() as reader:
        pending = reader.read(fail)
        with pytest.raises(OSError, match="gone"):
            pending.take()


def test_once_the_reader_is_closed_nothing_more_is_read() -> None:
    begun: list[str] = []
    with Reader() as reader:
        late = reader.read(lambda: begun.append("late"), ahead=False)
    with pytest.raises(RuntimeError):
        late.take()
    assert begun == []
