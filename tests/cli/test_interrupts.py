"""Ctrl-C and SIGTERM, however often: exit 130, one line, and the clean-up runs to its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe_advisor import interrupts

ROOT = Path(__file__).parents[2]

SETTING = """
import os, signal, sys, time
from moe_advisor import __main__, interrupts

def stop(number=signal.SIGINT):
    os.kill(os.getpid(), number)
"""


def ended(work: str, *, ignored: bool = False) -> tuple[int, str, str]:
    """What becomes of the program whose verb does `work`, in a process of its own."""
    handler = "SIG_IGN" if ignored else "default_int_handler"
    body = "".join(f"    {line}\n" for line in work.strip().splitlines())
    verb = f"def verb(*_, **__):\n{body}    return 0\n"
    start = f"signal.signal(signal.SIGINT, signal.{handler})\nfrom moe_advisor import cli"
    program = f"{SETTING}\n{verb}\n{start}\ncli.cli.main = verb\n__main__.start()\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


STOPPED = (130, "moe-advisor: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_further_signals_do_not_break_into_the_clean_up(number: signal.Signals) -> None:
    work = f"try:\n    stop({int(number)})\nfinally:\n    stop()\n    stop({int(number)})\n    print('cleaned')"
    code, out, err = ended(work)
    assert (code, err) == STOPPED
    assert out == "cleaned\n"


def test_a_signal_that_python_loses_in_a_finaliser_still_ends_the_program() -> None:
    work = (
        "class Last:\n    def __del__(self):\n        stop()\n"
        "one = Last()\ndel one\nfor _ in range(600):\n    time.sleep(0.1)"
    )
    code, out, err = ended(work)
    assert (code, err, out) == (*STOPPED, "")


def test_a_signal_that_a_callback_of_a_library_swallows_is_no_success() -> None:
    work = (
        "import sqlite3\nbase = sqlite3.connect(':memory:')\n"
        "base.create_function('f', 0, stop)\n"
        "try:\n    base.execute('select f()').fetchone()\nexcept sqlite3.Error:\n    pass\n"
        "from moe_advisor.errors import InputError\nraise InputError('damaged')"
    )
    code, _, err = ended(work)
    assert (code, err) == STOPPED


def test_a_signal_waits_for_what_must_not_be_broken_off() -> None:
    work = "with interrupts.held():\n    stop()\n    print('whole')\nprint('after')"
    code, out, err = ended(work)
    assert (code, err, out) == (*STOPPED, "whole\n")


def test_a_signal_while_the_program_is_imported_is_one_line_too() -> None:
    program = (
        f"{SETTING}\nclass Finder:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n            stop(signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n__main__.start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == STOPPED


def test_what_was_started_to_ignore_ctrl_c_goes_on() -> None:
    code, out, err = ended("stop()\nprint('done')", ignored=True)
    assert (code, out, err) == (0, "done\n", "")


def test_handlers_are_as_before_where_the_program_is_called_by_another() -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.handled():
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] != before
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_a_signal_on_its_way_at_the_end_has_a_handler_to_meet() -> None:
    """One that is set to be ignored meanwhile makes Python print an error."""
    program = (
        "import signal; from moe_advisor import interrupts; interrupts.end()\n"
        "assert all(callable(signal.getsignal(one)) for one in interrupts.SIGNALS)\n"
        "[signal.raise_signal(one) for one in interrupts.SIGNALS]; print('went on')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")
