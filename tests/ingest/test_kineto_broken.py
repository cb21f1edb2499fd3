"""Broken traces: each is read as far as it goes, with the damage named, or refused in one line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_advisor.errors import InputError
from moe_advisor.ingest import kineto
from moe_advisor.model import LoadedInput
from tests.kineto_builder import (
    LAUNCHED,
    METADATA,
    call,
    event_text,
    kernel,
    operator,
    trace,
    write,
)

THREE = (*LAUNCHED, kernel("second_kernel", 60, 5, 1), kernel("third_kernel", 70, 5, 1))
WHOLE = trace(*THREE)
COMPACT = json.dumps({**METADATA, "traceEvents": list(THREE)}, separators=(",", ":")).encode()
LIST = json.dumps(list(THREE)).encode()
PACKED = gzip.compress(trace(*(kernel(f"k{n}", n, 0.5) for n in range(3000))), 6)
FIRST = event_text(LAUNCHED[1]).encode()


def changed(old: str, new: str | bytes, count: int = 1) -> bytes:
    raw = new if isinstance(new, bytes) else new.encode()
    assert old.encode() in WHOLE
    return WHOLE.replace(old.encode(), raw, count)


def with_text(text: str) -> bytes:
    """The trace with one more event, given as text."""
    return WHOLE.replace(b'"traceEvents": [', b'"traceEvents": [' + text.encode() + b",", 1)


def raw_kernel(name: str) -> str:
    """A kernel event in torch's layout with `name` as it stands, unescaped."""
    return event_text(kernel("NAME", 80, 5, 1)).replace("NAME", name)


