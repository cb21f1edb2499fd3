"""Many ranks: the result depends on the set of ranks only, and stands without a lost one."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_advisor import analysis, entries
from moe_advisor.errors import ConfigError
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.summary import summarise
from moe_advisor.output.json_output import encode
from moe_advisor.progress import Advance

Traces = Callable[[str], list[Path]]
ROOT = Path(__file__).parent.parent.parent
RANKS = 10


@pytest.fixture(scope="module")
def ranks(real_trace: Traces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten ranks of one step, in five expert-parallel groups of two."""
    folder = tmp_path_factory.mktemp("many") / "ranks"
    command = [sys.executable, ROOT / "benchmarks" / "make_big_trace.py", "ranks"]
    sources = real_trace("torch/base")
    subprocess.run(
        [*command, *sources, folder, "--ranks", str(RANKS), "--steps", "1"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder


def encode_partial(partial: RankPartial) -> bytes:
    return entries.encode(
        entries.Entry(analysis.InputInfo("a", "kineto", None, ()), (), (partial,))
    )


def result(folder: Path, **options) -> bytes:
    return encode(analysis.analyze([str(folder)], analysis.Options(**options)))


@pytest.fixture(scope="module")
def expected(ranks: Path) -> bytes:
    return result(ranks, jobs=1)


def issues(folder: Path, **options) -> dict[str, str]:
    found = analysis.analyze([str(folder)], analysis.Options(**options))
    return {issue.id: issue.message for issue in found.capture.issues}


def test_any_number_of_processes_gives_the_same_bytes(ranks: Path, expected: bytes) -> None:
    assert result(ranks, jobs=3) == expected


def test_estimates_and_a_timeline_exist_for_many_ranks(ranks: Path) -> None:
    found = analysis.analyze([str(ranks)], analysis.Options(jobs=2))
    assert found.timeline is not None
    assert any(one.estimate.expected_ms is not None for one in found.whatif)


def test_only_one_expert_parallel_group_is_kept_in_memory(ranks: Path) -> None:
    kept = analysis.measure([str(ranks)], analysis.Options(jobs=2)).kept
    assert [one.partial.rank for one in kept] == [0, 1]


def test_partials_merge_in_any_order_and_grouping(ranks: Path) -> None:
    whole = analysis.measure([str(ranks)], analysis.Options(jobs=2)).partials
    shuffled = list(whole)
    random.Random(1).shuffle(shuffled)
    regrouped = [
        partial
        for group in (shuffled[:3], shuffled[3:4], shuffled[4:])
        for partial in entries.decode(  # each group travels on its own
            entries.encode(
                entries.Entry(analysis.InputInfo("a", "kineto", None, ()), (), tuple(group))
            )
        ).partials
    ]
    order = sorted(regrouped, key=lambda one: one.rank)
    assert summarise(order, {}).metrics == summarise(whole, {}).metrics
    assert [encode_partial(one) for one in order] == [encode_partial(one) for one in whole]


def test_a_rank_that_cant_be_read_is_named_and_the_rest_stands(ranks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    shutil.copytree(ranks, folder)
    with (folder / "rank4.json").open("wb") as file:
        file.write(b'{"schemaVersion": 1, "deviceProperties": [], "traceEvents": 5}')
    found = analysis.analyze([str(folder)], analysis.Options(jobs=2))
    assert len(found.ranks) == RANKS - 1
    (lost,) = (issue for issue in found.capture.issues if issue.id == "input-unreadable")
    assert lost.message.startswith("rank4.json: ")
    assert not found.capture.complete


def test_a_wrong_option_ends_the_run_instead_of_losing_every_rank(ranks: Path) -> None:
    with pytest.raises(ConfigError, match="--steps 7:9"):
        result(ranks, jobs=2, steps="7:9")


def test_a_sample_takes_whole_groups_and_says_so(ranks: Path) -> None:
    found = analysis.analyze([str(ranks)], analysis.Options(sample=5, jobs=1))
    assert [one.rank for one in found.ranks] == [0, 1, 8, 9]
    messages = {issue.id: issue.message for issue in found.capture.issues}
    assert messages["sampled"].startswith(
        "a sample: 4 of 10 inputs, 2 of 5 whole expert-parallel groups"
    )
    assert "no whole expert-parallel group" in issues(ranks, sample=1)["sampled"]
    assert "sampled" not in issues(ranks, sample=10, jobs=2)


def test_progress_ends_with_every_input_and_byte(ranks: Path) -> None:
    seen: list[Advance] = []
    analysis.measure([str(ranks)], analysis.Options(jobs=2), seen.append)
    assert [one.done for one in seen] == list(range(1, RANKS + 1))
    total = sum(path.stat().st_size for path in ranks.iterdir())
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (total, total)


def test_a_cached_run_gives_the_same_bytes_and_reads_no_trace_again(
    ranks: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "cache")
    assert result(ranks, jobs=2, cache=store) == expected
    measured = analysis.measure([str(ranks)], analysis.Options(jobs=2, cache=store))
    assert len(measured.partials) == RANKS

    def unwanted(*_):
        raise AssertionError("a trace was read")

    monkeypatch.setattr(analysis, "_load", unwanted)
    assert result(ranks, jobs=1, cache=store) == expected


def test_another_option_or_another_byte_is_another_result(
    real_trace: Traces, tmp_path: Path
) -> None:
    store = str(tmp_path / "cache")
    trace = real_trace("torch/gcsync")[0]
    whole = result(trace, cache=store)
    part = result(trace, cache=store, steps="0:1")
    assert part != whole
    assert result(trace, cache=store, steps="0:1") == part == result(trace, steps="0:1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_at_once_and_leave_nothing(
    ranks: Path, tmp_path: Path, number: signal.Signals
) -> None:
    for attempt in range(10):  # on a busy machine the run may be over before it is looked at
        folder = tmp_path / str(attempt)
        if _stopped_at_work(ranks, folder, number):
            break
    else:
        pytest.fail("no run was met at work")
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert all(name.endswith(".moe-cache") for name in left)


def _stopped_at_work(ranks: Path, folder: Path, number: signal.Signals) -> bool:
    """Starts a run, sends `number` twice once it has read ranks; False where it was too late."""
    folder.mkdir()
    command = [sys.executable, "-m", "moe_advisor", "analyze", str(ranks), "-q", "-o", "out"]
    process = subprocess.Popen(
        [*command, "--jobs", "2", "--cache", "cache"],
        cwd=folder,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    while not list(folder.glob("cache/*/*.moe-cache")) and process.poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    if process.returncode == 0:
        return False
    assert time.monotonic() - began < 30
    assert (process.returncode, said) == (130, b"moe-advisor: interrupted\n")
    return True
