"""The cache gives back exactly what was put in, and never more than it may hold."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moe_advisor import analysis, cache, entries, finished
from moe_advisor.ingest import nsys_report
from moe_advisor.measure.rank import measure_rank
from moe_advisor.measure.summary import summarise
from moe_advisor.model import CaptureIssue, InputInfo, Severity
from moe_advisor.options import Options
from moe_advisor.output import json_output
from moe_advisor.result import Result
from moe_advisor.roles.taxonomy import builtin
from tests.nsys_builder import two_steps
from tests.trace_builder import TraceBuilder

ROOT = Path(__file__).parents[2]


def entry() -> entries.Entry:
    builder = TraceBuilder()
    builder.kernel(0, 10)
    builder.kernel(20, 30)
    measured = measure_rank(builder.build(), builtin())
    return entries.Entry(
        InputInfo("a.json", "kineto", "torch 2.11", (0,)),
        (CaptureIssue("lost", Severity.WARNING, "two rows lost", 2, 0),),
        (measured.partial,),
    )


def test_an_entry_comes_back_as_it_was() -> None:
    before = entry()
    after = entries.decode(entries.encode(before))
    assert after is not None
    assert (after.info, after.issues) == (before.info, before.issues)
    assert entries.encode(after) == entries.encode(before)
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
    assert entries.decode(b"some bytes") is None


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


def test_a_byte_in_any_piece_of_a_large_file_changes_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PIECE_BYTES", 100)
    monkeypatch.setattr(cache, "_READ_BYTES", 30)
    content = bytes(range(250))
    path = tmp_path / "large"
    digests = []
    for place in (None, 0, 99, 100, 249):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        digests.append(cache.content_digest(path))
    path.write_bytes(content[:200])  # ends with a piece
    digests.append(cache.content_digest(path))
    assert len(set(digests)) == len(digests)
    (tmp_path / "copy").write_bytes(content)
    assert cache.content_digest(tmp_path / "copy") == digests[0]


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


def test_exports_have_a_limit_of_their_own_and_what_was_left_half_written_goes(
    tmp_path: Path,
) -> None:
    store = cache.Cache(tmp_path, exports_bytes=2_000)
    store.put(cache.key_of("a"), bytes(5_000))
    begin, end = nsys_report.CACHED
    for age in range(3):
        export = tmp_path / f"{begin}{age}{end}"
        export.write_bytes(bytes(1_000))
        os.utime(export, (1_000 + age, 1_000 + age))
    (entry_path,) = tmp_path.rglob("*.moe-cache")
    for part in (entry_path.with_name(".new-old"), entry_path.with_name(".new-now")):
        part.write_bytes(b"x")
    os.utime(entry_path.with_name(".new-old"), (1_000, 1_000))
    for name in ("old", "now"):
        (tmp_path / f"{nsys_report.TEMPORARY}{name}").mkdir()
    os.utime(tmp_path / f"{nsys_report.TEMPORARY}old", (1_000, 1_000))
    store.trim()
    left = {str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one != entry_path}
    shelf = entry_path.parent.name
    assert left == {
        shelf, f"{begin}2{end}", f"{shelf}/.new-now", f"{nsys_report.TEMPORARY}now",
    }  # fmt: skip
    assert store.get(cache.key_of("a")) == bytes(5_000)


def test_programs_that_share_a_folder_see_whole_entries_or_none(tmp_path: Path) -> None:
    bodies = {cache.key_of(str(number)): bytes([number]) * 2_000 for number in range(6)}

    def use(_: int) -> bool:
        store = cache.Cache(tmp_path, limit_bytes=6_000)  # three entries: others are thrown out
        good = True
        for _round in range(20):
            for key, body in bodies.items():
                store.put(key, body)
                good &= store.get(key) in (None, body)
                store.trim()
        return good

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(4)))
    cache.Cache(tmp_path, limit_bytes=6_000).trim()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.moe-cache")) <= 6_000
    assert not list(tmp_path.rglob(".new-*"))


@pytest.mark.parametrize("kind", ["kineto", "nsys"])
def test_a_second_analysis_does_without_the_table_libraries(tmp_path: Path, kind: str) -> None:
    trace = str(next((ROOT / "moe_advisor" / "demo").glob("*.json.gz")))
    if kind == "nsys":
        trace = str(two_steps().write(tmp_path / "export.sqlite"))
    first = analysis.analyze([trace], analysis.Options(cache=str(tmp_path / "kept")))
    command = ["analyze", trace, "--cache", str(tmp_path / "kept"), "-o", str(tmp_path / "out")]
    code = (
        "import sys\nfrom moe_advisor.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as done:\n    assert not done.code\n"
        "assert not {'polars', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    (kept,) = (tmp_path / "out").glob("*.json")
    assert json_output.decode(kept.read_bytes()) == first


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are noted of any file, however short ago it was written."""
    if os.name != "posix":
        pytest.skip("no time of change")
    monkeypatch.setattr(cache, "_NOTED_FROM_BYTES", 0)
    monkeypatch.setattr(cache, "_SETTLED_S", -3_600.0)


@pytest.mark.usefixtures("noting")
def test_a_file_that_nobody_touched_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "trace", cache.Cache(tmp_path / "kept")
    path.write_bytes(b"first")
    noted = store.digest(path)
    assert noted == cache.content_digest(path)
    monkeypatch.delattr(cache, "content_digest")
    assert store.digest(path) == noted


@pytest.mark.usefixtures("noting")
def test_other_bytes_of_the_same_size_and_time_have_their_own_digest(tmp_path: Path) -> None:
    path, store = tmp_path / "trace", cache.Cache(tmp_path / "kept")
    path.write_bytes(b"first")
    noted, before = store.digest(path), path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the steps of the file system's clock
        path.write_bytes(b"other")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert store.digest(path) == cache.content_digest(path) != noted


@pytest.mark.usefixtures("noting")
def test_a_file_written_just_now_is_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SETTLED_S", 3_600.0)
    path, store = tmp_path / "trace", cache.Cache(tmp_path / "kept")
    path.write_bytes(b"first")
    assert store.digest(path) == cache.content_digest(path)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_written_to_while_it_is_read_is_not_kept(tmp_path: Path, kept: bool) -> None:
    trace = tmp_path / "trace.json"
    trace.write_bytes(b"{}")
    result = analysis.analyze([str(next((ROOT / "moe_advisor" / "demo").glob("*.json.gz")))])
    made = 0

    def make() -> Result:
        nonlocal made
        made += 1
        if not kept:
            trace.write_bytes(trace.read_bytes() + b" ")
        return result

    options = Options(cache=str(tmp_path / "kept"))
    for _ in range(2):
        assert finished.kept_or([str(trace)], options, make) == result
        trace.write_bytes(b"{}")
    assert made == (1 if kept else 2)


def test_rows_in_the_log_of_a_database_count(tmp_path: Path) -> None:
    trace = tmp_path / "export.sqlite"
    trace.write_bytes(b"rows")
    result = analysis.analyze([str(next((ROOT / "moe_advisor" / "demo").glob("*.json.gz")))])
    options, made = Options(cache=str(tmp_path / "kept")), 0

    def make() -> Result:
        nonlocal made
        made += 1
        return result

    for log in (b"one", b"two", b"one"):
        (tmp_path / "export.sqlite-wal").write_bytes(log)
        finished.kept_or([str(trace)], options, make)
    assert made == 2
