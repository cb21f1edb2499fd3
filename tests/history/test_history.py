"""The history file: many writers, kills at any moment, bad files, trends and baselines."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from moe_advisor.cli.compare import compare as command
from moe_advisor.compare.floors import Floor
from moe_advisor.errors import ConfigError, GateFailed, InputError, OutputError
from moe_advisor.history import store
from moe_advisor.history.trend import change_points, since_change
from moe_advisor.output import history_html, json_output
from moe_advisor.result import MetricValue, RankValue, Result
from tests.output.result_builder import balanced

ROOT = Path(__file__).parent.parent.parent


def run_of(step_ms: float) -> Result:
    result = balanced()
    step = MetricValue(status="measured", value=step_ms, unit="ms/step")
    return msgspec.structs.replace(result, metrics=result.metrics | {"step_ms": step})


def test_a_run_is_read_back_as_it_was_but_for_the_timeline(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    number, new = store.add(db, balanced(), branch="dev", commit="abc", labels={"job": "7"})
    assert (number, new) == (1, True)
    (row,) = store.read(db)
    assert (row.branch, row.commit, row.labels) == ("dev", "abc", {"job": "7"})
    assert row.result == msgspec.structs.replace(balanced(), timeline=None)
    with sqlite3.connect(db) as raw:
        count = raw.execute("SELECT count(*) FROM metric WHERE run_id = 1").fetchone()[0]
    assert count == len(balanced().metrics)
    raw.close()


def test_adding_the_same_again_changes_nothing(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    assert store.add(db, balanced(), commit="a") == (1, True)
    assert store.add(db, balanced(), commit="a") == (1, False)
    assert store.add(db, balanced(), commit="b") == (2, True)


def test_twenty_jobs_at_once_some_killed_leave_whole_runs_only(tmp_path: Path) -> None:
    db, result = tmp_path / "h.db", tmp_path / "r.json"
    result.write_bytes(json_output.encode(balanced()))
    picked = random.Random(7)
    jobs = []
    for number in range(20):
        command = [sys.executable, "-m", "moe_advisor", "history", "add", str(db), str(result)]
        jobs.append(
            subprocess.Popen(
                [*command, "--commit", f"c{number}", "--timeout", "300"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )
    doomed = set(picked.sample(range(20), 7))
    deadline = time.monotonic() + 60
    for number in sorted(doomed):
        # Spread over the time in which others write, so that some die inside a transaction.
        while not db.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(picked.random() * 0.3)
        jobs[number].send_signal(signal.SIGKILL)
    ends = [(job.communicate(timeout=600), job.returncode) for job in jobs]
    reported = {f"c{i}" for i, ((out, _), code) in enumerate(ends) if code == 0 and b"Added" in out}
    assert all(code in (0, -signal.SIGKILL) for _, code in ends), ends
    assert {f"c{number}" for number in range(20) if number not in doomed} <= reported
    rows = store.read(db)
    commits = [row.commit for row in rows]
    assert len(commits) == len(set(commits))
    assert reported <= set(commits)
    metrics = len(balanced().metrics)
    with sqlite3.connect(db) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counts = raw.execute("SELECT count(*) FROM metric GROUP BY run_id").fetchall()
    raw.close()
    assert counts == [(metrics,)] * len(rows)


def test_a_writer_killed_between_its_statements_leaves_nothing(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    store.add(db, balanced(), commit="first")
    code = (
        "import os, sqlite3, sys\n"
        f"c = sqlite3.connect({str(db)!r}, isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        'c.execute("INSERT INTO run (added_at, branch, commit_id, labels, name, digest, verdict,'
        " result) VALUES ('', 'main', 'half', '', '', 'd', '', '')\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert [row.commit for row in store.read(db)] == ["first"]
    store.add(db, balanced(), commit="second")
    assert [row.commit for row in store.read(db)] == ["first", "second"]


def test_a_locked_history_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    store.add(db, balanced(), commit="a")
    holder = sqlite3.connect(db, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="another job holds it too long"):
        store.add(db, balanced(), commit="b", timeout_s=0.05)
    assert [row.commit for row in store.read(db)] == ["a"]  # readers go on
    holder.execute("ROLLBACK")
    holder.close()
    assert store.add(db, balanced(), commit="b") == (2, True)


def test_files_that_are_no_history_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "a.txt", tmp_path / "o.db", tmp_path / "n.db"
    text.write_text("no database " * 100)
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE t (a)")
    raw.close()
    store.add(newer, balanced())
    with sqlite3.connect(newer) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    for path, words in (
        (text, "not a usable SQLite file"),
        (other, "another program's database"),
        (newer, "newer moe-advisor"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "h.db", "does not exist"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(InputError, match=words) as error:
            store.add(path, balanced())
        assert "\n" not in str(error.value)
        assert not path.is_file() or path.read_bytes() == before
    with pytest.raises(InputError, match="no such history file"):
        store.read(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def as_anyone(work: Callable[[], str]) -> str:
    """What `work` returns, done by a user who may not write what root may."""
    if os.geteuid() != 0:
        return work()
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.setuid(65534)
        os.write(theirs, work().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        return stream.read()


def test_a_read_only_history_can_be_read_and_says_why_it_is_not_written() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        db = folder / "h.db"
        store.add(db, balanced(), commit="a")
        db.chmod(0o444)
        folder.chmod(0o555)
        before = db.read_bytes()
        assert as_anyone(lambda: " ".join(row.commit for row in store.read(db))) == "a"

        def add() -> str:
            try:
                return str(store.add(db, balanced(), commit="b"))
            except InputError as error:
                return str(error)

        said = as_anyone(add)
        assert "check the permissions" in said
        assert "\n" not in said
        assert db.read_bytes() == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_stored_result_of_a_newer_schema_is_one_line_and_stays(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    store.add(db, balanced(), commit="a")
    newer = json_output.encode(balanced()).replace(
        b'"schema_version": "1.0"', b'"schema_version": "2.0"'
    )
    with sqlite3.connect(db) as raw:
        raw.execute("UPDATE run SET result = ?", (zlib.compress(newer),))
    raw.close()
    with pytest.raises(InputError, match=r"run 1: written for result schema 2.*update") as error:
        store.read(db)
    assert "\n" not in str(error.value)
    with sqlite3.connect(db) as raw:
        assert raw.execute("SELECT count(*) FROM run").fetchone() == (1,)
    raw.close()


def with_steps(*steps: float) -> Result:
    ranks = [RankValue(rank=0, value=sum(steps) / len(steps), steps=list(steps))]
    metric = MetricValue(
        status="measured", value=sum(steps) / len(steps), unit="ms/step", per_rank=ranks
    )
    result = balanced()
    return msgspec.structs.replace(result, metrics=result.metrics | {"step_ms": metric})


def test_a_baseline_begins_where_the_step_time_changed_last(tmp_path: Path) -> None:
    """Against all 20 runs, 101 ms would lie within the spread of two levels."""
    db, new = tmp_path / "h.db", tmp_path / "new.json"
    noise = (0.1, -0.2, 0.0, 0.2, -0.1, 0.1, 0.0, -0.1, 0.2, -0.2)
    for number, delta in enumerate(noise):
        store.add(db, with_steps(110 + delta, 110.2 + delta), commit=f"slow{number}")
    for number, delta in enumerate(noise):
        store.add(db, with_steps(100 + delta, 100.2 + delta), commit=f"fast{number}")
    assert since_change([row.result for row in store.read(db)]) == 10
    new.write_bytes(json_output.encode(with_steps(106.0, 106.2, 105.9)))
    done = CliRunner().invoke(command, [str(new), "--baseline", f"{db}:main~20", "--gate"])
    assert isinstance(done.exception, GateFailed)
    assert (
        "10 runs left out: from before the step time changed at run 11, commit fast0" in done.stderr
    )
    new.write_bytes(json_output.encode(with_steps(100.0, 100.3, 100.1)))
    done = CliRunner().invoke(command, [str(new), "--baseline", f"{db}:main~20", "--gate"])
    assert (done.exit_code, "unchanged" in done.stdout) == (0, True), done.output


def test_runs_of_another_profiler_leave_the_baseline(tmp_path: Path) -> None:
    def of(profiler: str, step_ms: float) -> Result:
        one = with_steps(step_ms, step_ms + 0.2)
        run = msgspec.structs.replace(one.run, facts=one.run.facts | {"profiler": profiler})
        return msgspec.structs.replace(one, run=run)

    db, new = tmp_path / "h.db", tmp_path / "new.json"
    for number in range(3):
        store.add(db, of("nsys", 100 + number / 10), commit=f"n{number}")
        store.add(db, of("torch", 130 + number / 10), commit=f"t{number}")
    new.write_bytes(json_output.encode(of("nsys", 100.1)))
    done = CliRunner().invoke(command, [str(new), "--baseline", f"{db}:main", "--gate"])
    assert done.exit_code == 0, done.output
    assert "3 runs left out: of another profiler" in done.stderr


def test_the_history_itself_is_never_written_over(tmp_path: Path) -> None:
    db, new = tmp_path / "h.db", tmp_path / "new.json"
    store.add(db, with_steps(100.0, 100.1))
    new.write_bytes(json_output.encode(with_steps(100.0, 100.3)))
    before = db.read_bytes()
    done = CliRunner().invoke(
        command, [str(new), "--baseline", f"{db}:main", "--format", f"json={db}", "--force"]
    )
    assert isinstance(done.exception, OutputError)
    assert db.read_bytes() == before


def test_a_baseline_is_the_last_runs_of_a_branch_without_the_run_itself(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    for number in range(6):
        store.add(db, run_of(100.0 + number), commit=f"c{number}")
    store.add(db, run_of(500.0), branch="dev")

    def commits(text: str, *own: Result) -> list[str]:
        return [row.commit for row in store.baseline(f"{db}:{text}", own)]

    assert commits("main~3") == ["c3", "c4", "c5"]
    assert commits("main") == [f"c{number}" for number in range(6)]
    assert commits("main~3", run_of(105.0)) == ["c2", "c3", "c4"]
    for text in ("none", "main~0", "main~x"):
        with pytest.raises(ConfigError):
            store.baseline(f"{db}:{text}")


def test_a_level_that_changes_is_marked_where_it_changed() -> None:
    floor = Floor(0.5, 0.01)
    noise = [0.2, -0.3, 0.1, -0.1, 0.3, -0.2]
    series = [100 + one for one in noise] + [108 + one for one in noise]
    (mark,) = change_points(series, floor)
    assert mark.index == 6
    assert mark.after - mark.before == pytest.approx(8.0)


def test_noise_one_wild_run_and_a_change_below_the_floor_are_not_marked() -> None:
    floor = Floor(0.5, 0.01)
    noise = [0.2, -0.3, 0.1, -0.1, 0.3, -0.2]
    assert change_points([100 + one for one in noise * 3], floor) == []
    assert change_points([100.0, 100.1, 99.9, 180.0, 100.1, 99.9, 100.0], floor) == []
    assert change_points([100.0] * 5 + [100.4] * 5, floor) == []
    assert change_points([100.0, 120.0], floor) == []


def test_the_page_marks_the_change_and_loads_nothing(tmp_path: Path) -> None:
    db = tmp_path / "h.db"
    for number, step in enumerate((100.0, 100.2, 99.9, 120.0, 120.1, 119.9)):
        store.add(db, run_of(step), commit=f"c{number}", labels={"by": "<b>"[1:2]})
    page = history_html.render(store.read(db))
    assert page.count('class="mark"') == 1
    assert "commit c3 on: 100.0 ms to 120.0 ms, +20.0 ms (+20.0 %)" in page
    assert ">run 1, c0<" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
