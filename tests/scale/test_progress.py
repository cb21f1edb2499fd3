"""What a terminal shows while many inputs are read."""

import io

from moe_advisor.progress import Advance, TerminalLine, line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_tells_ranks_bytes_rate_and_time_left() -> None:
    now = Advance(256, 1024, 100 << 20, 400 << 20, "rank255.json.gz")
    assert line(now, 50.0) == (
        "read 256 of 1,024 inputs, 100.0 of 400.0 MiB, 2.0 MiB/s, 150 s left: rank255.json.gz"
    )


def test_only_a_terminal_and_only_many_inputs_are_drawn_and_the_last_ends_the_line() -> None:
    for stream, total, shown in ((io.StringIO(), 9, False), (Terminal(), 3, False)):
        TerminalLine(stream)(Advance(total, total, 1, 1, "a"))
        assert bool(stream.getvalue()) is shown
    terminal = Terminal()
    draw = TerminalLine(terminal)
    for done in range(1, 10):
        draw(Advance(done, 9, done, 9, "a"))
    assert terminal.getvalue().endswith(": a\n")
    assert terminal.getvalue().count("\r") < 9
