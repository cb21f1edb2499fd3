"""Which stream waits for which, from the event tables of an nsys export."""

from pathlib import Path

import polars as pl
import pytest

from moe_advisor.ingest import nsys_sqlite
from moe_advisor.model import STREAM_WAIT_SCHEMA, RankTrace
from tests.nsys_builder import NsysExport, process

WAIT, EVENT_SYNC = 2, 1
UNRESOLVED = 2**32 - 1


def export(pid: int = 10, *, kind: int = WAIT, sync: int = 5, device: int = 0) -> NsysExport:
    """Work on stream 9, recorded by call 2 and waited for by call 3 on stream 7."""
    made = NsysExport()
    made.metadata()
    made.launched(1_000, 2_000, "comm", 1, pid, stream=9, device=device)
    made.call(1_100, 1_110, "cudaEventRecord", 2, pid)
    made.call(1_200, 1_210, "cudaStreamWaitEvent", 3, pid)
    made.launched(2_100, 3_000, "gemm", 4, pid, called=1_300, device=device)
    made.add(
        "CUPTI_ACTIVITY_KIND_CUDA_EVENT",
        deviceId=device, contextId=1, streamId=9, correlationId=2, globalPid=process(pid),
        eventId=4, eventSyncId=5,
    )  # fmt: skip
    made.add(
        "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION",
        start=1_200, end=1_210, deviceId=0, contextId=1, streamId=7, correlationId=3,
        globalPid=process(pid), syncType=kind, eventId=4, eventSyncId=sync,
    )  # fmt: skip
    return made


def load(made: NsysExport, folder: Path) -> RankTrace:
    (rank,) = nsys_sqlite.load(made.write(folder / "run.sqlite")).ranks
    return rank


@pytest.mark.parametrize("device", [0, 1])
def test_a_wait_is_joined_to_the_record_of_its_event(tmp_path: Path, device: int) -> None:
    # nsys writes device 0 for every synchronisation.
    waits = load(export(device=device), tmp_path).waits
    assert waits.schema == pl.Schema(STREAM_WAIT_SCHEMA)
    assert waits.rows() == [(2, 7, 1, 9)]


@pytest.mark.parametrize(
    "made",
    [
        export(kind=EVENT_SYNC),
        export(sync=UNRESOLVED),
        export(sync=6),
    ],
    ids=["host wait", "unresolved", "other event"],
)
def test_what_is_no_resolved_wait_of_a_stream_is_left_out(made: NsysExport, tmp_path: Path) -> None:
    assert load(made, tmp_path).waits.height == 0


def test_a_reused_handle_without_the_events_own_number_is_no_evidence(tmp_path: Path) -> None:
    made = export()
    made.skip = frozenset({"CUPTI_ACTIVITY_KIND_SYNCHRONIZATION.eventSyncId"})
    assert load(made, tmp_path).waits.height == 0


def test_events_of_another_process_do_not_count(tmp_path: Path) -> None:
    made = export()
    made.rows["CUPTI_ACTIVITY_KIND_CUDA_EVENT"][0]["globalPid"] = process(11)
    assert load(made, tmp_path).waits.height == 0
