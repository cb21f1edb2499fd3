"""Which stream waited for what on which other stream, from the event tables of an nsys export."""

from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.model import NONE, STREAM_WAIT_SCHEMA
from moe_advisor.table_source import Among, Column, TableSource

SYNCHRONIZATIONS = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"
EVENTS = "CUPTI_ACTIVITY_KIND_CUDA_EVENT"
EVENT_TABLES = frozenset({SYNCHRONIZATIONS, EVENTS})

_STREAM_WAIT = 2
"""Type of a cudaStreamWaitEvent among the synchronisations, in every version."""

_NO_EVENT = (NONE, 0, 2**32 - 1)
"""What stands where CUPTI resolved no event."""


class RowsOf(Protocol):
    """Finds the call of each correlation id."""

    def rows_of(self, wanted: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The row of the first call with each id; NONE where there is none."""


def stream_waits(
    source: TableSource, calls: dict[tuple[int, int], RowsOf]
) -> dict[tuple[int, int], pl.DataFrame]:
    """STREAM_WAIT_SCHEMA tables by (process, device), for the processes' `calls` given.

    Joined on `eventSyncId`, which tells one record from the next of the same event. Exports
    before schema 3.17 lack it, and their event handles are used again: they give nothing.
    """
    present = source.columns(SYNCHRONIZATIONS) & source.columns(EVENTS)
    if "eventSyncId" not in present:
        return {}
    columns = [
        Column("eventSyncId"),
        Column("streamId"),
        Column("correlationId"),
        Column("globalPid", 0),
    ]
    key = ["globalPid", "eventSyncId"]
    known = ~pl.col("eventSyncId").is_in(_NO_EVENT)
    waits = source.fetch(SYNCHRONIZATIONS, columns, Among("syncType", (_STREAM_WAIT,)))
    waits = waits.filter(known)
    if not waits.height:
        return {}
    # The device of a synchronisation is always 0; that of an event record is right.
    records = source.fetch(EVENTS, [*columns, Column("deviceId", 0)])
    records = records.select(
        *key, "deviceId", record_stream="streamId", record_correlation="correlationId"
    )
    joined = waits.join(records, on=key).filter(pl.col("streamId") != pl.col("record_stream"))
    found: dict[tuple[int, int], pl.DataFrame] = {}
    for (process, device), rows_of in calls.items():
        mine = joined.filter((pl.col("globalPid") == process) & (pl.col("deviceId") == device))
        if not mine.height:
            continue

        def row(column: str, mine: pl.DataFrame = mine, rows_of: RowsOf = rows_of) -> pl.Series:
            wanted = mine[column].clip(0, 2**32 - 1).cast(pl.UInt32).to_numpy()
            return pl.Series(rows_of.rows_of(wanted))

        table = pl.DataFrame(
            {
                "wait_call": row("correlationId"),
                "stream": mine["streamId"],
                "record_call": row("record_correlation"),
                "record_stream": mine["record_stream"],
            },
            schema=STREAM_WAIT_SCHEMA,
        )
        both = (pl.col("wait_call") != NONE) & (pl.col("record_call") != NONE)
        found[process, device] = table.filter(both).sort("wait_call", "record_call")
    return found
