"""Each bound ends in one line that names the option which raises it, and the option does."""

import gzip
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moe_advisor import bounded, memory_guard
from moe_advisor.errors import InputError
from moe_advisor.ingest import sqlite_reader
from moe_advisor.ingest.sqlite_reader import open_sqlite
from moe_advisor.memory_guard import MemoryGuard, default_limit_bytes, used_bytes
from moe_advisor.table_source import Column
from tests import kineto_builder
from tests.hostile.cases import steps
from tests.hostile.run_cases import program
from tests.nsys_builder import two_steps
from tests.trust import endless

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def refused(arguments: list[str], option: str) -> None:
    ended = program(arguments)
    assert ended.code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert option in line


@pytest.mark.parametrize("verb", ["analyze", "check", "compare", "whatif", "scrub"])
def test_the_size_of_an_input_is_bounded_in_every_verb(verb: str, tmp_path: Path) -> None:
    trace = str(two_steps().write(tmp_path / "run.sqlite"))
    (tmp_path / "b.toml").write_text('[[budget]]\nname = "a"\nexpect = "m.step_ms > 0.0"\n')
    more = {
        "analyze": [trace, "-q", "-o", str(tmp_path / "o")],
        "check": [trace, "--budgets", str(tmp_path / "b.toml")],
        "compare": [trace, trace],
        "whatif": [trace],
        "scrub": [trace, str(tmp_path / "s.sqlite")],
    }[verb]
    refused([verb, *more, "--max-file", "0.00001"], "--max-file")
    assert program([verb, *more, "--max-file", "1"]).code == 0


def test_memory_in_use_is_bounded(tmp_path: Path) -> None:
    trace = str(two_steps().write(tmp_path / "run.sqlite"))
    arguments = ["analyze", trace, "-q", "-o", str(tmp_path / "o"), "--max-memory"]
    refused([*arguments, "0.01"], "--max-memory")
    assert not (tmp_path / "o").exists()
    assert program([*arguments, "64"]).code == 0


def test_memory_that_grows_while_it_works_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    # The hard limit would end the tests, where this thread gets more of a busy machine than the
    # one that watches.
    monkeypatch.setattr(memory_guard, "HARD_LIMIT_FACTOR", 1000)

    def grow() -> None:
        hoard = []
        with MemoryGuard(used_bytes() + (30 << 20)):
            for _ in range(1000):
                hoard.append(bytearray(b"x") * (1 << 20))
                time.sleep(0.005)

    with pytest.raises(InputError, match="--max-memory"):
        grow()
    assert "memory" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("wait", ["time.sleep(600)", "queue.SimpleQueue().get(timeout=600)"])
