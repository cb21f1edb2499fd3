"""The validation page is what the pairs, the captures and the step tables give."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moe_advisor.whatif import calibrate
from moe_advisor.whatif.changes.merged import HANDOVERS

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DOCUMENT = yaml.safe_load((BENCHMARKS / "whatif_pairs.yaml").read_text(encoding="utf-8"))
RESULTS = json.loads((BENCHMARKS / "whatif_results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validate() -> dict[str, Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return runpy.run_path(str(BENCHMARKS / "validate_whatif.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tables(validate: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return validate["Captures"]([], tmp_path_factory.mktemp("scratch"))


def tabled() -> list[dict[str, Any]]:
    steps = ROOT / "tests" / "fixtures" / "steps"
    names = {path.name for path in steps.iterdir()}
    return [
        pair
        for pair in DOCUMENT["pairs"]
        if f"{pair['capture'].replace('/', '_')}.step.xz" in names
    ]


@pytest.mark.parametrize("pair", tabled(), ids=lambda pair: f"{pair['capture']} {pair['change']}")
def test_a_step_table_gives_the_published_prediction(
    validate: dict[str, Any], tables: Any, pair: dict[str, Any]
) -> None:
    published = RESULTS["pairs"][f"{pair['capture']} {pair['change']}"]
    predicted = validate["predict"](tables, pair)
    judged = {"rules", "verdict", "next_wall"}
    assert {key: predicted[key] for key in judged - {"rules"}} == {
        key: published[key] for key in judged - {"rules"}
    }
    for key in published.keys() - judged:
        assert predicted[key] == pytest.approx(published[key], abs=2e-4)


def test_every_pair_is_on_the_page_and_most_hit(validate: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")
    rows = RESULTS["pairs"]
    assert set(rows) == {f"{one['capture']} {one['change']}" for one in DOCUMENT["pairs"]}
    assert page.count("| hit |") == sum(row["verdict"] == "hit" for row in rows.values())
    assert page.count("| miss: ") == sum(row["verdict"] != "hit" for row in rows.values())
    for row in RESULTS["replays"].values():
        assert row["error"] <= 0.02
        assert row["unexplained"] <= 0.05


def test_a_prediction_is_judged_by_the_issues_demands(validate: dict[str, Any]) -> None:
    rules = validate["rules"]

    def judged(row: dict[str, float], accepted: list[float] | None) -> str:
        verdict: str = validate["judged"](rules(row, accepted))
        return verdict

    row = {"measured": 0.10, "low": 0.06, "expected": 0.09, "high": 0.13}
    assert judged(row, None) == "hit"
    assert judged({**row, "high": 0.095}, None) == "miss: outside the range"
    assert judged({**row, "measured": -0.05}, None) == (
        "miss: outside the range, wrong sign, expected is too far off"
    )
    assert judged({**row, "high": 0.30}, None) == "miss: range too wide"
    assert judged({**row, "expected": 0.06, "low": 0.05}, [0.05, 0.2]) == "hit"
    # 41 points are too wide, but where more than 40 % was gained.
    wide = {"measured": 0.39, "low": 0.20, "expected": 0.39, "high": 0.61}
    assert judged(wide, None) == "miss: range too wide"
    assert judged({**wide, "measured": 0.42}, None) == "hit"


def test_the_page_says_for_every_row_how_it_stands_to_the_rules(validate: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")
    for pair in DOCUMENT["pairs"]:
        row = RESULTS["pairs"][f"{pair['capture']} {pair['change']}"]
        assert row["rules"] == validate["rules"](row, pair.get("accepted"))
        assert row["verdict"] == validate["judged"](row["rules"])
        error, width = row["rules"]["error"], row["rules"]["width"]
        shown = f"| {validate['_of'](error)} | {validate['_of'](width)} | {row['verdict']} |"
        assert shown in page


def test_a_step_table_gives_back_what_went_into_it(
    validate: dict[str, Any], tmp_path: Path
) -> None:
    step_table = validate["step_table"]
    path = step_table.path_of("torch/balanced_k2")
    first, summary = step_table.load(path)
    step_table.save(first, summary, tmp_path / path.name)
    again, _ = step_table.load(tmp_path / path.name)
    for one, other in zip(first.lanes, again.lanes, strict=True):
        for name, column in vars(one.items).items():
            assert (column == vars(other.items)[name]).all(), name
    assert first.lanes[0].items.start_ns.max() > first.lanes[0].items.start_ns[0]


def test_a_pair_is_judged_by_how_its_runs_were_made(validate: dict[str, Any]) -> None:
    judges, left = validate["judges"], validate["others_of"]
    runs = {"runs": [[100.0, 130.0], [100.0, 110.0]], "unlike": [0]}
    assert judges(runs) == (pytest.approx([-0.10]), "alike")
    assert left(runs) == pytest.approx([-0.30])
    assert judges({**runs, "unlike": [0, 1]}) == (pytest.approx([-0.30, -0.10]), "unlike")
    assert judges({**runs, "beside": [[100.0, 90.0]]}) == (pytest.approx([0.10]), "beside")
    every = {**runs, "beside": [[100.0, 90.0]], "plain": [[100.0, 95.0]]}
    assert judges(every) == (pytest.approx([0.05]), "plain")
    assert sorted(left(every)) == pytest.approx([-0.30, -0.10, 0.10])
    row = {"measured": 0.05, "low": -0.03, "expected": 0.03, "high": 0.05}
    assert validate["judged_by_all"](every, row) == (-0.025, "miss: expected is too far off")


def test_constants_are_what_their_sources_say(validate: dict[str, Any]) -> None:
    sources = yaml.safe_load((BENCHMARKS / "overlap_costs.yaml").read_text(encoding="utf-8"))
    hosts = sources["host_stretch"]
    stretch = np.asarray([one["stretch"] for one in hosts["torch"]])
    assert np.percentile(stretch, (10, 50, 90)) == pytest.approx(
        calibrate.STRETCH_OPERATORS, abs=0.05
    )
    alone = np.asarray([one["stretch"] for one in hosts["nsys"]])
    assert np.percentile(alone, (10, 50, 90)) == pytest.approx(calibrate.STRETCH, abs=0.05)
    share = np.asarray([one["recorded_share"] for one in hosts["torch"]])
    assert np.percentile((1 - 1 / stretch) / share, (10, 50, 90)) == pytest.approx(
        calibrate.RECORDING_COST, abs=0.01
    )
    longer = [one for pair in sources["left_over_wave"] for one in pair["longer"]]
    assert np.percentile(longer, (75, 50, 25)) == pytest.approx(calibrate.LEFT_OVER_WAVE, abs=0.01)
    beside = [one["extra"] for one in sources["wire_beside_compute"]]
    chunked = np.percentile(beside[8:], (75, 50, 25))
    assert chunked == pytest.approx(calibrate.WIRE_BESIDE_COMPUTE, abs=0.01)
    assert np.percentile(beside, (75, 50, 25)) == pytest.approx(
        calibrate.WIRE_BESIDE_STREAMS, abs=0.02
    )
    each = np.asarray([one["each_ms"] for one in sources["handovers"]["used"]]) * 1e6
    assert np.percentile(each, (75, 50, 25)) == pytest.approx(calibrate.HANDOVER_NS, rel=0.05)
    behind = sources["room_from"][0]
    assert (behind["waits"], behind["behind"]) == ("collective", "one block per SM")
    assert tuple(reversed(behind["share"][1:4])) == calibrate.ROOM_FROM
    counted = [one["handovers"] for one in sources["handovers"]["captures"]]
    assert np.median(counted) == 2 * HANDOVERS


def test_recording_told_from_the_trace_beats_one_stretch_where_nothing_was_set() -> None:
    sources = yaml.safe_load((BENCHMARKS / "overlap_costs.yaml").read_text(encoding="utf-8"))
    held_out = sources["host_stretch"]["held_out"]
    stretch = np.log([one["stretch"] for one in held_out])
    share = np.asarray([one["recorded_share"] for one in held_out])
    told = -np.log(1 - calibrate.RECORDING_COST[1] * share)
    assert abs(told - stretch).mean() < abs(np.log(calibrate.STRETCH_OPERATORS[1]) - stretch).mean()
