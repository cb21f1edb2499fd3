"""What a terminal shows while many inputs are read."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_advisor import progress
from moe_advisor.progress import Advance, TerminalLine, line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_tells_ranks_bytes_rate_and_time_left() -> None:
    now = Advance(256, 1024, 100 << 20, 400 << 20, "rank255.json.gz")
    assert line(now, 50.0) == (
        "read 256 of 1,024 inputs, 100.0 of 400.0 MiB, 2.0 MiB/s, 150 s left: rank255.json.gz"
    )


def test_where_a_store_tells_no_sizes_the_inputs_are_counted() -> None:
    now = Advance(256, 1024, 0, 0, "rank255.json.gz")
    assert line(now, 50.0) == "read 256 of 1,024 inputs, 150 s left: rank255.json.gz"


def test_only_a_terminal_and_only_what_lasts_is_drawn_and_the_last_ends_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 7.0))
    cases = (
        (io.StringIO(), 9, 1, False),
        (Terminal(), 3, 1, False),
        (Terminal(), 2, 1 << 30, True),
    )
    for stream, total, size, shown in cases:
        TerminalLine(stream)(Advance(total, total, size, size, "a"))
        assert bool(stream.getvalue()) is shown
    terminal = Terminal()
    draw = TerminalLine(terminal)
    for done in range(1, 10):
        draw(Advance(done, 9, done, 9, "a"))
    assert terminal.getvalue().endswith(": a\n")
    assert terminal.getvalue().count("\r") == 2


def test_a_large_input_is_followed_by_the_bytes_read_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 7.0))
    read = iter([1000 + (64 << 20), 1000 + (256 << 20), 0])
    monkeypatch.setattr(progress, "bytes_read", lambda: next(read))
    terminal = Terminal()
    with TerminalLine(terminal) as shown:
        shown.tick(1, 256 << 20, 1000, "a.sqlite")
        assert terminal.getvalue().endswith(
            "read 0 of 1 input, 64.0 of 256.0 MiB, 0.0 MiB/s: a.sqlite"
        )
        shown.tick(1, 256 << 20, 1000, "a.sqlite")
        assert terminal.getvalue().endswith("read 256.0 MiB; roles, measurements")
        shown(Advance(1, 1, 256 << 20, 256 << 20, "a.sqlite"))
        drawn = terminal.getvalue()
        assert drawn.endswith(": a.sqlite\n")
        shown.tick(1, 256 << 20, 1000, "a.sqlite")  # too late: the line is over
    assert terminal.getvalue() == drawn


def test_a_line_that_an_error_breaks_off_is_cleared() -> None:
    terminal = Terminal()
    with contextlib.suppress(KeyError), TerminalLine(terminal) as shown:
        shown(Advance(1, 9, 1, 9, "a"))
        raise KeyError
    assert terminal.getvalue().endswith(": a\r\x1b[K")


def test_what_a_process_has_read_grows_with_reading(tmp_path: Path) -> None:
    before = progress.bytes_read()
    if before is None:
        pytest.skip("this system does not tell")
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    (tmp_path / "a").read_bytes()
    assert progress.bytes_read() >= before + (1 << 20)