def test_work_that_waits_is_ended_too_and_where_ctrl_c_is_ignored(wait: str) -> None:
    program = (
        "import queue, signal, time\nfrom moe_advisor.memory_guard import MemoryGuard, used_bytes\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from moe_advisor import memory_guard\nmemory_guard.HARD_LIMIT_FACTOR = 1000\n"
        "with MemoryGuard(used_bytes() + (1 << 20)):\n"
        f"    hoard = bytearray(b'x') * (20 << 20)\n    {wait}\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.stderr.splitlines()[-1].startswith("moe_advisor.errors.InputError: more than ")


def test_ctrl_c_stays_ctrl_c_inside_the_guard() -> None:
    with pytest.raises(KeyboardInterrupt), MemoryGuard(1 << 50):
        raise KeyboardInterrupt


def test_the_machine_s_own_memory_is_the_default() -> None:
    limit = default_limit_bytes()
    assert limit is not None
    assert used_bytes() < limit


def test_queries_have_a_deadline(tmp_path: Path) -> None:
    path = two_steps().write(tmp_path / "run.sqlite")
    with bounded.using(bounded.Bounds(query_s=0.05)), open_sqlite(path) as source:
        time.sleep(0.06)
        with pytest.raises(InputError, match="--max-seconds"):
            source.fetch("StringIds", (Column("id"),))


def test_one_slow_query_is_ended_at_its_deadline(tmp_path: Path) -> None:
    path = two_steps().write(tmp_path / "run.sqlite")
    endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select max(x) from n"
    with bounded.using(bounded.Bounds(query_s=0.2)), open_sqlite(path) as source:
        begun = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            source._plain.execute(endless).fetchone()
        assert time.monotonic() - begun < 60


def test_a_damaged_table_that_yields_no_row_for_hours_ends_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = endless.write(tmp_path / "run.sqlite")

    def damaged(*_: object) -> None:
        raise sqlite3.DatabaseError

    monkeypatch.setattr(sqlite_reader.SqliteSource, "_read_in_parts", damaged)
    with bounded.using(bounded.Bounds(query_s=0.3)), open_sqlite(path) as source:
        begun = time.monotonic()
        with pytest.raises(InputError, match="--max-seconds"):
            source.fetch("StringIds", (Column("id"), Column("value", "")))
        assert time.monotonic() - begun < 60


def test_a_table_that_yields_no_row_for_hours_ends_the_program_at_the_deadline(
    tmp_path: Path,
) -> None:
    """In a process of its own: the query that can't be stopped stays behind in a thread."""
    path = endless.write(tmp_path / "run.sqlite")
    command = [sys.executable, "-m", "moe_advisor", "analyze", "-q", str(path), "-o", "out"]
    done = subprocess.run(
        [*command, "--max-seconds", "0.3"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--max-seconds" in line
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_a_query_that_yields_no_row(tmp_path: Path) -> None:
    path = endless.write(tmp_path / "run.sqlite")
    command = [sys.executable, "-m", "moe_advisor", "analyze", "-q", str(path)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as child:
        time.sleep(3)  # on a busy machine it may still be on its way: it ends as well
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=120)
    assert (child.returncode, said) in (
        (130, "moe-advisor: interrupted\n"),
        (-signal.SIGTERM, ""),  # before Python was up
    )


def test_the_deadline_option_reaches_the_reader(tmp_path: Path) -> None:
    trace = str(two_steps().write(tmp_path / "run.sqlite"))
    refused(
        ["analyze", trace, "-q", "-o", str(tmp_path / "o"), "--max-seconds", "1e-9"],
        "--max-seconds",
    )


def test_unpacking_is_bounded_and_the_option_raises_it(tmp_path: Path) -> None:
    content = kineto_builder.trace(*steps())
    between = b"\n  },"
    filler = b" " * ((72 << 20) // content.count(between))
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(content.replace(between, between + filler), 1))
    out = ["-q", "-o", str(tmp_path / "o")]
    refused(["analyze", str(path), *out], "--max-expansion")
    assert program(["analyze", str(path), *out, "--max-expansion", "5000"]).code == 0
    refused(["scrub", str(path), str(tmp_path / "s.json")], "--max-expansion")


def test_a_panic_of_the_table_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polars as pl

    from moe_advisor.ingest import nsys_sqlite

    def panics(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException("secret data")

    monkeypatch.setattr(nsys_sqlite, "build", panics)
    trace = str(two_steps().write(tmp_path / "run.sqlite"))
    ended = program(["analyze", trace, "-q", "-o", str(tmp_path / "o")])
    assert ended.code == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "secret" not in ended.stderr


def test_a_rank_that_is_not_recognised_is_named(tmp_path: Path) -> None:
    import json

    folder = tmp_path / "ranks"
    folder.mkdir()
    kineto_builder.write(folder, kineto_builder.trace(*steps()), "rank0.json.gz")
    (folder / "rank1.json.gz").write_bytes(b"\x1f\x8b\x08 not really")
    (folder / "config.json").write_text("{}")
    (folder / "empty.sqlite").write_bytes(b"")
    assert program(["analyze", str(folder), "-q", "-o", str(tmp_path / "o")]).code == 0
    result = json.loads((tmp_path / "o" / "result.json").read_bytes())
    found = {
        i["message"].split(":")[0]: i["severity"]
        for i in result["capture"]["issues"]
        if i["id"] == "input-skipped"
    }
    assert found == {"rank1.json.gz": "error", "empty.sqlite": "warning"}
    assert result["capture"]["complete"] is False
