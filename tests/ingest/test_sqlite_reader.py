"""Cells of a kind that their column should not hold: read as what they are, or as missing."""

import sqlite3
from contextlib import closing
from pathlib import Path

from moe_advisor.ingest.sqlite_reader import open_sqlite
from moe_advisor.table_source import Column


def test_only_a_text_that_is_a_whole_number_is_one_and_no_text_is_time_zero(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    cells = [5, "17", "-3", 2.9, None, "abc", "", "12abc", "1.5", b"7", b"\x00", "0"]
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table T (start)")  # without a type, cells stay as they are
        database.executemany("insert into T values (?)", [(cell,) for cell in cells])
        database.commit()
    with open_sqlite(path) as source:
        found = source.fetch("T", (Column("start", -1),))["start"].to_list()
    assert found == [5, 17, -3, 2, -1, -1, -1, -1, -1, 7, -1, 0]
