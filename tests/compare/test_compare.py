"""Comparisons on real pairs and on made series: what is called, and what is not."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from moe_advisor.cli.compare import compare as command
from moe_advisor.compare import sides
from moe_advisor.compare.judge import compare
from moe_advisor.compare.model import Comparison, Delta
from moe_advisor.errors import GateFailed, InputError
from moe_advisor.output import compare_html, compare_text, json_output
from moe_advisor.result import MetricValue, RankValue, Result
from tests.output.result_builder import balanced, one_rank

Traces = Callable[[str], list[Path]]
NAMES = ("base", "new")


def delta(comparison: Comparison, name: str) -> Delta:
    return next(one for one in comparison.deltas if one.name == name)


def run_of(
    *steps: float, ranks: int = 1, name: str = "step_ms", mean: float | None = None
) -> Result:
    """A result whose metric has these per-step values on every rank."""
    base = balanced()
    value = sum(steps) / len(steps) if mean is None else mean
    per_rank = [RankValue(rank=rank, value=value, steps=list(steps)) for rank in range(ranks)]
    metric = MetricValue(status="measured", value=value, unit="ms/step", per_rank=per_rank)
    return msgspec.structs.replace(base, metrics=base.metrics | {name: metric})


def verdict(base: Result, new: Result, name: str = "step_ms") -> str:
    return delta(compare([base], [new], NAMES), name).verdict


def test_overlap_on_a_slow_link_is_better_and_the_wire_is_why(result) -> None:
    found = compare([result("nsys/shm_balanced")], [result("nsys/shm_overlap")], NAMES)
    assert found.verdict == "better"
    assert -0.09 < (delta(found, "step_ms").relative or 0) < -0.05
    assert delta(found, "ep_a2a_exposed_ms").verdict == "better"
    assert "wire" in found.parts[0].label
    assert sum(one.change_ms for one in found.parts) == pytest.approx(
        delta(found, "step_ms").window_change, abs=2.0
    )


def test_a_change_read_backwards_is_worse(result) -> None:
    found = compare([result("nsys/shm_overlap")], [result("nsys/shm_balanced")], NAMES)
    assert found.verdict == "worse"


@pytest.mark.parametrize("job", ["base", "bigmem_full"])
def test_two_profilers_on_one_job_warn_and_call_nothing_worse(result, job: str) -> None:
    found = compare([result(f"nsys/{job}")], [result(f"torch/{job}")], NAMES)
    assert {one.verdict for one in found.deltas} <= {"unchanged", "cant_tell"}
    assert found.verdict == "unchanged"
    (profiler,) = [one for one in found.checks if one.id == "profiler"]
    assert profiler.state == "differs"


def test_steps_of_one_capture_as_repeats_are_unchanged(result) -> None:
    parts = [result("nsys/shm_balanced", f"{i}:{i + 1}") for i in range(3)]
    found = compare(parts[:2], parts[1:], NAMES)
    assert found.verdict == "unchanged"
    assert not {one.verdict for one in found.deltas} & {"better", "worse", "changed"}


def test_a_result_beside_itself_is_unchanged_wherever_it_is_measured(result) -> None:
    one = result("nsys/shm_balanced")
    found = compare([one], [one], NAMES)
    for row in found.deltas:
        measured = one.metrics[row.name].status == "measured"
        if measured and one.metrics[row.name].per_rank and one.metrics[row.name].per_rank[0].steps:
            assert row.verdict in ("unchanged", "cant_tell"), row
            assert row.window_change == 0
    assert found.verdict == "unchanged"


@pytest.mark.parametrize("other", ["nsys/small", "nsys/bigmem_full"])
def test_another_model_or_batch_is_refused_and_can_be_allowed(result, other: str) -> None:
    with pytest.raises(InputError, match="--allow model"):
        compare([result("nsys/base")], [result(other)], NAMES)
    assert compare([result("nsys/base")], [result(other)], NAMES, allow=("model",))


def test_one_model_under_another_trainer_is_compared_and_its_optimizer_named(result) -> None:
    found = compare([result("nsys/base")], [result("nsys/mcore_alltoall")], NAMES)
    (model,) = [one for one in found.checks if one.id == "model"]
    assert model.state == "differs"
    assert model.message.startswith(
        "the optimizer's settings, or the model, seem to differ: 4 layers"
    )


def test_another_gpu_and_world_size_are_refused_in_one_line() -> None:
    base = balanced()
    run = msgspec.structs.replace(base.run, gpu="NVIDIA B200", world_size=64)
    with pytest.raises(InputError) as error:
        compare([base], [msgspec.structs.replace(base, run=run)], NAMES)
    assert "GPU differs" in str(error.value)
    assert "--allow hardware --allow world-size" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "new", "said"),
    [
        ((100, 101, 99), (106, 105, 107), "worse"),
        ((100, 101, 99), (94, 95, 93), "better"),
        ((100, 101, 99), (101, 100, 101), "unchanged"),
        ((100, 130, 70), (110, 140, 80), "cant_tell"),  # spread as large as the change
        ((100, 101, 99), (100, 101, 140), "cant_tell"),  # one slow step moves the mean only
        ((100,), (120,), "cant_tell"),  # no spread at all
        ((100, 130, 70), (101, 131, 69), "cant_tell"),  # too noisy to call it unchanged
    ],
)
def test_the_verdict_needs_size_agreement_and_a_spread_that_cannot_turn_it(
    base: tuple[float, ...], new: tuple[float, ...], said: str
) -> None:
    assert verdict(run_of(*base), run_of(*new)) == said


def test_an_absolute_floor_keeps_small_things_small() -> None:
    one, two = (run_of(v, v, v, name="router_ms") for v in (0.10, 0.20))
    assert verdict(one, two, "router_ms") == "unchanged"


def test_repeats_sharpen_what_one_run_cannot_tell() -> None:
    base, new = run_of(100, 100, 100), run_of(101.5, 101.5, 101.5)
    assert delta(compare([base], [new], NAMES), "step_ms").verdict == "unchanged"
    bases = [run_of(v, v, v) for v in (99.9, 100, 100.1, 100, 99.9)]
    assert delta(compare(bases, [new], NAMES), "step_ms").verdict == "worse"
    wild = [run_of(v, v, v) for v in (97, 100, 103, 99, 102)]
    assert delta(compare(wild, [new], NAMES), "step_ms").verdict == "cant_tell"


def test_bounds_decide_only_where_they_lie_apart() -> None:
    def bounded(low: float, high: float) -> Result:
        base = balanced()
        metric = MetricValue(
            status="estimated", value=high, unit="ms/step", low=low, high=high, basis="x"
        )
        return msgspec.structs.replace(base, metrics=base.metrics | {"ep_a2a_transfer_ms": metric})

    name = "ep_a2a_transfer_ms"
    assert verdict(bounded(10, 20), bounded(15, 30), name) == "cant_tell"
    assert verdict(bounded(10, 20), bounded(40, 60), name) == "worse"
    assert verdict(bounded(40, 60), bounded(10, 20), name) == "better"


def test_the_same_inputs_give_the_same_bytes() -> None:
    pair = [run_of(100, 104, 98)], [run_of(103, 107, 101)]
    first, second = (compare(*pair, NAMES) for _ in range(2))
    assert compare_text.as_json(first) == compare_text.as_json(second)
    assert compare_html.render(first) == compare_html.render(second)


def test_the_page_loads_nothing_and_escapes_names() -> None:
    page = compare_html.render(
        compare([run_of(1, 1, 1)], [run_of(9, 9, 9)], ("<img src=x>", "new"))
    )
    assert "<img" not in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_folders_of_results_and_of_named_runs_are_repeats_and_other_folders_are_one_run(
    tmp_path: Path,
) -> None:
    data = json_output.encode(balanced())
    for name in ("results/a.json", "results/b.json", "runs/run2/r.json", "runs/run10/r.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "ranks" / "node0").mkdir(parents=True)

    def names(folder: str) -> list[str]:
        return [Path(path).name for path in sides.runs_of(str(tmp_path / folder))]

    assert names("results") == ["a.json", "b.json"]
    assert names("runs") == ["run2", "run10"]
    assert names("ranks") == ["ranks"]


def write(path: Path, result: Result) -> str:
    path.write_bytes(json_output.encode(result))
    return str(path)


@pytest.mark.parametrize(
    ("new", "fails"),
    [((90, 91, 89), False), ((100, 101, 99), False), ((110, 111, 109), True), ((110,), True)],
)
def test_the_gate_fails_on_worse_and_on_what_it_cannot_tell(
    tmp_path: Path, new: tuple[float, ...], fails: bool
) -> None:
    base_file = write(tmp_path / "base.json", run_of(100, 101, 99))
    new_file = write(tmp_path / "new.json", run_of(*new))
    done = CliRunner().invoke(command, [base_file, new_file, "--gate"])
    assert isinstance(done.exception, GateFailed) == fails, done.output
    assert fails or done.exit_code == 0


def test_what_noise_could_explain_passes_only_where_it_was_said_to(tmp_path: Path) -> None:
    base_file = write(tmp_path / "base.json", run_of(100, 130, 70))
    new_file = write(tmp_path / "new.json", run_of(110, 140, 80))
    common = [base_file, new_file, "--gate"]
    assert isinstance(CliRunner().invoke(command, common).exception, GateFailed)
    assert CliRunner().invoke(command, [*common, "--if-cant-tell", "pass"]).exit_code == 0
    worse = write(tmp_path / "worse.json", run_of(120, 121, 119))
    steady = write(tmp_path / "steady.json", run_of(100, 101, 99))
    done = CliRunner().invoke(command, [steady, worse, "--gate", "--if-cant-tell", "pass"])
    assert isinstance(done.exception, GateFailed)


def test_outputs_that_exist_are_refused_and_unknown_names_get_a_suggestion(tmp_path: Path) -> None:
    base_file = write(tmp_path / "base.json", balanced())
    other = write(tmp_path / "one.json", one_rank())
    runner = CliRunner()
    done = runner.invoke(command, [base_file, base_file, "--metric", "stp_ms", "--gate"])
    assert done.exit_code == 2
    assert "did you mean step_ms?" in done.output
    done = runner.invoke(command, [base_file])
    assert done.exit_code == 2
    page = tmp_path / "c.html"
    page.write_text("mine")
    done = runner.invoke(command, [base_file, other, "--format", f"html={page}"])
    assert "exists already" in str(done.exception)
    assert page.read_text() == "mine"