# name -> content, number of GPU rows that must be read, issues that must be told
READABLE: dict[str, tuple[bytes, int, set[str]]] = {
    "cut in the last event": (WHOLE[: WHOLE.rindex(b'"ts"')], 2, {"truncated-input"}),
    "cut after an event": (WHOLE[: WHOLE.rindex(b"]", 0, -20)], 3, {"truncated-input"}),
    "cut after a comma": (WHOLE[: WHOLE.rindex(b",\n  {") + 1], 2, {"truncated-input"}),
    "cut inside a name": (WHOLE[: WHOLE.rindex(b"third_k") + 4], 2, {"truncated-input"}),
    "cut inside a number": (WHOLE[: WHOLE.rindex(b"70.000") + 2], 2, {"truncated-input"}),
    "cut inside the metadata after": (WHOLE[:-9], 3, {"truncated-input"}),
    "cut before the first event": (
        WHOLE[: WHOLE.index(b'"traceEvents": [') + 16], 0, {"truncated-input", "no-gpu-activity"},
    ),
    "compact, cut": (COMPACT[:-30], 2, {"truncated-input"}),
    "list without its end": (LIST[:-1], 3, {"truncated-input"}),
    "gzip without its last byte": (gzip.compress(WHOLE)[:-1], 3, {"truncated-input"}),
    "gzip without its checksum": (gzip.compress(WHOLE)[:-8], 3, {"truncated-input"}),
    "gzip with a wrong checksum": (
        gzip.compress(WHOLE)[:-8] + b"\0\0\0\0" + gzip.compress(WHOLE)[-4:], 3,
        {"truncated-input"},
    ),
    "gzip in two members": (gzip.compress(WHOLE[:700]) + gzip.compress(WHOLE[700:]), 3, set()),
    "gzip padded with zeros": (gzip.compress(WHOLE) + b"\0" * 512, 3, set()),
    "trailing comma after the last event": (
        WHOLE.replace(b"\n  ],\n", b",\n  ],\n"), 3, set(),
    ),
    "trailing comma in compact form": (COMPACT[:-2] + b",]}", 3, set()),
    "two commas between events": (WHOLE.replace(b"},\n  {\n    \"ph\"", b"},,\n  {\n    \"ph\""), 3, set()),
    "trailing comma in the arguments": (changed('"block": [128, 1, 1]', '"block": [128, 1, 1],'), 3, set()),
    "inf as bandwidth": (changed('"queued": 0', '"queued": inf'), 3, set()),
    "nan as occupancy": (changed('"queued": 0', '"queued": nan'), 3, set()),
    "-nan as occupancy": (changed('"queued": 0', '"queued": -nan'), 3, set()),
    "Infinity in every event": (WHOLE.replace(b'"queued": 0', b'"queued": -Infinity'), 3, set()),
    "nan in a list": (changed("[128, 1, 1]", "[nan, nan, 1]"), 3, set()),
    "nan as time": (changed('"ts": 70.000', '"ts": nan'), 2, {"impossible-times"}),
    "inf as duration": (changed('"dur": 30.500', '"dur": inf'), 2, {"events-without-duration"}),
    "overflowing exponent": (changed('"ts": 70.000', '"ts": 1e999'), 2, {"impossible-times"}),
    "quote in a name": (with_text(raw_kernel('say "hi" now')), 4, {"repaired-events"}),
    "JSON in a name": (
        with_text(raw_kernel('{"device": "cpu", "x": [1, 2]}(12): run')), 4, {"repaired-events"},
    ),
    "single quote mark in a name": (with_text(raw_kernel('a " b')), 4, {"repaired-events"}),
    "backslash in a name": (with_text(raw_kernel(r"C:\path\x")), 4, {"repaired-events"}),
    "quote in an argument": (
        changed('"External id": 1, "queued"', '"note": "a "b" c",\n"queued"'), 3, {"repaired-events"},
    ),
    "broken arguments": (
        changed('"queued": 0', '"queued": {{{'), 3, {"repaired-events", "gpu-work-without-launch"},
    ),
    "an event of garbage": (with_text("\n  { what is this }"), 3, {"unreadable-events"}),
    "numbers between events": (with_text("17, 18"), 3, {"unreadable-events"}),
    "null between events": (with_text("null"), 3, {"unreadable-events"}),
    "a text between events": (with_text('"text"'), 3, {"unreadable-events"}),
    "an empty event": (with_text("{}"), 3, set()),
    "control characters in a name": (with_text(raw_kernel("a\x01\tb")), 4, {"repaired-events"}),
    "line break in a name": (with_text(raw_kernel("a\nb")), 4, {"repaired-events"}),
    "Latin-1 in a name": (changed("third_kernel", "na\xefve".encode("latin-1")), 3, {"repaired-events"}),
    "a lone surrogate in a name": (changed("third_kernel", r"x\ud800y"), 3, {"repaired-events"}),
    "UTF-8 with a byte order mark": (b"\xef\xbb\xbf" + WHOLE, 3, set()),
    "UTF-16": (WHOLE.decode().encode("utf-16"), 3, set()),
    "UTF-16 without a mark": (WHOLE.decode().encode("utf-16-le"), 3, set()),
    "UTF-32": (WHOLE.decode().encode("utf-32"), 3, set()),
    "Windows line ends": (WHOLE.replace(b"\n", b"\r\n"), 3, set()),
    "a name of 3 MB": (changed("third_kernel", "n" * (3 << 20)), 3, set()),
    "name missing": (changed('"name": "third_kernel"', '"id": 3'), 3, set()),
    "name is a number": (changed('"third_kernel"', "12"), 3, set()),
    "category is a number": (changed('"cat": "kernel", "name": "third', '"cat": 3, "name": "third'), 2, set()),
    "category is null": (changed('"cat": "kernel", "name": "third', '"cat": null, "name": "third'), 2, set()),
    "arguments are null": (WHOLE[: WHOLE.rindex(b'"args"')] + b'"args": null } ] }', 3,
                           {"gpu-work-without-launch"}),
    "arguments are a list": (WHOLE[: WHOLE.rindex(b'"args"')] + b'"args": [1] } ] }', 3,
                             {"gpu-work-without-launch"}),
    "arguments are missing": (WHOLE[: WHOLE.rindex(b',\n    "args"')] + b" } ] }", 3,
                              {"gpu-work-without-launch"}),
    "arguments twice": (changed('"args": {', '"args": {}, "args": {'), 3, set()),
    "times as text": (changed('"ts": 70.000, "dur": 5.000', '"ts": "70.5", "dur": "5"'), 3, set()),
    "time is a word": (changed('"ts": 70.000', '"ts": "noon"'), 2, {"impossible-times"}),
    "time is missing": (changed('"ts": 70.000, ', ""), 2, {"impossible-times"}),
    "time is null": (changed('"ts": 70.000', '"ts": null'), 2, {"impossible-times"}),
    "time beyond 64 bits": (changed('"ts": 70.000', '"ts": 99999999999999999999'), 2, {"impossible-times"}),
    "duration is missing": (changed(', "dur": 30.500', ""), 2, {"events-without-duration"}),
    "duration is negative": (changed('"dur": 30.500', '"dur": -30.5'), 2, {"negative-durations"}),
    "duration of a century": (changed('"dur": 30.500', '"dur": 3e15'), 2, {"clock-jump"}),
    "duration is true": (changed('"dur": 30.500', '"dur": true'), 2, {"events-without-duration"}),
    "numbers as text": (
        changed('"stream": 7, "correlation": 1', '"stream": "7", "correlation": "1"', 9), 3, set(),
    ),
    "correlation beyond 64 bits": (
        changed('"correlation": 1, "grid"', '"correlation": 123456789012345678901234567890, "grid"'), 3,
        {"gpu-work-without-launch"},
    ),
    "correlation is a fraction": (changed('"correlation": 1, "grid"', '"correlation": 1.0, "grid"'), 3, set()),
    "correlation is a list": (
        changed('"correlation": 1, "grid"', '"correlation": [1], "grid"'), 3, {"gpu-work-without-launch"},
    ),
    "correlation is negative": (
        changed('"correlation": 1, "grid"', '"correlation": -7, "grid"'), 3, {"gpu-work-without-launch"},
    ),
    "grid is a text": (changed('"grid": [4, 2, 1]', '"grid": "[4, 2, 1]"'), 3, set()),
    "grid is negative": (changed('"grid": [4, 2, 1]', '"grid": [-4, 2, 1]'), 3, set()),
    "grid beyond 64 bits": (changed('"grid": [4, 2, 1]', '"grid": [9999999999, 9999999999, 9999]'), 3, set()),
    "pid is a float": (changed('"pid": 0', '"pid": 0.0'), 3, set()),
    "pid is null": (changed('"pid": 0', '"pid": null'), 3, set()),
    "pid beyond 64 bits": (changed('"pid": 0', '"pid": 99999999999999999999999'), 3, set()),
    "tid is a list": (changed('"tid": 7', '"tid": [7]'), 3, set()),
    "tid is negative": (changed('"tid": 101', '"tid": -101'), 3, set()),
    "rank is a text": (changed('"rank": 1', '"rank": "1"'), 3, set()),
    "groups are a text": (changed('"pg_config": [', '"pg_config": "no", "x": ['), 3, set()),
    "distributedInfo is a list": (trace(*THREE, distributedInfo=[1]), 3, set()),
    "distributedInfo twice": (
        changed('"displayTimeUnit"', '"distributedInfo": {}, "displayTimeUnit"'), 3, set(),
    ),
    "devices are no list": (trace(*THREE, deviceProperties={"id": 0}), 3, set()),
    "devices are numbers": (trace(*THREE, deviceProperties=[1, None]), 3, set()),
    "base time is a word": (trace(*THREE, baseTimeNanoseconds="soon"), 3, set()),
    "the key of the events in a metadata text": (trace(*THREE, note='"traceEvents": ['), 3, set()),
    "events in the metadata first": (trace(*THREE, note={"traceEvents": [1, 2]}), 3, set()),
    "a second list of events": (WHOLE[:-2] + b', "traceEvents": [{"ph": "X"}] }', 3, set()),
    "more text after the trace": (WHOLE + b" and so on", 3, {"truncated-input"}),
    "no comma between events": (WHOLE.replace(b"},\n  {\n    \"ph\"", b"}\n  {\n    \"ph\""), 3, set()),
    "objects in the arguments that look like events": (
        changed('"queued": 0', '"queued": [{"ph": "X"}, {"ph": "Y"}, {"name": "z"}]'), 3, set(),
    ),
    "deeply nested arguments": (changed('"queued": 0', '"queued": ' + "[" * 500 + "]" * 500), 3, set()),
    "nested beyond any stack": (
        changed('"queued": 0', '"queued": ' + "[" * 100_000 + "]" * 100_000), 3,
        {"repaired-events", "gpu-work-without-launch"},
    ),
    "only metadata events": (b'[{"ph":"M","name":"process_name","ts":1,"cat":"x"}]', 0, {"no-gpu-activity"}),
    "no events": (trace(), 0, {"no-gpu-activity"}),
}  # fmt: skip

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no list of trace events"),
    "blank": (b" \n\t ", "no list of trace events"),
    "a number": (b"42", "no list of trace events"),
    "a text": (b'"traceEvents"', "no list of trace events"),
    "other JSON": (b'{"a": 1}', "no list of trace events"),
    "events that are no list": (b'{"traceEvents": 7}', "no list of trace events"),
    "an empty list": (b"[]", "holds no profiler events"),
    "a list of numbers": (b"[1, 2, 3]", "holds no profiler events"),
    "binary": (bytes(range(256)) * 40, "no list of trace events"),
    "gzip of nothing": (gzip.compress(b""), "no list of trace events"),
    "gzip of text": (gzip.compress(b"hello"), "no list of trace events"),
    "a gzip header alone": (gzip.compress(WHOLE)[:10], "no list of trace events"),
    "gzip that is none": (b"\x1f\x8b" + b"nonsense" * 9, "no list of trace events"),
    "cut in the metadata before": (WHOLE[:200], "no list of trace events"),
}


