"""Every named broken input ends in a result that names its issues, or in exit 2 and one line.

One case in three runs by default; MOE_ADVISOR_HOSTILE=all runs all of them.
"""

import json
import os
from pathlib import Path

import pytest

from tests.hostile.cases import CASES
from tests.hostile.run_cases import program, state

ONCE_WRONG = (
    # each hung, crashed, ended with exit 3 or changed its input once
    "nsys: rows without end",
    "nsys: ten thousand processes",
    "nsys: CUPTI_ACTIVITY_KIND_RUNTIME without rows",
    "nsys: kernels with globalPid NULL",
    "torch: correlation ids of calls that are missing",
    "files: parquet times as lists",
    "files: a hot write-ahead log",
    "files: a damaged write-ahead log",
    "--config: a device",
    "--log: a device",
    "--taxonomy: a bad date",
    "--taxonomy: a huge number",
    "--set: not a number",
    "--steps: without end",
    "--fail-on: long",
)
MESSAGE_LIMIT = 1_100


def _chosen() -> list[str]:
    if os.environ.get("MOE_ADVISOR_HOSTILE") == "all":
        return list(CASES)
    return [name for n, name in enumerate(CASES) if n % 3 == 0 or name in ONCE_WRONG]


@pytest.mark.parametrize("name", _chosen())
def test_a_broken_input_ends_in_a_result_or_in_one_line(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    arguments = case.build(folder)
    before = state(folder)
    ended = program(["analyze", "-q", "-o", str(out), *arguments])
    assert state(folder) == before
    assert ended.code in ((0, 2) if case.exits is None else (case.exits,)), ended.stderr
    assert "Traceback" not in ended.stderr
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert left in (set(), {"report.html", "result.json"})
    if ended.code == 0:
        result = json.loads((out / "result.json").read_text())
        assert case.issues <= {issue["id"] for issue in result["capture"]["issues"]}
    else:
        (line,) = ended.stderr.splitlines()
        assert line.startswith("moe-advisor: ")
        assert line.isprintable()
        assert len(line) < MESSAGE_LIMIT
        assert case.says in line


def test_the_corpus_covers_what_security_promises() -> None:
    assert len(CASES) >= 150
    assert set(ONCE_WRONG) <= set(CASES)
