"""What a terminal is told while reading takes long."""

import io

from moe_advisor.progress import MIB, TerminalLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_large_input_is_announced_before_it_is_read() -> None:
    stream = Terminal()
    TerminalLine(stream).begin([400 * MIB, 43 * MIB])
    assert stream.getvalue() == ("reading 2 inputs, 443.0 MiB; then roles, measurements, what-if\n")


def test_small_inputs_and_pipes_are_told_nothing() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    TerminalLine(terminal).begin([3 * MIB])
    TerminalLine(pipe).begin([400 * MIB])
    assert terminal.getvalue() == pipe.getvalue() == ""
