"""Outputs are refused before work, written whole, and never over an input."""

import os
from pathlib import Path
from typing import IO

import pytest

from moe_advisor.errors import OutputError
from moe_advisor.output import writer
from moe_advisor.output.writer import Output, plan, refuse, stem, write


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base.sqlite", "base"),
        ("rank0.json.gz", "rank0"),
        ("run.nsys-rep", "run"),
        ("shm.rank0.json", "shm.rank0"),
        ("base.moe.json", "base"),
        ("report.2.sqlite", "report.2"),
        (".json", ".json"),
        ("traces", "traces"),
    ],
)
def test_stem_drops_the_endings_of_traces(name: str, expected: str) -> None:
    assert stem(name) == expected


BOTH: list[tuple[str, Path | None]] = [("html", None), ("json", None)]


def test_one_input_names_its_outputs() -> None:
    outputs = plan(BOTH, [Path("/traces/base.sqlite")], None)
    assert [str(one.path) for one in outputs] == ["base.moe.html", "base.moe.json"]


def test_several_inputs_get_fixed_names() -> None:
    outputs = plan(BOTH, [Path("r0.json"), Path("r1.json")], None)
    assert [str(one.path) for one in outputs] == ["report.html", "result.json"]


def test_a_folder_gets_fixed_names() -> None:
    outputs = plan(BOTH, [Path("base.sqlite")], Path("out"))
    assert [str(one.path) for one in outputs] == ["out/report.html", "out/result.json"]


def test_a_path_given_with_the_format_wins() -> None:
    outputs = plan([("markdown", Path("x/y.md"))], [Path("base.sqlite")], Path("out"))
    assert outputs == [Output("markdown", Path("x/y.md"))]


def test_dash_sends_the_one_format_to_stdout() -> None:
    assert plan([("json", None)], [Path("a")], Path("-")) == [Output("json", None)]


def test_dash_with_two_formats_is_refused() -> None:
    with pytest.raises(OutputError, match="2 were asked for"):
        plan(BOTH, [Path("a")], Path("-"))


def test_two_formats_at_one_path_are_refused() -> None:
    with pytest.raises(OutputError, match="two formats"):
        plan([("html", Path("x")), ("json", Path("./x"))], [Path("a")], None)


@pytest.mark.parametrize(
    ("kind", "beside", "inside"),
    [
        ("perfetto", "a.moe.perfetto.json", "step.perfetto.json"),
        ("parquet", "a.moe.parquet", "activities.parquet"),
        ("csv", "a.moe.csv", "activities.csv"),
    ],
)
def test_trace_kinds_have_places_too(kind: str, beside: str, inside: str) -> None:
    assert str(plan([(kind, None)], [Path("a.sqlite")], None)[0].path) == beside
    assert str(plan([(kind, None)], [Path("a.sqlite")], Path("o"))[0].path) == f"o/{inside}"


def test_write_takes_a_function_that_fills_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, lambda file: file.writelines([b"a\n", b"b\n"]))
    assert path.read_bytes() == b"a\nb\n"


def test_a_function_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OutputError("stop")

    with pytest.raises(OutputError, match="stop"):
        write(tmp_path / "a.csv", fail)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_names_force(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(OutputError, match="--force"):
        refuse([Output("html", path)], [])
    refuse([Output("html", path)], [], force=True)


@pytest.mark.parametrize("link", [False, True])
def test_an_input_is_never_written_over_even_with_force(tmp_path: Path, link: bool) -> None:
    trace = tmp_path / "t.json"
    trace.write_text("trace")
    target = trace
    if link:
        target = tmp_path / "other.json"
        target.symlink_to(trace)
    with pytest.raises(OutputError, match="is an input"):
        refuse([Output("json", target)], [trace], force=True)


def test_write_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.html"
    write(path, "ünï\n")
    assert path.read_bytes() == "ünï\n".encode()
    assert [one.name for one in path.parent.iterdir()] == ["r.html"]


def test_write_honours_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    before = os.umask(0o027)
    try:
        write(path, "x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_write_without_force_keeps_a_file_that_appeared_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(OutputError, match="--force"):
        write(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["r.html"]


def test_a_file_that_appears_during_the_write_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.html"
    path.write_text("theirs")
    monkeypatch.setattr(writer, "_refuse_existing", lambda *_: None)
    with pytest.raises(OutputError, match="exists already"):
        write(path, "ours")
    assert path.read_text() == "theirs"


def test_force_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("a much longer text than the new one")
    write(path, "new", force=True)
    assert path.read_text() == "new"


def test_force_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "r.html"
    target.write_text("precious")
    link.symlink_to(target)
    write(link, "new", force=True)
    assert target.read_text() == "precious"
    assert link.read_text() == "new"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path / "r.html", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path, "x")


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is not a folder"):
        refuse([Output("html", tmp_path / "file" / "r.html")], [])


def test_devices_are_written_through_not_replaced() -> None:
    write(Path("/dev/null"), "x")
    assert not Path("/dev/null").is_file()
