"""One step of every rank as an annotated trace for Perfetto and chrome://tracing.

The Trace Event Format (JSON): complete events (`X`) with times in us, metadata events (`M`) for the
names and the order of tracks. A viewer colours slices by their name, so a slice is named after its
role and holds the kernel in its arguments; `cname` gives chrome://tracing the report's colours.
Slices of one track must nest: what overlaps another without lying in it gets a track of its own.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_advisor import __version__
from moe_advisor.output import charts
from moe_advisor.output.step_view import gap_cause
from moe_advisor.result import Timeline

COLOURS = {
    "expert": "rail_response",
    "compute": "thread_state_runnable",
    "wire": "thread_state_iowait",
    "comm": "thread_state_uninterruptible",
    "other": "grey",
    "opaque": "generic_work",
    "exposed": "rail_animation",
    "hidden": "thread_state_sleeping",
    "host": "yellow",
    "idle": "white",
}
"""Kind of a slice -> the reserved colour of the trace viewer that is nearest to the report's."""


_FIRST_TRACK = 1_001
"""A track numbered as its process is called the main thread by viewers; no rank is numbered so."""


@dataclass(frozen=True, slots=True)
class RankStep:
    """The step of one rank, and where it starts beside the steps of the other ranks shown."""

    timeline: Timeline
    start_us: float
    aligned: bool
    """False where the rank's clock can't be compared with the first rank's: it starts at 0."""


def render(steps: Sequence[RankStep], *, title: str) -> str:
    """The trace as JSON text, one event a line; `title` names the run."""
    events = [event for step in steps for event in _rank_events(step)]
    head = {
        "displayTimeUnit": "ms",
        "otherData": {
            "tool": f"moe-advisor {__version__}",
            "run": title,
            "content": "one representative step, times from its start",
            "clocks": "aligned"
            if all(step.aligned for step in steps)
            else "ranks marked “own clock” start at 0 and can't be compared in time",
        },
    }
    lines = ",\n".join(json.dumps(event, ensure_ascii=False) for event in events)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "traceEvents": [\n{lines}\n]}}\n'


def _rank_events(step: RankStep) -> Iterator[dict[str, Any]]:
    one = step.timeline
    pid = one.rank + 1  # 0 is the system's in trace viewers
    words = "" if step.aligned else ", own clock"
    yield _named("process_name", pid, 0, f"rank {one.rank}, step {one.step}{words}")
    yield _sorted("process_sort_index", pid, 0, one.rank)
    host = [
        _slice(str(name), "annotation", start, length, {}, None)
        for start, length, name, *_ in one.host
    ]
    line = _Lines(pid, step.start_us)
    yield from line.draw(host, "Host: annotations")
    spans = _Spans(one)
    for lane, name in enumerate(one.lanes):
        yield from line.draw(spans.lane(lane), name)
    for title, pairs, kind in (
        ("Exposed", one.exposed, "exposed"),
        ("Hidden under compute", one.hidden, "hidden"),
    ):
        rows = [
            _slice(f"{kind} {spans.family(a, b)}", kind, a, b - a, {}, COLOURS[kind])
            for a, b in (pair[:2] for pair in pairs)
        ]
        yield from line.draw(rows, title)
    gaps = [
        _slice(
            gap_cause(str(gap[2])),
            "idle gap",
            gap[0],
            gap[1],
            {"cause": str(gap[2])},
            COLOURS["idle" if str(gap[2]).startswith("dependency") else "host"],
        )
        for gap in sorted(one.gaps, key=lambda gap: (gap[0], -gap[1]))
    ]
    yield from line.draw(gaps, "GPU idle, by cause")


