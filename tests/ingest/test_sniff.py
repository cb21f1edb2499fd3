"""Formats are recognised by content, whatever the name."""

import gzip
import json
import os
import sqlite3
from pathlib import Path

import pytest

from moe_advisor.errors import InputError
from moe_advisor.ingest.sniff import detect
from tests.kineto_builder import LAUNCHED, METADATA, trace

RESULT = {"schema": "moe-advisor/result", "schema_version": "1.0", "inputs": []}
REPORT = b"NVIDIA Tegra Profiler Report 2023@4@4@54-234433681190v0.\n\x0bLocal (CLI)"


def database(path: Path, *tables: str) -> Path:
    connection = sqlite3.connect(path)
    for table in tables:
        connection.execute(f'CREATE TABLE "{table}" (id INTEGER)')
    connection.execute("CREATE TABLE other (id INTEGER)")
    connection.commit()
    connection.close()
    return path


LARGE_METADATA = {
    **METADATA,
    "a": "x" * 300_000,
    "distributedInfo": {"pg_config": [{"pg_name": str(n), "ranks": []} for n in range(9000)]},
}

CONTENTS = {
    "torch's layout": (trace(*LAUNCHED), "kineto"),
    "compact": (json.dumps({**METADATA, "traceEvents": []}).encode(), "kineto"),
    "events first": (json.dumps({"traceEvents": list(LAUNCHED)}).encode(), "kineto"),
    "a list of events": (json.dumps(list(LAUNCHED)).encode(), "kineto"),
    "events far behind metadata": (
        json.dumps({"z": "x" * 400_000, "traceEvents": []}).encode(),
        "kineto",
    ),
    "gzip": (gzip.compress(trace(*LAUNCHED)), "kineto"),
    "cut gzip": (gzip.compress(trace(*LAUNCHED))[:-30], "kineto"),
    "byte order mark": (b"\xef\xbb\xbf" + trace(*LAUNCHED), "kineto"),
    "UTF-16": (trace(*LAUNCHED).decode().encode("utf-16"), "kineto"),
    "large metadata": (json.dumps({**LARGE_METADATA, "traceEvents": []}).encode(), "kineto"),
    "a result": (json.dumps(RESULT).encode(), "result"),
    "an indented result": (json.dumps(RESULT, indent=2).encode(), "result"),
    "a result with sorted keys": (
        json.dumps({"a": "y" * 100_000, **RESULT}, sort_keys=True).encode(),
        "result",
    ),
    "a packed result": (gzip.compress(json.dumps(RESULT).encode()), "result"),
    "a report": (REPORT, "nsys-rep"),
}


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize("name", ["plain", "wrong.sqlite", "trace.json.gz"])
def test_content_decides(case: str, name: str, tmp_path: Path) -> None:
    content, expected = CONTENTS[case]
    path = tmp_path / name
    path.write_bytes(content)
    assert detect(path) == expected


@pytest.mark.parametrize(
    "table", ["CUPTI_ACTIVITY_KIND_KERNEL", "StringIds", "META_DATA_EXPORT", "NVTX_EVENTS"]
)
def test_an_export_is_known_by_its_tables(table: str, tmp_path: Path) -> None:
    assert detect(database(tmp_path / "renamed.json", table)) == "nsys-sqlite"


def test_a_folder_of_parquet_tables_is_an_export(tmp_path: Path) -> None:
    folder = tmp_path / "any name"
    folder.mkdir()
    (folder / "CUPTI_ACTIVITY_KIND_KERNEL.parquet").write_bytes(b"PAR1")
    assert detect(folder) == "nsys-parquet"
    without_kernels = tmp_path / "report_pqtdir"
    without_kernels.mkdir()
    (without_kernels / "NVTX_EVENTS.parquet").write_bytes(b"PAR1")
    assert detect(without_kernels) == "nsys-parquet"


REFUSED = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "text that is not JSON"),
    "other JSON": (b'{"a": 1}', "JSON, but no trace and no result"),
    "a list of numbers": (b"[1, 2]", "JSON, but no trace and no result"),
    "binary": (bytes(range(256)), "binary data of an unknown kind"),
    "gzip of text": (gzip.compress(b"hello"), "gzip data that holds no trace"),
    "zip": (b"PK\x03\x04rest", "a zip archive"),
    "xz": (b"\xfd7zXZ\x00rest", "an xz file"),
    "zstd": (b"\x28\xb5\x2f\xfdrest", "a zstd file"),
    "one parquet file": (b"PAR1rest", "give the folder"),
    "HTML": (b"<!doctype html>", "an HTML or XML file"),
    "raw nsys data": (b"U3w[END]NVIDIA Nsight Systems Stream 2023.4.4", "QdstrmImporter -i"),
    "a damaged database": (b"SQLite format 3\x00" + b"\xff" * 2000, "a damaged SQLite database"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_with_what_was_found(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "input.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        detect(path)
    assert str(caught.value).startswith("input.bin: ")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_another_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a SQLite database, but not an Nsight Systems export"):
        detect(database(tmp_path / "mine.sqlite"))


def test_a_plain_folder_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder without a parquet export"):
        detect(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: not a regular file"):
        detect(tmp_path / "pipe")
    with pytest.raises(InputError, match="gone: can't be read: No such file"):
        detect(tmp_path / "gone")
    with pytest.raises(InputError, match="not a file name"):
        detect(Path("a\0b"))


def test_a_database_is_neither_changed_nor_joined_by_other_files(tmp_path: Path) -> None:
    path = database(tmp_path / "trace.sqlite", "StringIds")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    detect(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [item.name for item in tmp_path.iterdir()] == ["trace.sqlite"]


def test_hostile_characters_of_a_name_stay_out_of_the_message(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb"
    path.write_bytes(b"hello")
    with pytest.raises(InputError) as caught:
        detect(path)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_looked_at_again_once_it_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"schemaVersion": 1, "traceEvents": []}')
    assert detect(path) == detect(path) == "kineto"
    path.write_text('{"schema": "moe-advisor/result"}')
    assert detect(path) == "result"
