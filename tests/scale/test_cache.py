"""The cache gives back exactly what was put in, and never more than it may hold."""

import os
from pathlib import Path

from moe_advisor import cache
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CaptureIssue, InputInfo, Severity
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import TraceBuilder


def entry() -> cache.Entry:
    builder = TraceBuilder()
    builder.kernel(0, 10)
    builder.kernel(20, 30)
    measured = measure_rank(builder.build(), builtin())
    return cache.Entry(
        InputInfo("a.json", "kineto", "torch 2.11", (0,)),
        (CaptureIssue("lost", Severity.WARNING, "two rows lost", 2, 0),),
        (measured.partial,),
    )


def test_an_entry_comes_back_as_it_was() -> None:
    before = entry()
    after = cache.decode(cache.encode(before))
    assert after is not None
    assert (after.info, after.issues) == (before.info, before.issues)
    assert cache.encode(after) == cache.encode(before)
    assert summarise(after.partials, {}).metrics == summarise(before.partials, {}).metrics


def test_what_is_damaged_or_cut_is_no_entry(tmp_path: Path) -> None:
    store = cache.Cache(tmp_path)
    key = cache.key_of("a")
    store.put(key, b"some bytes")
    assert store.get(key) == b"some bytes"
    (path,) = tmp_path.rglob("*.moe-cache")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"x", b""):
        path.write_bytes(damaged)
        assert store.get(key) is None
    assert cache.decode(b"some bytes") is None


def test_keys_differ_where_any_part_does() -> None:
    keys = [
        cache.key_of(*parts)
        for parts in ((), ("a",), ("a", "b"), ("ab",), ("a", None), ("a", ""), (None, "a"))
    ]
    assert len(set(keys)) == len(keys)


def test_the_same_bytes_have_the_same_digest_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    (tmp_path / "c").write_bytes(b"y")
    digests = [cache.content_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_the_folder_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = cache.Cache(tmp_path, limit_bytes=3_200)
    keys = [cache.key_of(str(number)) for number in range(4)]
    for age, key in enumerate(keys):
        store.put(key, bytes(1_000))
        (path,) = tmp_path.rglob(f"{key}*")
        os.utime(path, (1_000 + age, 1_000 + age))
    assert store.get(keys[0]) is not None  # used now: the oldest is keys[1]
    store.trim()
    assert [store.get(key) is not None for key in keys] == [True, False, False, True]


def test_a_folder_that_cant_be_written_keeps_nothing_and_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = cache.Cache(tmp_path / "file" / "below")
    store.put(cache.key_of("a"), b"x")
    store.trim()
    assert store.get(cache.key_of("a")) is None