class _Spans:
    """The slices of one step, with what of each communication is exposed and hidden."""

    def __init__(self, timeline: Timeline) -> None:
        self._of = timeline
        columns = timeline.slices
        self._rows: dict[int, list[int]] = {}
        for row, lane in enumerate(columns.lane):
            self._rows.setdefault(lane, []).append(row)
        self._comm = sorted(
            (columns.start_us[row], columns.start_us[row] + columns.dur_us[row], role)
            for row, role in enumerate(columns.role)
            if charts.role_kind(timeline.roles[role]) in ("wire", "comm")
        )
        self._starts = [one[0] for one in self._comm]
        self._longest = max((end - start for start, end, _ in self._comm), default=0.0)

    def lane(self, lane: int) -> list[dict[str, Any]]:
        """The slices of one stream."""
        one, columns = self._of, self._of.slices
        found = []
        for row in self._rows.get(lane, []):
            role, start, length = (
                one.roles[columns.role[row]],
                columns.start_us[row],
                columns.dur_us[row],
            )
            kind = charts.role_kind(role)
            args: dict[str, Any] = {"kernel": one.names[columns.name[row]]}
            if kind in ("wire", "comm"):
                args["exposed_us"] = _within(one.exposed, start, start + length)
                args["hidden_us"] = _within(one.hidden, start, start + length)
            found.append(_slice(role, f"{kind},{role}", start, length, args, COLOURS[kind]))
        return found

    def family(self, start: float, end: float) -> str:
        """The roles of the communication that runs from `start` to `end`."""
        at = bisect_left(self._starts, start - self._longest)
        roles: dict[str, None] = {}
        while at < len(self._comm) and self._comm[at][0] < end:
            if self._comm[at][1] > start:
                roles[self._of.roles[self._comm[at][2]]] = None
            at += 1
        return " + ".join(roles) or "communication"


def _within(spans: list[list[float]], start: float, end: float) -> float:
    """How much of [start, end) lies in the sorted, disjoint spans."""
    at = max(bisect_left(spans, [start]) - 1, 0)
    total = 0.0
    while at < len(spans) and spans[at][0] < end:
        total += max(0.0, min(end, spans[at][1]) - max(start, spans[at][0]))
        at += 1
    return round(total, 3)


def _slice(
    name: str, category: str, start: float, length: float, args: dict[str, Any], colour: str | None
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "ph": "X",
        "name": name or "unnamed",
        "cat": category,
        "ts": start,
        "dur": max(length, 0.0),
    }
    if colour:
        event["cname"] = colour
    return event | ({"args": args} if args else {})


@dataclass(frozen=True, slots=True)
class _Track:
    """A track and the ends of the slices that are still open on it, outermost first."""

    tid: int
    ends: list[float] = field(default_factory=list)

    def takes(self, start: float, end: float) -> bool:
        """Whether a slice nests here; slices come in the order of their starts."""
        while self.ends and self.ends[-1] <= start:
            self.ends.pop()
        return not self.ends or end <= self.ends[-1]


class _Lines:
    """The tracks of one process: numbered in the order drawn, each only with slices that nest."""

    def __init__(self, pid: int, zero_us: float) -> None:
        self._pid, self._zero, self._next = pid, zero_us, _FIRST_TRACK

    def draw(self, slices: Iterable[dict[str, Any]], title: str) -> Iterator[dict[str, Any]]:
        """The slices on as few tracks as nest, each track with its name and place."""
        tracks: list[_Track] = []
        for event in sorted(slices, key=lambda one: (one["ts"], -one["dur"])):
            start = round(event["ts"] + self._zero, 3)
            end = round(start + event["dur"], 3)
            track = next((one for one in tracks if one.takes(start, end)), None)
            if track is None:
                track = _Track(self._next)
                tracks.append(track)
                self._next += 1
                also = f" ({len(tracks)}, at the same time)" if len(tracks) > 1 else ""
                yield _named("thread_name", self._pid, track.tid, title + also)
                yield _sorted("thread_sort_index", self._pid, track.tid, track.tid)
            track.ends.append(end)
            length = round(end - start, 3)
            yield event | {"pid": self._pid, "tid": track.tid, "ts": start, "dur": length}


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _sorted(kind: str, pid: int, tid: int, index: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"sort_index": index}}
