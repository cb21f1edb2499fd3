"""Reading the folder of a Parquet export through the same code as SQLite."""

from pathlib import Path

import polars as pl
import pytest

from moe_advisor.errors import InputError
from moe_advisor.ingest import nsys_parquet, nsys_sqlite
from moe_advisor.model import LoadedInput
from tests.nsys_builder import GENERATIONS, NsysExport, message, two_steps

# The exporter writes ids as unsigned numbers, and leaves nulls.
_UNSIGNED = frozenset({"globalTid", "globalPid", "nameId", "textId", "pid", "utcEpochNs"})


def write_folder(export: NsysExport, folder: Path) -> Path:
    folder.mkdir()
    for table, (columns, rows) in export.tables().items():
        frame = pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None)
        frame = frame.with_columns(
            pl.col(column).cast(pl.Int64).reinterpret(signed=False)
            for column in columns
            if column in _UNSIGNED
        )
        frame.write_parquet(folder / f"{table}.parquet")
    return folder


def comparable(loaded: LoadedInput) -> list[object]:
    return [
        (
            rank.rank, rank.names, rank.environment, rank.epoch_ns, rank.activities.rows(),
            rank.calls.rows(), rank.ranges.rows(), rank.collectives.rows(), rank.memory.rows(),
        )
        for rank in loaded.ranks
    ]  # fmt: skip


@pytest.mark.parametrize("schema", GENERATIONS)
def test_the_folder_gives_the_same_trace_as_the_database(schema: str, tmp_path: Path) -> None:
    export = two_steps(schema)
    export.add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=1_700_000_000_000_000_000)
    export.nccl(990, 1_990, "ncclAllReduce", message(5, 9, 64))
    folder = write_folder(export, tmp_path / "whatever")
    loaded = nsys_parquet.load(folder)
    assert loaded.info.format == "nsys-parquet"
    assert loaded.info.name == "whatever"
    expected = nsys_sqlite.load(export.write(tmp_path / "run.sqlite"))
    assert comparable(loaded) == comparable(expected)
    assert loaded.ranks[0].activities.height == 5


def test_the_folder_is_recognised_by_its_tables(tmp_path: Path) -> None:
    assert nsys_parquet.sniff(write_folder(two_steps(), tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "CUPTI_ACTIVITY_KIND_KERNEL.parquet").write_text("no")
    for other in (tmp_path / "b", tmp_path / "missing", tmp_path / "a" / "StringIds.parquet"):
        assert not nsys_parquet.sniff(other)
    with pytest.raises(InputError, match="parquetdir"):
        nsys_parquet.load(tmp_path / "b")


def test_a_damaged_table_is_reported_and_the_rest_stands(tmp_path: Path) -> None:
    folder = write_folder(two_steps(), tmp_path / "a")
    copies = folder / "CUPTI_ACTIVITY_KIND_MEMCPY.parquet"
    copies.write_bytes(copies.read_bytes()[:-20])
    loaded = nsys_parquet.load(folder)
    assert loaded.ranks[0].activities.height == 3
    (issue,) = [issue for issue in loaded.issues if issue.id == "damaged-table"]
    assert "CUPTI_ACTIVITY_KIND_MEMCPY" in issue.message


def test_a_folder_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    folder = write_folder(two_steps(), tmp_path / "a")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="none of the tables"):
        nsys_parquet.load(folder)


def test_the_folder_is_untouched(tmp_path: Path) -> None:
    folder = write_folder(two_steps(), tmp_path / "a")
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    nsys_parquet.load(folder)
    assert before == {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()
    }
