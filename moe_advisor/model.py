"""What ingest hands to the rest of the program: one profiler-neutral trace per rank.

Everything after ingest works on these tables and can't tell which profiler made them. Times are
integer nanoseconds on one clock per input (`RankTrace.epoch_ns` says how to compare two inputs).
Names are numbers into `RankTrace.names`, so that a pattern is tried once per name and not once per
row.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import polars as pl

NONE = -1
"""In a whole-number column: the trace does not say."""


class ActivityKind(IntEnum):
    """What kind of GPU work a row of `activities` is."""

    KERNEL = 0
    MEMCPY = 1
    MEMSET = 2
    GRAPH = 3  # one opaque CUDA graph launch: its kernels were not recorded


class CopyKind(IntEnum):
    """Direction of a memcpy; the numbers are CUPTI's."""

    NONE = 0
    HOST_TO_DEVICE = 1
    DEVICE_TO_HOST = 2
    DEVICE_TO_DEVICE = 8
    HOST_TO_HOST = 9
    PEER_TO_PEER = 10
    OTHER = 99


class RangeKind(IntEnum):
    """Who opened a host range."""

    ANNOTATION = 0  # the user or the framework: NVTX default domain, torch user_annotation
    OPERATOR = 1  # an ATen operator or autograd node
    LIBRARY = 2  # a library's own NVTX domain (NCCL, CUB ...): never a phase of the program
    PYTHON = 3  # a Python frame or nn.Module of a with_stack capture


class CollectiveKind(IntEnum):
    """What a communication kernel does, as far as metadata says."""

    UNKNOWN = 0
    ALL_TO_ALL = 1
    ALL_REDUCE = 2
    ALL_GATHER = 3
    REDUCE_SCATTER = 4
    BROADCAST = 5
    REDUCE = 6
    SEND_RECV = 7  # point to point, with at most two peers and never with itself
    BARRIER = 8
    GATHER = 9
    SCATTER = 10


# GPU work, sorted by (start_ns, end_ns). `call` is the row in `calls` that launched it (replayed
# kernels of a CUDA graph share their graph launch), `blocks` the number of thread blocks.
Schema = dict[str, pl.DataType | type[pl.DataType]]

ACTIVITY_SCHEMA: Schema = {
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "kind": pl.UInt8,
    "name": pl.UInt32,
    "stream": pl.Int64,
    "call": pl.Int64,
    "blocks": pl.Int64,
    "bytes": pl.Int64,
    "copy_kind": pl.UInt8,
    "pageable": pl.Boolean,  # the host side of a memcpy is pageable memory: the call blocks
    "in_graph": pl.Boolean,  # replayed by a CUDA graph launch
}

# CUDA runtime and driver calls of the process, sorted by start_ns. Version suffixes are stripped.
CALL_SCHEMA: Schema = {
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "tid": pl.Int64,
    "name": pl.UInt32,
}

# Host ranges, sorted by (start_ns, -end_ns): annotations, operators, library ranges. A backward
# operator has `forward_tid` (the profiler's number of the thread that ran its forward operator)
# and shares `sequence` with that operator. A range still open at the end is clipped.
RANGE_SCHEMA: Schema = {
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "tid": pl.Int64,
    "name": pl.UInt32,
    "kind": pl.UInt8,
    "sequence": pl.Int64,
    "forward_tid": pl.Int64,
}

# Metadata of communication activities, sorted by `activity` (row in `activities`). `group` names
# one communicator the same way on all ranks, `description` says what it is for where the framework
# told. Bytes count everything that is sent or received, the rank's own share included;
# `bytes_self` is that share. `in_splits`/`out_splits` are rows per peer, empty where unknown.
# `sequence` numbers the operations of a communicator the same way on all its ranks. Places are
# ranks inside the group: the own one, and the lowest and highest of those that a point-to-point
# kernel sends to and receives from (NONE: no such peer, or not told).
COLLECTIVE_SCHEMA: Schema = {
    "activity": pl.Int64,
    "kind": pl.UInt8,
    "group": pl.UInt32,
    "description": pl.UInt32,
    "group_size": pl.Int64,
    "bytes_sent": pl.Int64,
    "bytes_received": pl.Int64,
    "bytes_self": pl.Int64,
    "in_splits": pl.List(pl.Int64),
    "out_splits": pl.List(pl.Int64),
    "sequence": pl.Int64,
    "place": pl.Int64,
    "to_low": pl.Int64,
    "to_high": pl.Int64,
    "from_low": pl.Int64,
    "from_high": pl.Int64,
}