def load(tmp_path: Path, content: bytes) -> LoadedInput:
    return kineto.load(write(tmp_path, content, "broken.json"))


def issue_ids(loaded: LoadedInput) -> set[str]:
    return {i.id for i in loaded.issues} | {i.id for rank in loaded.ranks for i in rank.issues}


@pytest.mark.parametrize("case", READABLE)
def test_damage_costs_no_more_than_what_is_damaged(case: str, tmp_path: Path) -> None:
    content, rows, issues = READABLE[case]
    loaded = load(tmp_path, content)
    (rank,) = loaded.ranks
    assert rank.activities.height == rows
    tolerated = {"repaired-events"}  # whether a repair was needed is not the point everywhere
    assert issue_ids(loaded) - tolerated == issues - tolerated
    assert issues <= issue_ids(loaded)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_trace_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith("broken.json: ")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^gone.json: can't be read: No such file"):
        kineto.load(tmp_path / "gone.json")


@pytest.mark.parametrize("case", ["quote in a name", "JSON in a name", "Latin-1 in a name"])
def test_a_repaired_event_keeps_its_name_and_its_link(case: str, tmp_path: Path) -> None:
    rank = load(tmp_path, READABLE[case][0]).ranks[0]
    last = rank.activities.row(-1, named=True)
    expected = {
        "quote in a name": 'say "hi" now',
        "JSON in a name": '{"device": "cpu", "x": [1, 2]}(12): run',
        "Latin-1 in a name": "na�ve",
    }
    assert rank.names[last["name"]] == expected[case]
    assert last["call"] == 0


