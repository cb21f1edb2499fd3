"""The annotated trace follows the Trace Event Format: what a viewer needs to draw it."""

import json
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from moe_advisor.output import perfetto
from moe_advisor.output.perfetto import RankStep
from moe_advisor.result import Timeline, TimelineSlices
from tests.output.result_builder import timeline


@dataclass
class Trace:
    document: dict[str, Any]

    @property
    def slices(self) -> list[dict[str, Any]]:
        return [event for event in self.document["traceEvents"] if event["ph"] == "X"]

    @property
    def tracks(self) -> dict[tuple[int, int], str]:
        return {
            (event["pid"], event["tid"]): event["args"]["name"]
            for event in self.document["traceEvents"]
            if event["ph"] == "M" and event["name"] == "thread_name"
        }

    def of(self, title: str) -> list[dict[str, Any]]:
        return [one for one in self.slices if self.tracks[one["pid"], one["tid"]] == title]


def trace(*steps: RankStep) -> Trace:
    return Trace(json.loads(perfetto.render(steps, title="run")))


def one(drawn: Timeline | None = None) -> Trace:
    return trace(RankStep(drawn or timeline(), 0.0, aligned=True))


def assert_loadable(found: Trace) -> None:
    """The rules of the format: known phases, numbers, named tracks, slices that nest."""
    for event in found.document["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert event["name"]
    open_ends: dict[tuple[int, int], list[float]] = {}
    for event in sorted(found.slices, key=lambda e: (e["ts"], -e["dur"])):
        assert event["dur"] >= 0
        place = event["pid"], event["tid"]
        assert place in found.tracks
        ends = open_ends.setdefault(place, [])
        while ends and ends[-1] <= event["ts"] + 1e-6:
            ends.pop()
        assert not ends or event["ts"] + event["dur"] <= ends[-1] + 1e-6
        ends.append(event["ts"] + event["dur"])


def test_roles_exposed_hidden_and_gaps_have_their_own_tracks() -> None:
    found = one()
    assert_loadable(found)
    assert set(found.tracks.values()) == {
        "Host: annotations",
        "stream 7",
        "stream 29",
        "Exposed",
        "Hidden under compute",
        "GPU idle, by cause",
    }
    assert {row["name"] for row in found.of("stream 7")} == {"expert_gemm", "permute"}
    assert {row["name"] for row in found.of("Exposed")} == {"exposed ep_dispatch"}
    causes = {row["args"]["cause"] for row in found.of("GPU idle, by cause")}
    assert causes == {"host_gap_launch", "dependency_idle"}


def test_a_role_has_one_colour_and_its_kernel_in_the_arguments() -> None:
    first = one().of("stream 29")[0]
    assert first["cname"] == "thread_state_iowait"
    assert first["args"]["kernel"] == "ncclDevKernel_SendRecv"
    block = 332.66 * 1000 / 12
    assert abs(first["args"]["exposed_us"] - 0.2 * block) < 1
    assert abs(first["args"]["hidden_us"] - 0.1 * block) < 1


def test_slices_that_overlap_get_a_second_line() -> None:
    drawn = replace(
        timeline(),
        slices=TimelineSlices(
            lane=[0, 0, 0],
            start_us=[0.0, 5.0, 20.0],
            dur_us=[10.0, 10.0, 1.0],
            name=[0, 1, 1],
            role=[0, 1, 1],
        ),
    )
    found = one(drawn)
    assert_loadable(found)
    assert len(found.of("stream 7")) == 2
    assert [row["ts"] for row in found.of("stream 7 (2, at the same time)")] == [5.0]


def test_ranks_are_processes_placed_in_time_where_clocks_allow() -> None:
    other = replace(timeline(), rank=3)
    found = trace(RankStep(timeline(), 0.0, True), RankStep(other, 25.5, True))
    assert_loadable(found)
    firsts = {pid: min(s["ts"] for s in found.slices if s["pid"] == pid) for pid in (1, 4)}
    assert firsts[4] - firsts[1] == 25.5
    assert found.document["otherData"]["clocks"] == "aligned"
    apart = trace(RankStep(timeline(), 0.0, True), RankStep(other, 0.0, False))
    names = [
        e["args"]["name"] for e in apart.document["traceEvents"] if e["name"] == "process_name"
    ]
    assert names == ["rank 0, step 2", "rank 3, step 2, own clock"]


def test_hostile_names_stay_strings() -> None:
    drawn = replace(timeline(), names=['"},{"ph":"X"', "</script>", ""], step="]}")
    found = one(drawn)
    assert_loadable(found)
    assert {s["args"]["kernel"] for s in found.of("stream 29")} == {""}


def test_a_run_without_a_step_is_an_empty_trace() -> None:
    assert trace().document["traceEvents"] == []
