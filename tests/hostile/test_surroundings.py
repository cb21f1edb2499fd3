"""Full disks, folders that can't be written, missing homes, signals: nothing is half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hostile.run_cases import state
from tests.nsys_builder import two_steps

ROOT = Path(__file__).parents[2]
COMPLETE = {"report.html", "result.json"}
PATIENCE_S = 300


SMALL_FILES = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def started(
    folder: Path, *more: str, first: str = "", **options: object
) -> "subprocess.Popen[str]":
    """An analysis in a process of its own; `first` is a program that becomes it."""
    (folder / "in").mkdir(exist_ok=True)
    path = folder / "in" / "run.sqlite"
    if not path.exists():
        two_steps().write(path)
    # Python does not notice a short write of bytecode: a limit on file sizes, or a signal, would
    # leave damaged .pyc files in the checkout, for every later run.
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment |= options.pop("env", {})  # type: ignore[arg-type, call-overload]
    before = [sys.executable, *(["-c", first] if first else [])]
    return subprocess.Popen(
        [*before, "-m", "moe_advisor", "analyze", "-q", "-o", str(folder / "out"), str(path), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def left(folder: Path) -> set[str]:
    out = folder / "out"
    return {path.name for path in out.iterdir()} if out.exists() else set()


def test_a_full_disk_ends_in_one_line_and_leaves_no_part(tmp_path: Path) -> None:
    run = started(tmp_path, first=SMALL_FILES)
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 2
    assert len(err.splitlines()) == 1
    assert "can't be written" in err
    assert left(tmp_path) == set()


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    run = started(tmp_path)
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 2
    assert len(err.splitlines()) == 1
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["HOME", "TMPDIR", "XDG_CACHE_HOME"])
def test_folders_of_the_user_that_do_not_exist_are_not_needed(tmp_path: Path, name: str) -> None:
    run = started(tmp_path, env={name: "/nowhere/at/all"})
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    assert left(tmp_path) == COMPLETE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.3, 0.7, 1.1, 1.6])
def test_a_signal_leaves_whole_files_or_none(tmp_path: Path, number: int, after_s: float) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    run = started(tmp_path, env={"TMPDIR": str(temporary)})
    before = state(tmp_path / "in")
    time.sleep(after_s)
    run.send_signal(number)
    _, said = run.communicate(timeout=PATIENCE_S)
    # Before the program has installed its handlers, the signal ends Python itself; it is taken for
    # Ctrl-C, which ends Python too where the program is being imported.
    assert run.returncode in (0, 130, -number, -signal.SIGINT, 1)
    if run.returncode in (0, 130):
        assert said == ("moe-advisor: interrupted\n" if run.returncode else "")
    assert left(tmp_path) <= COMPLETE
    assert state(tmp_path / "in") == before
    assert os.listdir(temporary) == []
