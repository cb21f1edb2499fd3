"""The Python API on real captures: typed values, frames, the same bytes as the command line."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import moe_advisor as ma
from moe_advisor import analysis, exports
from moe_advisor.measure.activity_table import ACTIVITY_TABLE

Traces = Callable[[str], list[Path]]


@pytest.fixture(scope="module")
def result(real_trace: Traces) -> ma.Analysis:
    return ma.analyze(real_trace("torch/shm_balanced"))


def test_metrics_have_value_unit_and_status(result: ma.Analysis) -> None:
    metric = result.metrics["ep_a2a_exposed_ms"]
    assert isinstance(metric, ma.MetricValue)
    assert metric.value == pytest.approx(183.4, abs=0.1)
    assert (metric.unit, metric.status) == ("ms/step", "measured")
    with pytest.raises(KeyError, match="did you mean 'ep_a2a_exposed_ms'"):
        result.metrics["ep_a2a_exposd_ms"]


def test_activities_add_up_to_the_roles(result: ma.Analysis) -> None:
    table = result.activities
    assert dict(table.schema) == ACTIVITY_TABLE
    inside = table.filter(pl.col("step").is_not_null())
    ranks_steps = inside.select("rank", "step").unique().height
    assert ranks_steps == 6
    mean = inside.filter(pl.col("role") == "expert_gemm")["duration_ns"].sum() / ranks_steps / 1e6
    role = next(one for one in result.data.roles if one.role == "expert_gemm")
    assert mean == pytest.approx(role.ms, rel=1e-6)


def test_the_parts_of_every_step_add_up(result: ma.Analysis) -> None:
    totals = result.parts.group_by("rank", "step").agg(pl.col("ms").sum())
    bars = [*result.data.parts_by_rank, *result.data.parts_by_step]
    assert len(totals) == len(bars)
    for bar in bars:
        row = totals.filter(
            (pl.col("rank") == bar.rank) & pl.col("step").eq_missing(pl.lit(bar.step))
        )
        assert row["ms"][0] == pytest.approx(bar.step_ms, abs=1e-3)


def test_plan_findings_and_frames(result: ma.Analysis) -> None:
    assert result.verdict == "communication"
    assert result.findings[0].rule in {one.id for one in result.data.rules}
    assert result.plan[0].rules
    assert "step_ms" in result.metrics.frame["name"].to_list()
    assert result.per_step.filter(pl.col("metric") == "step_ms").height == 6
    assert result.roles["ms"].sum() > 0


def test_renderings_are_the_command_lines(
    result: ma.Analysis, real_trace: Traces, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "moe_advisor", "analyze", "-q", "-o", str(tmp_path)]
    traces = [str(path) for path in real_trace("torch/shm_balanced")]
    subprocess.run([*command, *traces], check=True)
    assert (tmp_path / "result.json").read_text() == result.to_json()
    assert (tmp_path / "report.html").read_text() == result.to_html()
    again = ma.load(tmp_path / "result.json")
    assert again.to_markdown() == result.to_markdown()
    assert again.to_text() == result.to_text()
    with pytest.raises(ma.InputError, match="analyze the trace"):
        _ = again.activities


def test_a_notebook_shows_verdict_walls_and_plan_as_inert_html(result: ma.Analysis) -> None:
    shown = result._repr_html_()
    assert result.walls.headline in shown
    assert result.findings[0].title in shown
    assert "Communication" in shown
    assert "<script" not in shown
    assert "<style" not in shown
    assert "step_ms" in result.metrics._repr_html_()


def test_the_annotated_trace_holds_both_ranks(result: ma.Analysis) -> None:
    events = json.loads(result.to_perfetto())["traceEvents"]
    assert {event["pid"] for event in events} == {1, 2}
    roles = {event["name"] for event in events if event.get("cat", "").startswith("wire")}
    assert roles == {"ep_dispatch", "ep_combine", "ep_notify"}


def test_tables_survive_parquet_and_csv(result: ma.Analysis) -> None:
    parquet, csv = io.BytesIO(), io.BytesIO()
    exports.write_parquet(iter([result.activities[:50], result.activities[50:90]]), parquet)
    exports.write_csv(iter([result.activities[:50], result.activities[50:90]]), csv)
    assert pl.read_parquet(parquet.getvalue()).equals(result.activities[:90])
    back = pl.read_csv(csv.getvalue(), schema=ACTIVITY_TABLE)
    assert back.equals(result.activities[:90])


def test_of_many_inputs_every_rank_comes_once(
    real_trace: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "MODEL_RANKS", 1)
    monkeypatch.setattr(analysis, "PARALLEL_INPUTS", 2)
    found = ma.analyze(real_trace("torch/skew"), jobs=1)
    assert found.activities["rank"].unique().sort().to_list() == [0, 1]
    monkeypatch.undo()
    assert found.activities.equals(ma.analyze(real_trace("torch/skew")).activities)


def test_arguments_are_those_of_the_command_line(real_trace: Traces) -> None:
    found = ma.analyze(
        real_trace("torch/gcsync"),
        values={"micro_batch_size": 4, "overlap_moe_expert_parallel_comm": True},
        steps="0:1",
    )
    assert found.data.steps.count == 1
    assert found.data.run.config["micro_batch_size"].value == 4
    assert found.data.run.config["overlap_moe_expert_parallel_comm"].value is True
    with pytest.raises(ma.ConfigError, match="unknown key"):
        ma.analyze(real_trace("torch/gcsync"), values={"micro_batch_sise": 4})
    with pytest.raises(ma.InputError, match="no such file"):
        ma.analyze("missing.sqlite")
    with pytest.raises(ma.InputError, match="no input"):
        ma.analyze()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, moe_advisor; moe_advisor.__version__; dir(moe_advisor);"
        "print([m for m in ('polars', 'numpy', 'jinja2', 'cel', 'rich', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert all(hasattr(ma, name) for name in ma.__all__)
    with pytest.raises(AttributeError, match="analyse"):
        ma.analyse  # noqa: B018