def test_metadata_survives_a_second_empty_copy(tmp_path: Path) -> None:
    rank = load(tmp_path, READABLE["distributedInfo twice"][0]).ranks[0]
    assert (rank.rank, rank.rank_source) == (1, "metadata")


@pytest.mark.parametrize("case", ["UTF-16", "UTF-32", "UTF-8 with a byte order mark"])
def test_every_unicode_encoding_gives_the_same_rows(case: str, tmp_path: Path) -> None:
    plain = load(tmp_path, WHOLE).ranks[0]
    assert load(tmp_path, READABLE[case][0]).ranks[0].activities.equals(plain.activities)


def test_a_damaged_event_in_each_of_many_costs_linear_time_and_nothing_else(
    tmp_path: Path,
) -> None:
    """Every operator's name has loose quotes: each block goes through the rescue."""
    events = []
    for n in range(3000):
        events.append(event_text(operator("NAME", n, 0.5)).replace("NAME", f'f"{n}"'))
        events.append(event_text(kernel("k", n, 0.5)))
    content = ('{"traceEvents": [' + ",".join(events) + "]}").encode()
    loaded = load(tmp_path, content)
    assert loaded.ranks[0].ranges.height == 3000
    assert loaded.ranks[0].activities.height == 3000
    assert [(i.id, i.count) for i in loaded.issues] == [("repaired-events", 3000)]


