"""The pages of a SQLite file, read without SQLite: what comes out is what SQLite says."""

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from moe_advisor.ingest import sqlite_pages, sqlite_reader
from moe_advisor.ingest.sqlite_pages import UnusualError, Wanted
from moe_advisor.ingest.sqlite_reader import open_sqlite
from moe_advisor.table_source import Among, Column

EDGES = [
    *(0, 1, -1, 127, -128, 128, 32_767, -32_768, 32_768, 2**23 - 1, -(2**23), 2**23),
    *(2**31 - 1, -(2**31), 2**31, 2**47 - 1, -(2**47), 2**47, 2**63 - 1, -(2**63)),
]
"""The first and last numbers of every size that SQLite stores."""
COLUMNS = [
    Column("start", -9),
    Column("end", -3),
    Column("text", ""),
    Column("tid"),
    Column("payload", b""),
    Column("last", 7),
]
SCHEMA = "start INTEGER NOT NULL, end INTEGER, text TEXT, tid INTEGER, payload TEXT, last INTEGER"


def rows(count: int) -> list[tuple[object, ...]]:
    chance = random.Random(1)
    numbers = [*EDGES, None]
    return [
        (
            number * 1_000,
            chance.choice(numbers),
            chance.choice([None, "", "é" * chance.randint(1, 60)]),
            chance.choice(numbers),
            chance.choice([None, chance.randbytes(chance.randint(0, 80))]),
            chance.choice(numbers),
        )
        for number in range(count)
    ]


def database(
    folder: Path, schema: str, data: Sequence[tuple[object, ...]], page: int = 4096
) -> Path:
    path = folder / "trace.sqlite"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA page_size={page}")
        connection.execute(f"CREATE TABLE T ({schema})")
        if data:
            marks = ", ".join("?" * len(data[0]))
            connection.executemany(f"INSERT INTO T VALUES ({marks})", data)
    connection.close()
    return path


def number_column(path: Path, place: int) -> list[int]:
    """Column `place` of table T, from the pages."""
    with sqlite3.connect(path) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master").fetchone()[0]
    connection.close()
    shape = sqlite_pages.layout(path)
    shares = sqlite_pages.portions(shape, sqlite_pages.leaves(path, shape, root))
    found = [
        one
        for (one,) in sqlite_pages.decoded(path, shape, shares, [Wanted(place, -3)])
        if isinstance(one, np.ndarray)
    ]
    return [int(value) for one in found for value in one]


def both(
    path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[Column], where: Among | None = None
) -> list[tuple[pl.DataFrame, dict[str, int]]]:
    """The rows of T and the damage, as the pages give them and as SQLite does."""
    results = []
    for pages in (0, 1_000_000):
        monkeypatch.setattr(sqlite_reader, "_PAGES_FROM", pages)
        with open_sqlite(path) as source:
            results.append((source.fetch("T", columns, where), source.damaged))
    return results


@pytest.mark.parametrize("page", [512, 4096, 65_536])
def test_all_columns_are_those_that_sqlite_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    path = database(tmp_path, SCHEMA, rows(2_000), page)
    read: list[str] = []
    decoded = sqlite_pages.decoded

    def noted(*given: Any) -> Any:
        read.append("pages")
        return decoded(*given)

    monkeypatch.setattr(sqlite_pages, "decoded", noted)
    from_pages, from_sqlite = both(path, monkeypatch, COLUMNS)
    assert "pages" in read
    assert from_pages[0].equals(from_sqlite[0])
    assert from_pages[0].height == 2_000


def test_numbers_of_every_size_and_null(tmp_path: Path) -> None:
    data = [(number,) for number in [*EDGES, None]]
    path = database(tmp_path, "n INTEGER", data)
    assert number_column(path, 0) == [*EDGES, -3]


def test_a_column_of_one_size_and_one_of_nulls_alone(tmp_path: Path) -> None:
    path = database(tmp_path, "a INTEGER, b INTEGER", [(300 + i, None) for i in range(9)])
    assert number_column(path, 0) == list(range(300, 309))
    assert number_column(path, 1) == [-3] * 9


def test_a_deep_tree_with_gaps_in_the_row_ids(tmp_path: Path) -> None:
    path = database(tmp_path, "n INTEGER, t TEXT", [(i, "x" * 90) for i in range(20_000)], 512)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM T WHERE n % 7 = 3")
        connection.execute("INSERT INTO T (rowid, n) VALUES (?, 5)", (2**40,))
    connection.close()
    assert number_column(path, 0) == [*(i for i in range(20_000) if i % 7 != 3), 5]


