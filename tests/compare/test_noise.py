"""A 5 % regression must not sleep and noise must not cry wolf: real captures, made slower or not."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from moe_advisor.analysis import analyze
from moe_advisor.compare.judge import compare
from moe_advisor.compare.model import Comparison, Delta
from moe_advisor.errors import InputError
from moe_advisor.result import ConfigValue, MetricValue, RankValue, Result
from tests.output.result_builder import balanced

Traces = Callable[[str], list[Path]]
NAMES = ("base", "new")
GPU_BOUND = ("nsys/base", "nsys/shm_balanced", "nsys/bigmem_full")
HOST_BOUND = ("nsys/small", "nsys/mcore_tp2")


def step(comparison: Comparison) -> Delta:
    return next(one for one in comparison.deltas if one.name == "step_ms")


def with_steps(result: Result, change: Callable[[list[float]], list[float]]) -> Result:
    """The result with other step times; `change` maps the step times of one rank."""
    metric = result.metrics["step_ms"]
    ranks = []
    for one in metric.per_rank:
        steps = change(one.steps)
        mean = sum(steps) / len(steps)
        ranks.append(RankValue(rank=one.rank, value=mean, steps=steps))
    value = sum(one.value or 0.0 for one in ranks) / len(ranks)
    new = msgspec.structs.replace(metric, value=value, per_rank=ranks)
    return msgspec.structs.replace(result, metrics=result.metrics | {"step_ms": new})


def slower(path: Path, factor: float, folder: Path) -> Path:
    """A copy of an export in which everything takes `factor` times as long."""
    copy = folder / path.name
    shutil.copy(path, copy)
    connection = sqlite3.connect(copy)
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    for table in tables:
        columns = {row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')}
        for column in sorted(columns & {"start", "end", "timestamp"}):
            connection.execute(
                f'UPDATE "{table}" SET "{column}" = CAST("{column}" * {factor} AS INTEGER)'
            )
    connection.commit()
    connection.close()
    return copy


def test_a_real_capture_made_five_per_cent_slower_is_worse_and_says_where(
    real_trace: Traces, result, tmp_path: Path
) -> None:
    (path,) = real_trace("nsys/base")
    found = compare([result("nsys/base")], [analyze([str(slower(path, 1.05, tmp_path))])], NAMES)
    assert found.verdict == "worse"
    assert step(found).relative == pytest.approx(0.05, abs=0.001)
    assert "Permutation +" in found.cause


@pytest.mark.parametrize("name", GPU_BOUND)
def test_five_per_cent_is_seen_in_every_capture_that_the_host_does_not_limit(result, name) -> None:
    one = result(name)
    for factor, said in ((1.05, "worse"), (0.95, "better")):
        other = with_steps(one, lambda steps, by=factor: [by * value for value in steps])
        assert compare([one], [other], NAMES).verdict == said


@pytest.mark.parametrize("name", HOST_BOUND)
def test_five_per_cent_of_a_host_bound_step_is_never_called_unchanged(result, name) -> None:
    one = result(name)
    for factor in (1.05, 1.15):
        other = with_steps(one, lambda steps, by=factor: [by * value for value in steps])
        found = step(compare([one], [other], NAMES))
        assert found.verdict in ("cant_tell", "worse")
        assert found.verdict == "worse" or "repeats" in found.reason or "spread" in found.reason


def test_repeats_tell_what_one_host_bound_run_cannot(result) -> None:
    one = result("nsys/mcore_tp2")

    def runs(factor: float) -> list[Result]:
        spread = (0.99, 1.0, 1.01, 1.0, 0.995)
        return [
            with_steps(one, lambda steps, by=by: [factor * by * v for v in steps]) for by in spread
        ]

    assert compare(runs(1.0), runs(1.05), NAMES).verdict == "worse"
    assert compare(runs(1.0), runs(1.0), NAMES).verdict == "unchanged"


@pytest.mark.parametrize("name", GPU_BOUND + HOST_BOUND)
def test_the_steps_of_a_capture_drawn_again_are_never_a_change(result, name) -> None:
    one = result(name)
    for seed in range(10):
        picked = random.Random(seed)
        places = [picked.randrange(3) for _ in range(3)]
        other = with_steps(one, lambda steps, at=places: [steps[place] for place in at])
        allowed = {"unchanged"} if name in GPU_BOUND else {"unchanged", "cant_tell"}
        assert compare([one], [other], NAMES).verdict in allowed


def test_two_captures_of_one_job_are_unchanged_also_where_one_holds_fewer_ranks(result) -> None:
    found = compare([result("torch/base")], [result("torch/base_mem")], NAMES)
    assert found.verdict == "unchanged"
    assert not {one.verdict for one in found.deltas} & {"better", "worse", "changed"}
    (ranks,) = [one for one in found.checks if one.id == "ranks"]
    assert ranks.state == "differs"
    assert set(step(found).by_rank) == {"0"}


def test_a_rank_that_one_side_lacks_does_not_decide() -> None:
    def run_of(*ranks: tuple[int, float]) -> Result:
        base = balanced()
        rows = [RankValue(rank=rank, value=ms, steps=[ms, ms, ms]) for rank, ms in ranks]
        value = sum(ms for _, ms in ranks) / len(ranks)
        metric = MetricValue(status="measured", value=value, unit="ms/step", per_rank=rows)
        read = [msgspec.structs.replace(base.inputs[0], ranks=[rank for rank, _ in ranks])]
        return msgspec.structs.replace(
            base, inputs=read, metrics=base.metrics | {"step_ms": metric}
        )

    both, one = run_of((0, 100.0), (1, 300.0)), run_of((0, 100.0))
    assert step(compare([both], [one], NAMES)).window_change == 0


def with_facts(dispatcher: str, slow: bool | None, **facts: object) -> Result:
    base = balanced()
    run = msgspec.structs.replace(
        base.run, dispatcher=dispatcher, facts=base.run.facts | {"a2a_slow_link": slow, **facts}
    )
    return msgspec.structs.replace(base, run=run)


def test_another_rate_refuses_unless_another_dispatcher_explains_it() -> None:
    fast, slow = with_facts("alltoall", False), with_facts("alltoall", True)
    with pytest.raises(InputError, match="--allow link"):
        compare([fast], [slow], NAMES)
    found = compare([fast], [with_facts("allgather", True)], NAMES)
    assert [one.state for one in found.checks if one.id == "link"] == ["differs"]


def test_a_world_size_below_the_ranks_read_is_not_known() -> None:
    run = msgspec.structs.replace(
        balanced().run, world_size=1, facts=balanced().run.facts | {"ranks_read": 2}
    )
    found = compare([balanced()], [msgspec.structs.replace(balanced(), run=run)], NAMES)
    assert [one.state for one in found.checks if one.id == "world-size"] == ["unknown"]


def with_times(layers: int = 0, **times: float) -> Result:
    base = balanced()
    metrics = {
        name: MetricValue(status="measured", value=value, unit="ms/step")
        for name, value in times.items()
    }
    rows = [
        {"layer": layer, "phase": "attention", "forward_ms": 1.0, "backward_ms": 2.0}
        for layer in range(layers)
    ]
    return msgspec.structs.replace(base, metrics=base.metrics | metrics, layers=rows)


@pytest.mark.parametrize(
    ("base", "new", "said"),
    [
        ({"optimizer_ms": 10.0}, {"optimizer_ms": 4.0}, "differs"),  # a distributed optimizer
        (
            {"optimizer_ms": 10.0, "expert_gemm_ms": 30.0},
            {"optimizer_ms": 4.0, "expert_gemm_ms": 90.0},
            "refused",
        ),
        (
            {"optimizer_ms": 10.0, "dense_gemm_ms": 20.0},
            {"optimizer_ms": 10.0, "dense_gemm_ms": 40.0},
            "refused",
        ),
        (
            {"optimizer_ms": 10.0, "dense_gemm_ms": 20.0},
            {"optimizer_ms": 10.2, "dense_gemm_ms": 24.0},
            "same",
        ),
        ({"layers": 4}, {"layers": 8}, "refused"),
    ],
)
def test_the_model_is_known_by_its_layers_weights_and_work_together(base, new, said) -> None:
    blank = dict.fromkeys(
        ("optimizer_ms", "dense_gemm_ms", "gemm_unattributed_ms", "expert_gemm_ms"), 0.0
    )
    sides = [with_times(**{**blank, **side}) for side in (base, new)]
    found = compare([sides[0]], [sides[1]], NAMES, allow=("model",))
    (check,) = [one for one in found.checks if one.id == "model"]
    assert check.state == ("differs" if said == "refused" else said)
    if said == "refused":
        with pytest.raises(InputError, match="--allow model"):
            compare([sides[0]], [sides[1]], NAMES)


def test_the_layer_and_the_only_key_that_changed_are_named() -> None:
    def run_of(ms: float, third: float, granularity: str) -> Result:
        one = with_steps(with_times(layers=4), lambda _: [ms, ms + 0.1, ms - 0.1])
        rows = [dict(row, forward_ms=third) if row["layer"] == 2 else row for row in one.layers]
        value = msgspec.structs.replace(
            next(iter(balanced().run.config.values())), value=granularity
        )
        run = msgspec.structs.replace(
            one.run, config=one.run.config | {"recompute_granularity": value}
        )
        parts = [msgspec.structs.replace(one.step_parts[0], ms=ms)]
        return msgspec.structs.replace(one, layers=rows, run=run, step_parts=parts)

    found = compare([run_of(100, 1, "none")], [run_of(120, 19, "full")], NAMES)
    assert found.verdict == "worse"
    assert "Most in layer 2 (+18.0 ms, attention first)" in found.cause
    assert "only recompute_granularity differs: none to full" in found.cause
    assert [one.label for one in found.layers] == ["layer 2, attention"]


def test_a_key_that_only_one_capture_shows_is_named(result) -> None:
    plain, overlapped = result("nsys/shm_balanced"), result("nsys/shm_overlap")
    shown = {"overlap_moe_expert_parallel_comm": ConfigValue(value=True, source="trace")}
    run = msgspec.structs.replace(overlapped.run, config=overlapped.run.config | shown)
    found = compare([plain], [msgspec.structs.replace(overlapped, run=run)], ("plain", "ov"))
    assert "overlap_moe_expert_parallel_comm True in ov" in found.cause
