"""Which inputs files, folders and globs mean, and who loads them."""

import os
import sqlite3
from pathlib import Path

import pytest

from moe_advisor.errors import InputError
from moe_advisor.ingest import sources
from tests.kineto_builder import LAUNCHED, trace, write

TRACE = trace(*LAUNCHED)


def ranks(folder: Path, *numbers: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write(folder, TRACE, f"rank{number}.json") for number in numbers]


def found(*paths: Path | str) -> list[str]:
    return [path.name for path in sources.find_inputs([str(path) for path in paths])]


def export(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE StringIds (id INTEGER)")
    connection.commit()
    connection.close()
    return path


def parquet(folder: Path) -> Path:
    folder.mkdir()
    (folder / "CUPTI_ACTIVITY_KIND_KERNEL.parquet").write_bytes(b"PAR1")
    (folder / "NVTX_EVENTS.parquet").write_bytes(b"PAR1")
    return folder


def test_a_folder_gives_its_traces_in_natural_order(tmp_path: Path) -> None:
    ranks(tmp_path, 10, 2, 0, 1)
    assert found(tmp_path) == ["rank0.json", "rank1.json", "rank2.json", "rank10.json"]


def test_a_folder_gives_only_what_is_a_trace(tmp_path: Path) -> None:
    ranks(tmp_path, 0)
    (tmp_path / "train.log").write_text("loss 1.0")
    (tmp_path / "config.json").write_text('{"ep": 8}')
    (tmp_path / ".hidden.json").write_bytes(TRACE)
    (tmp_path / "renamed.txt").write_bytes(TRACE)
    assert found(tmp_path) == ["rank0.json", "renamed.txt"]


@pytest.mark.parametrize("own", ["base.moe.json", "base.moe.html", "result.json", "report.html"])
def test_own_outputs_are_skipped_in_folders_and_globs_but_not_if_named(
    own: str, tmp_path: Path
) -> None:
    ranks(tmp_path, 0)
    (tmp_path / own).write_text('{"schema": "moe-advisor/result"}')
    assert found(tmp_path) == ["rank0.json"]
    assert found(tmp_path / "*") == ["rank0.json"]
    assert found(tmp_path / own) == [own]


def test_an_earlier_result_in_a_folder_is_no_rank(tmp_path: Path) -> None:
    ranks(tmp_path, 0)
    (tmp_path / "old.json").write_text('{"schema": "moe-advisor/result"}')
    assert found(tmp_path) == ["rank0.json"]


def test_rank_folders_are_searched(tmp_path: Path) -> None:
    for number in (10, 9):
        ranks(tmp_path / f"node{number}", number)
    assert found(tmp_path) == ["rank9.json", "rank10.json"]


def test_a_file_reached_twice_is_one_input(tmp_path: Path) -> None:
    (path,) = ranks(tmp_path, 0)
    (tmp_path / "link.json").symlink_to(path)
    os.link(path, tmp_path / "hard.json")
    relative = tmp_path / ".." / tmp_path.name / "rank0.json"
    assert found(path, relative, path, tmp_path / "rank*") == ["rank0.json"]
    assert len(found(tmp_path)) == 1


def test_folders_that_link_in_circles_end(tmp_path: Path) -> None:
    ranks(tmp_path / "a", 0)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert found(tmp_path) == ["rank0.json"]
    with pytest.raises(InputError, match="self: "):
        found(tmp_path / "self")


def test_a_dangling_link_in_a_folder_is_no_trace(tmp_path: Path) -> None:
    ranks(tmp_path, 0)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == ["rank0.json"]


def test_a_parquet_export_is_one_input_named_or_inside_a_folder(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "run_pqtdir")
    assert found(folder) == ["run_pqtdir"]
    ranks(tmp_path, 0)
    assert found(tmp_path) == ["rank0.json", "run_pqtdir"]
    assert found(tmp_path / "*") == ["rank0.json", "run_pqtdir"]


def test_globs_match_in_natural_order(tmp_path: Path) -> None:
    ranks(tmp_path, 11, 2)
    assert found(tmp_path / "rank*.json") == ["rank2.json", "rank11.json"]
    assert found(tmp_path / "**" / "*.json") == ["rank2.json", "rank11.json"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, TRACE, "rank[0].json")
    ranks(tmp_path, 0)
    assert found(tmp_path / "rank[0].json") == ["rank[0].json"]


def test_a_report_with_a_fresh_export_beside_it_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "run.nsys-rep").write_bytes(b"NVIDIA Tegra Profiler Report 2025@1")
    export(tmp_path / "run.sqlite")
    os.utime(tmp_path / "run.nsys-rep", (1000, 1000))
    assert found(tmp_path) == ["run.sqlite"]
    os.utime(tmp_path / "run.sqlite", (900, 900))  # a stale export of an earlier report
    assert found(tmp_path) == ["run.nsys-rep"]


def test_an_unreadable_file_that_was_named_is_still_an_input(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("nonsense")
    assert found(tmp_path / "broken.json") == ["broken.json"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.json", "gone.json: no such file or folder"),
        ("gone*.json", "the pattern matches no file"),
        ("empty", "the folder holds no trace"),
        ("empt*", "the pattern matches no trace"),
        ("a\0b", "not a file name"),
        ("x" * 5000, "can't be read"),
        ("pipe", "not a regular file"),
    ],
)
def test_a_path_that_means_nothing_is_refused(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message) as caught:
        sources.find_inputs([str(tmp_path / path)])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no input given"):
        sources.find_inputs([])


def test_names_with_huge_numbers_are_sorted_not_fatal(tmp_path: Path) -> None:
    names = [Path("t" + "9" * 6000), Path("t2"), Path("t10"), Path("t²"), Path("t")]
    assert [p.name[:4] for p in sorted(names, key=sources.natural_key)][:3] == ["t", "t2", "t10"]


def test_loading_goes_to_the_reader_of_the_format(tmp_path: Path) -> None:
    (path,) = ranks(tmp_path, 5)
    loaded = sources.load(path, "kineto")
    info = loaded.info
    assert (info.name, info.format, info.ranks) == ("rank5.json", "kineto", (1,))


def test_a_result_holds_no_trace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"old\.json: a result holds no trace"):
        sources.load(tmp_path / "old.json", "result")