def test_conditions_keep_what_sqlite_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path, SCHEMA, rows(2_000))
    for where in (Among("tid", (127, 0)), Among("tid", (-1, 0)), Among("last", (1,))):
        from_pages, from_sqlite = both(path, monkeypatch, COLUMNS[:4], where)
        assert from_pages[0].equals(from_sqlite[0])
        assert from_pages[0].height > 0
    text = Among("text", ("é" * 5, "é" * 7))
    from_pages, from_sqlite = both(path, monkeypatch, COLUMNS[:2], text)
    assert from_pages[0].equals(from_sqlite[0])
    assert from_pages[0].height > 0


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        ("(n INTEGER)", (1.5,)),
        ("(n INTEGER)", ("text",)),
        ("(n INTEGER)", (b"blob",)),
        ("(a TEXT, n INTEGER)", ("x" * 9_000, 1)),  # on overflow pages
        ("(n INTEGER PRIMARY KEY, a)", (5, 1)),  # is the row id
        ("(n INTEGER, a PRIMARY KEY)", (1, 2)),
        ("(g AS (n + 1), n INTEGER)", (1,)),
        ("(n INTEGER, a PRIMARY KEY) WITHOUT ROWID", (1, 2)),
    ],
)
def test_what_only_sqlite_can_read_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: str, row: tuple[object, ...]
) -> None:
    path = tmp_path / "trace.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE T {schema}")
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO T VALUES ({marks})", row)
    connection.close()
    from_pages, from_sqlite = both(path, monkeypatch, [Column("n")])
    assert from_pages[0].equals(from_sqlite[0])
    assert from_pages[0].height == 1


def test_a_column_added_later_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = database(tmp_path, "n INTEGER", [(1,), (2,)])
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE T ADD COLUMN later INTEGER DEFAULT 9")
    connection.close()
    from_pages, _ = both(path, monkeypatch, [Column("n"), Column("later")])
    assert from_pages[0].rows() == [(1, 9), (2, 9)]


def test_texts_of_another_encoding_are_left_to_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA encoding='UTF-16le'")
        connection.execute("CREATE TABLE T (n INTEGER, text TEXT)")
        connection.execute("INSERT INTO T VALUES (1, 'ab')")
    connection.close()
    with pytest.raises(UnusualError):
        sqlite_pages.layout(path)
    from_pages, from_sqlite = both(path, monkeypatch, [Column("n"), Column("text", "")])
    assert from_pages[0].equals(from_sqlite[0])


@pytest.mark.parametrize("page", [512, 4096])
def test_damage_reads_as_sqlite_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    path = database(tmp_path, SCHEMA, rows(400), page)
    sound = path.read_bytes()
    chance = random.Random(page)
    for _ in range(60):
        damaged = bytearray(sound)
        at = chance.randrange(1, len(sound) // page) * page
        # Where the structure of a page lies, or anywhere in it.
        at += chance.randrange(40) if chance.random() < 0.6 else chance.randrange(page)
        damaged[at] = chance.choice([0, 1, 128, 255, damaged[at] ^ (1 << chance.randrange(8))])
        path.write_bytes(damaged)
        columns = chance.choice([COLUMNS, COLUMNS[:2]])
        (rows_of_pages, lost), (rows_of_sqlite, lost_too) = both(path, monkeypatch, columns)
        assert rows_of_pages.equals(rows_of_sqlite), f"byte {at}"
        assert lost == lost_too


def test_pages_that_refer_to_each_other_in_circles_are_left_to_sqlite(tmp_path: Path) -> None:
    path = database(tmp_path, "n INTEGER", [(i,) for i in range(5_000)], 512)
    with sqlite3.connect(path) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master").fetchone()[0]
    connection.close()
    data = bytearray(path.read_bytes())
    data[(root - 1) * 512 + 8 : (root - 1) * 512 + 12] = root.to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(UnusualError):
        number_column(path, 0)


def test_a_file_cut_off_is_left_to_sqlite(tmp_path: Path) -> None:
    path = database(tmp_path, "n INTEGER", [(i,) for i in range(5_000)], 512)
    with sqlite3.connect(path) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master").fetchone()[0]
    connection.close()
    shape = sqlite_pages.layout(path)
    pages = sqlite_pages.leaves(path, shape, root)
    path.write_bytes(path.read_bytes()[: 512 * 8])
    with pytest.raises(UnusualError):
        list(sqlite_pages.decoded(path, shape, [pages], [Wanted(0)]))
