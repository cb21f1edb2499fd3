"""A canary in every text of a real trace that is no name of work is found in nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trust.planted import CANARY, plant_kineto, plant_nsys
from tests.trust.verbs import run, runs, written

Traces = Callable[[str], list[Path]]


def searched(trace: Path, out: Path) -> list[str]:
    """Runs every verb, scrub too; where the canary was seen. Each must have done its work."""
    found = []
    for name, arguments in runs(trace, out):
        ended = run(arguments)
        assert ended.code in (0, 1, 2), (name, ended.stderr)
        assert (ended.code == 0) == (name not in ENDS_OTHERWISE), (name, ended.code, ended.stderr)
        said = (ended.stdout + ended.stderr).replace(str(out), "").replace(str(trace), "")
        found += [f"{name}: said"] * (CANARY.lower() in said.lower())
    for name, data in written(out):
        found += [f"{name}: written"] * (CANARY.lower().encode() in data.lower())
    return found


ENDS_OTHERWISE = {"check", "gate", "refused", "debug", "steps that are not there"}


@pytest.mark.parametrize("profiler", ["nsys", "torch"])
def test_no_text_but_names_of_work_is_in_any_output_of_any_verb(
    profiler: str, real_trace: Traces, tmp_path: Path
) -> None:
    (tmp_path / CANARY).mkdir()
    if profiler == "nsys":
        trace = tmp_path / CANARY / "run.sqlite"
        assert plant_nsys(real_trace("nsys/base")[0], trace) > 30
    else:
        trace = tmp_path / CANARY / "run.json.gz"
        assert plant_kineto(real_trace("torch/base")[0], trace) > 10
    assert CANARY.encode() in b"".join(data for _, data in written(trace.parent))
    assert searched(trace, tmp_path / "out") == []


def test_the_search_would_find_a_canary(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.html").write_text(f"<p>{CANARY}</p>")
    (tmp_path / "b.gz").write_bytes(gzip.compress(CANARY.encode()))
    assert sum(CANARY.encode() in data for _, data in written(tmp_path)) == 2