@pytest.mark.parametrize("form", [WHOLE, COMPACT, LIST], ids=["torch", "compact", "list"])
def test_a_trace_cut_anywhere_is_read_or_refused(form: bytes, tmp_path: Path) -> None:
    read = 0
    for end in range(0, len(form), 7):
        try:
            loaded = load(tmp_path, form[:end])
        except InputError:
            continue
        read += 1
        assert "truncated-input" in issue_ids(loaded)
        assert loaded.ranks[0].activities.height <= 3
    assert read > 10


def test_a_gzip_cut_anywhere_gives_a_beginning_of_the_rows(tmp_path: Path) -> None:
    whole = load(tmp_path, PACKED).ranks[0].activities
    heights = []
    for end in range(200, len(PACKED), len(PACKED) // 40):
        try:
            rows = load(tmp_path, PACKED[:end]).ranks[0].activities
        except InputError:
            continue
        assert rows["start_ns"].equals(whole["start_ns"].head(rows.height))
        heights.append(rows.height)
    assert heights == sorted(heights)
    assert heights[-1] > 2800


MUTATIONS: tuple[Callable[[bytes, int, int], bytes], ...] = (
    lambda text, at, value: text[:at] + bytes([value]) + text[at + 1 :],
    lambda text, at, value: text[:at] + bytes([value]) + text[at:],
    lambda text, at, value: text[:at] + text[at + value :],
    lambda text, at, value: text[:at] + text[max(0, at - value) :],
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(MUTATIONS), st.integers(0, len(WHOLE)), st.integers(0, 255)),
        min_size=1,
        max_size=6,
    )
)
def test_any_damage_ends_with_rows_or_one_line(tmp_path: Path, changes: list[Any]) -> None:
    content = WHOLE
    for change, at, value in changes:
        content = change(content, at, value)
    try:
        outcome = str(len(load(tmp_path, content).ranks))
    except InputError as error:
        outcome = str(error)
    assert outcome == "1" or outcome.startswith("broken.json: ")
    assert "\n" not in outcome


def test_launches_after_a_repair_are_still_joined(tmp_path: Path) -> None:
    bad = event_text(operator("NAME", 1, 0.5)).replace("NAME", 'x "y" z')
    good = [event_text(call(2, 1, 8)), event_text(kernel("k", 9, 1, 8))]
    rank = load(tmp_path, ('{"traceEvents": [' + ",".join([bad, *good]) + "]}").encode()).ranks[0]
    assert rank.activities["call"].to_list() == [0]
