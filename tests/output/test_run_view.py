"""What the report says about the run: the step without the profiler, and events that are lost."""

from pathlib import Path

import msgspec

from moe_advisor import analysis
from moe_advisor.output import run_view, tile_view
from moe_advisor.result import Issue
from tests.nsys_builder import two_steps
from tests.output.result_builder import balanced


def test_the_step_time_of_a_log_is_told_beside_the_traced_one(tmp_path: Path) -> None:
    trace = two_steps().write(tmp_path / "a.sqlite")
    log = tmp_path / "train.log"
    log.write_text(
        "".join(
            f" iteration {n:8d}/ 100 | consumed samples: 8 | elapsed time per iteration (ms): "
            "0.0060 | learning rate: 1.0E-04 | global batch size:     8 | lm loss: 1.0E+01 |\n"
            for n in range(1, 9)
        )
    )
    result = analysis.analyze([str(trace)], analysis.Options(log=str(log)))
    bare = run_view.unprofiled_ms(result)
    assert bare == 0.006
    traced = result.metrics["step_ms"].value
    assert traced is not None
    assert run_view.profiler_overhead(result) == (traced - bare) / traced
    (tile,) = (one for one in tile_view.tiles(result) if one.metric == "step_ms")
    assert tile.lines[-1].endswith("without profiler")


def test_lost_events_are_counted_from_the_issues_that_readers_raise() -> None:
    lost = Issue(id="launches-missing", severity="warning", count=7, message="7 have no launch")
    run = balanced()
    result = msgspec.structs.replace(
        run, capture=msgspec.structs.replace(run.capture, issues=[lost])
    )
    assert dict(run_view.capture_rows(result))["Events lost by profiler"] == "7"
