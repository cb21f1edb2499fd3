"""No verb changes an input or its folder: bytes, names and times stay, also after a crash."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests import kineto_builder
from tests.hostile.cases import steps
from tests.hostile.run_cases import program, state
from tests.nsys_builder import two_steps
from tests.trust.verbs import run, runs

ROOT = Path(__file__).parents[2]
INPUTS = ("nsys", "torch", "hot log", "parquet")


def made(kind: str, folder: Path) -> Path:
    folder.mkdir()
    if kind == "torch":
        return kineto_builder.write(folder, kineto_builder.trace(*steps(3)), "run.json.gz")
    path = two_steps().write(folder / "run.sqlite")
    if kind == "hot log":
        # Opened, written and never closed: the rows of the log are not in the file yet.
        code = (
            "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]);"
            "d.execute('pragma journal_mode=wal'); d.execute('create table Later (x)');"
            "d.commit(); os._exit(0)"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert path.with_name("run.sqlite-wal").stat().st_size
    if kind == "parquet":
        import polars as pl

        target = folder / "run_pqtdir"
        target.mkdir()
        for table, (columns, rows) in two_steps().tables().items():
            cells = {name: [row[at] for row in rows] for at, name in enumerate(columns)}
            series = [pl.Series(n, v, strict=False) for n, v in cells.items()]
            pl.DataFrame(series).write_parquet(target / f"{table}.parquet")
        path.unlink()
        return target
    return path


@pytest.mark.parametrize("kind", INPUTS)
def test_no_verb_changes_its_input_or_the_folder(kind: str, tmp_path: Path) -> None:
    trace = made(kind, tmp_path / "in")
    before = state(tmp_path / "in")
    for name, arguments in runs(trace, tmp_path / "out"):
        run(arguments)
        assert state(tmp_path / "in") == before, name


def test_a_hot_log_is_read_without_being_touched(tmp_path: Path) -> None:
    trace = made("hot log", tmp_path / "in")
    shared = tmp_path / "shared.sqlite"
    assert program(["scrub", str(trace), str(shared)]).code == 0
    assert sorted(os.listdir(tmp_path)) == ["in", "shared.sqlite"]


def test_a_file_that_another_program_has_locked_is_read(tmp_path: Path) -> None:
    trace = made("nsys", tmp_path / "in")
    lock = sqlite3.connect(trace)
    lock.execute("begin exclusive")
    try:
        for verb in (
            ["analyze", str(trace), "-q"],
            ["scrub", str(trace), str(tmp_path / "s.sqlite")],
        ):
            assert (
                program(
                    [*verb, *(["-o", str(tmp_path / "o")] if verb[0] == "analyze" else [])]
                ).code
                == 0
            )
    finally:
        lock.rollback()
        lock.close()


def test_outputs_that_exist_are_refused_by_every_verb_that_writes(tmp_path: Path) -> None:
    trace = made("nsys", tmp_path / "in")
    out = tmp_path / "out"
    for name, arguments in runs(trace, out):
        if name in ("analyze", "history html", "scrub", "check"):
            assert program(arguments).code in (0, 1), name
            before = state(out)
            again = program(arguments)
            assert again.code == 2, name
            assert "exists already" in again.stderr
            assert state(out) == before
        elif name == "history add":
            program(arguments)


def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    trace = made("nsys", tmp_path / "in")
    before = state(tmp_path / "in")
    link = tmp_path / "link.sqlite"
    link.symlink_to(trace)
    for target in (trace, link):
        for arguments in (
            ["scrub", str(trace), str(target), "--force"],
            ["analyze", str(trace), f"--format=json={target}", "--force"],
        ):
            ended = program(arguments)
            assert ended.code == 2
            assert "never written over" in ended.stderr
    assert state(tmp_path / "in") == before


@pytest.mark.parametrize("after_s", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_scrub_leaves_the_input_as_it_was(
    tmp_path: Path, after_s: float, number: int
) -> None:
    trace = made("nsys", tmp_path / "in")
    before = state(tmp_path / "in")
    (tmp_path / "out").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "moe_advisor", "scrub", str(trace), str(tmp_path / "out" / "s.sqlite")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    time.sleep(after_s)
    child.send_signal(number)
    child.communicate(timeout=300)
    assert state(tmp_path / "in") == before
    left = set(os.listdir(tmp_path / "out"))
    if number == signal.SIGTERM:
        assert left <= {"s.sqlite"}
    else:  # nothing can tidy up after SIGKILL, but no half file has the name
        if "s.sqlite" in left:
            with closing(sqlite3.connect(tmp_path / "out" / "s.sqlite")) as whole:
                assert whole.execute("pragma integrity_check").fetchone() == ("ok",)
