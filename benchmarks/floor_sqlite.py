"""The floor for reading a Nsight Systems export: fetch the columns an analysis needs, keep none.

Two ADBC cursors in two threads, each on half of the row ids.
"""

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

import polars as pl
from adbc_driver_sqlite import dbapi

COLUMNS = {
    "CUPTI_ACTIVITY_KIND_KERNEL": "start, end, deviceId, streamId, correlationId, globalPid, demangledName",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start, end, deviceId, streamId, correlationId, globalPid, bytes, copyKind",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start, end, deviceId, streamId, correlationId, globalPid",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start, end, globalTid, correlationId, nameId",
    "NVTX_EVENTS": "start, end, globalTid, coalesce(text, ''), coalesce(textId, 0)",
    "StringIds": "id, value",
}


def main(path: str) -> None:
    uri = f"file:{path}?mode=ro"
    with sqlite3.connect(uri, uri=True) as db:
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        middle = {
            table: (db.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0) // 2
            for table in COLUMNS
            if table in tables
        }

    def half(upper: bool) -> int:
        rows = 0
        with dbapi.connect(uri) as connection, connection.cursor() as cursor:
            for table, cut in middle.items():
                side = f"> {cut}" if upper else f"<= {cut}"
                cursor.execute(f"SELECT {COLUMNS[table]} FROM {table} WHERE rowid {side}")
                rows += len(pl.DataFrame(cursor.fetch_arrow()))
        return rows

    with ThreadPoolExecutor(2) as pool:
        print(sum(pool.map(half, (False, True))))


if __name__ == "__main__":
    main(sys.argv[1])
