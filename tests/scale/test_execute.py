"""Many tasks in processes: each gives its outcome once, whatever becomes of the workers."""

import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from moe_advisor.errors import ConfigError
from moe_advisor.execute import TRIES, Failed, LocalProcesses, raise_if_option, timed
from tests.scale import work


def outcomes(jobs, function, tasks, timeout_s=None):
    with closing(LocalProcesses(jobs, timeout_s).run(function, tasks)) as found:
        pairs = list(found)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_each_task_gives_its_value_and_a_bad_input_only_its_reason() -> None:
    found = outcomes(2, work.double, [11, 12, 13, 14])
    assert found == {0: 22, 1: 24, 2: Failed("thirteen.json: no trace"), 3: 28}


def test_outcomes_carry_their_number_when_later_ones_end_first() -> None:
    with closing(LocalProcesses(2).run(work.slow_start, [0, 1, 2, 3])) as found:
        assert sorted(found) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_worker_that_dies_costs_a_retry_and_nothing_else(tmp_path: Path) -> None:
    found = outcomes(2, work.die_once, [(str(tmp_path), number) for number in range(6)])
    assert (tmp_path / "died").exists()
    assert found == {number: number for number in range(6)}


def test_a_task_that_always_kills_its_worker_is_given_up_and_named() -> None:
    found = outcomes(1, work.always_die, [0, 1, 2])
    assert (found[0], found[2]) == (0, 2)
    assert found[1] == Failed(
        f"its process died {TRIES} times (signal SIGKILL): out of memory? Try --jobs 1"
    )


HANGS_S = 120
"""A tenth of what `work.hang` sleeps: what is stopped ends far below it on any machine."""


def test_a_task_past_its_time_is_stopped() -> None:
    began = time.monotonic()
    found = outcomes(1, work.hang, [0, 1, 2], timeout_s=5)
    assert time.monotonic() - began < HANGS_S
    assert found == {0: 0, 1: Failed("took longer than 5 s"), 2: 2}


def test_the_start_of_a_worker_is_no_part_of_a_tasks_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "sitecustomize.py"
    slow.write_text("import time; time.sleep(2)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert outcomes(1, work.double, [1], timeout_s=1.5) == {0: 2}


def test_closing_early_stops_the_workers_at_once() -> None:
    began = time.monotonic()
    running = LocalProcesses(2).run(work.hang, [0, 1, 2])
    assert next(running) == (0, 0)
    running.close()
    assert time.monotonic() - began < HANGS_S


def test_a_bad_option_is_the_users_error_and_no_lost_rank() -> None:
    found = outcomes(1, work.bad_option, [0])
    with pytest.raises(ConfigError, match=r"^--steps 9: selects none$"):
        raise_if_option(found[0])


def test_a_worker_told_twice_to_stop_cleans_up_and_says_nothing() -> None:
    program = """
import atexit, os, signal
from moe_advisor import execute

def again_then_clean():
    os.kill(os.getpid(), signal.SIGTERM)
    print("cleaned")

atexit.register(again_then_clean)
signal.signal(signal.SIGTERM, execute._leave)
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, b"cleaned\n", b"")


def test_a_task_of_a_cluster_past_its_time_is_given_up_and_others_are_not() -> None:
    assert timed(work.hang, 1, 0.05) == Failed("took longer than 0.05 s")
    assert timed(work.hang, 0, 600.0) == 0
    assert timed(work.double, 13, 600.0) == Failed("thirteen.json: no trace")
    assert timed(work.double, 4, None) == 8
