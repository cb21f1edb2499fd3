"""Reads a PyTorch profiler (Kineto) trace into the trace tables.

The reader streams: memory grows with the rows that are used, not with the file. Nothing of the
trace's metadata is kept but what `Metadata` names.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_advisor import allocator
from moe_advisor.errors import InputError
from moe_advisor.ingest.json_stream import DEFAULT_LIMITS, EventReader, StreamLimits
from moe_advisor.ingest.kineto_columns import TRIM_ROWS, Columns
from moe_advisor.ingest.kineto_events import EventDecoder
from moe_advisor.ingest.kineto_metadata import Metadata
from moe_advisor.ingest.kineto_ranks import assemble
from moe_advisor.model import CaptureIssue, InputInfo, LoadedInput, Severity
from moe_advisor.privacy import display_name


def load(path: Path, *, limits: StreamLimits = DEFAULT_LIMITS) -> LoadedInput:
    """Reads one trace file. Raises InputError if nothing in it can be read.

    A file usually holds one rank; a merged file gives one rank per process and device.
    """
    columns, decoder = Columns(), EventDecoder()
    reader = EventReader(path, decoder.decode, decoder.rescue, limits)
    with _no_collector():
        for batch in reader:
            columns.offset_us = decoder.offset_us
            columns.add(batch)
        metadata = Metadata.of(reader.metadata)
        reader.metadata.clear()
        if not columns.categories - {""} and not metadata.known:
            raise InputError(
                f"{display_name(path)}: holds no profiler events: is it a torch profiler trace?"
            )
        ranks = assemble(columns, metadata, path)
        if columns.counts.kept >= TRIM_ROWS:
            allocator.trim()
    return LoadedInput(
        info=InputInfo(
            name=display_name(path),
            format="kineto",
            producer=metadata.producer,
            ranks=tuple(rank.rank for rank in ranks),
        ),
        ranks=ranks,
        issues=(*_file_issues(reader, columns), *metadata.issues),
    )


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's cycle collector: nothing here makes cycles, and it costs time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _file_issues(reader: "EventReader[Any]", columns: Columns) -> tuple[CaptureIssue, ...]:
    counts = columns.counts
    warning, info = Severity.WARNING, Severity.INFO
    found = (
        (
            "truncated-input", Severity.ERROR, int(reader.truncated),
            "The file is cut short or damaged; what was complete was read.",
        ),
        (
            "unreadable-events", warning, reader.bad_events,
            "{} events could not be read and were left out.",
        ),
        (
            "repaired-events", info, reader.repaired_events,
            "{} events were not valid JSON (torch up to 2.11 writes some names unescaped) and "
            "were repaired.",
        ),
        (
            "events-without-duration", warning, counts.no_duration,
            "{} events have no duration and were left out.",
        ),
        (
            "negative-durations", warning, counts.negative,
            "{} events end before they start and were left out.",
        ),
        (
            "impossible-times", warning, counts.bad_time,
            "{} events have a time that is no time and were left out.",
        ),
        (
            "out-of-memory-events", warning, columns.out_of_memory,
            "{} allocations failed for lack of GPU memory during the capture.",
        ),
    )  # fmt: skip
    return tuple(
        CaptureIssue(id=name, severity=severity, message=text.format(count), count=count)
        for name, severity, count, text in found
        if count
    )
