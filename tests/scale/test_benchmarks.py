"""The benchmark's own tools: what they measure, stop and write down."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table

    return table


def test_the_memory_of_a_family_is_that_of_all_its_processes(table) -> None:
    child = "import sys; block = bytearray(64 << 20); print('up', flush=True); sys.stdin.read()"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"up\n"
        (below,) = table._below(process.pid)
        assert table._share_mib(below) > 64 > table._share_mib(process.pid) > 0
        process.stdin.close()
    assert table._share_mib(process.pid) == 0


def test_a_run_tells_time_memory_and_words(table) -> None:
    run = table.measured("one", [sys.executable, "-c", "print(len(bytearray(64 << 20)))"], 2)
    assert run.out == f"{64 << 20}\n"
    assert run.peak_mib > 64
    assert run.cpu_s > 0
    assert run.all_mib is None


def test_what_lasts_longer_than_its_limit_is_stopped_and_named(table) -> None:
    with pytest.raises(table.FailedError, match="sleeper: stopped after 0"):
        table.measured(
            "sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], limit_s=0.3
        )


def test_a_program_that_fails_is_told_by_its_last_line(table) -> None:
    with pytest.raises(table.FailedError, match="bad: exit 1: ValueError: seven"):
        table.measured("bad", [sys.executable, "-c", "raise ValueError('seven')"])


def test_the_page_leaves_out_columns_without_figures(table, capsys) -> None:
    page = table.Table()
    page.section("One")
    page.row("a", "floor", table.Run(2.0, 1.0, 30.0))
    page.section("Two")
    floor = table.Run(1.0, 0.5, 30.0)
    page.row("b", "analyze", table.Run(2.0, 1.0, 30.0), floor, promise=3.0)
    page.absent("b", "peer", "not given")
    assert page.markdown() == {
        "One": "| input | program | wall s | CPU s | cores | MiB |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| a | floor | 2.00 | 1.00 | 0.50 | 30 |",
        "Two": "| input | program | wall s | CPU s | cores | MiB | wall ratio | CPU ratio | promise "
        "| note |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| b | analyze | 2.00 | 1.00 | 0.50 | 30 | 2.00 | 2.00 | 3.0 |  |\n"
        "| b | peer |  |  |  |  |  |  |  | not given |",
    }
    assert "not given" in capsys.readouterr().out


def test_a_part_that_is_measured_anew_replaces_its_table_and_keeps_the_others(table) -> None:
    import run

    def one(title: str, program: str) -> object:
        made = table.Table()
        made.section(title)
        made.row("a", program, table.Run(2.0, 1.0, 30.0))
        return made

    first = run.page(one(run.MANY_RANKS, "old"), "A day.", "")
    both = run.page(one(run.FLOORS, "floor"), "B day.", first)
    again = run.page(one(run.MANY_RANKS, "new"), "C day.", both)
    assert list(table.sections_of(again)) == [run.FLOORS, run.MANY_RANKS]
    assert again == both.replace("A day.", "C day.").replace("| old |", "| new |")