# Device memory levels after each event, sorted by time_ns. NONE where a level is not known.
MEMORY_SCHEMA: Schema = {
    "time_ns": pl.Int64,
    "allocated_bytes": pl.Int64,
    "reserved_bytes": pl.Int64,
}

# What one stream waited for on another, sorted by `wait_call`: work that `wait_call`'s stream got
# after that call starts when what `record_stream` got before `record_call` is done. Both are rows
# in `calls`.
STREAM_WAIT_SCHEMA: Schema = {
    "wait_call": pl.Int64,
    "stream": pl.Int64,
    "record_call": pl.Int64,
    "record_stream": pl.Int64,
}

# Matrix products as the framework asked for them, sorted by start_ns: host times of the operator,
# its floating-point operations (multiply and add count two), token rows and number of groups of a
# grouped product (NONE for others, and where the shapes don't tell).
MATMUL_SCHEMA: Schema = {
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "tid": pl.Int64,
    "flops": pl.Int64,
    "rows": pl.Int64,
    "groups": pl.Int64,
}


def empty(schema: Schema) -> pl.DataFrame:
    """A table of `schema` with no rows."""
    return pl.DataFrame(schema=schema)


class Severity(StrEnum):
    """How much a capture issue matters: info is quiet, warning is shown, error damages results."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class CaptureIssue:
    """Something about the capture that a reader of the numbers must know."""

    id: str
    severity: Severity
    message: str
    count: int = 1
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU of a rank; zeros and None where the trace does not say."""

    name: str | None = None
    memory_bytes: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    sm_count: int | None = None
    compute_capability: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """A communicator as the framework's metadata lists it."""

    name: str
    description: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RankTrace:
    """All that is known of one rank: a process on one device."""

    rank: int
    rank_source: str  # metadata, communicator, process-order or file-name
    names: tuple[str, ...]
    activities: pl.DataFrame = field(default_factory=lambda: empty(ACTIVITY_SCHEMA))
    calls: pl.DataFrame = field(default_factory=lambda: empty(CALL_SCHEMA))
    ranges: pl.DataFrame = field(default_factory=lambda: empty(RANGE_SCHEMA))
    collectives: pl.DataFrame = field(default_factory=lambda: empty(COLLECTIVE_SCHEMA))
    memory: pl.DataFrame = field(default_factory=lambda: empty(MEMORY_SCHEMA))
    waits: pl.DataFrame = field(default_factory=lambda: empty(STREAM_WAIT_SCHEMA))
    matmuls: pl.DataFrame = field(default_factory=lambda: empty(MATMUL_SCHEMA))
    device: Device = field(default_factory=Device)
    groups: tuple[ProcessGroup, ...] = ()
    world_size: int | None = None
    host: int = 1  # a number, never a name: inputs of one report share it
    epoch_ns: int | None = None  # add to a time to get UTC; None if the input has no clock base
    environment: dict[str, str] = field(default_factory=dict)  # allow-listed values only
    issues: tuple[CaptureIssue, ...] = ()


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input as the result names it: a base name, never a path."""

    name: str
    format: str  # nsys-sqlite, nsys-rep, nsys-parquet, kineto or result
    producer: str | None
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadedInput:
    """The ranks that one input file holds."""

    info: InputInfo
    ranks: tuple[RankTrace, ...]
    issues: tuple[CaptureIssue, ...] = ()
