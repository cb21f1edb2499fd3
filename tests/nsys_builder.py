"""Writes small Nsight Systems exports of several schema generations, for tests.

Only the columns that matter to a reader, and some that must not: paths, users, host names.
"""

import sqlite3
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GENERATIONS = ("3.0.0", "3.7.2", "3.20.3", "3.28.1")
NCCL_SCHEMA = 1 << 24

_COMMON = [
    "start",
    "end",
    "deviceId",
    "contextId",
    "greenContextId",
    "streamId",
    "correlationId",
    "globalPid",
]
_TABLES: dict[str, list[str]] = {
    "StringIds": ["id", "value"],
    "CUPTI_ACTIVITY_KIND_KERNEL": [
        *_COMMON, "demangledName", "shortName", "mangledName", "gridX", "gridY", "gridZ",
        "blockX", "blockY", "blockZ", "graphNodeId",
    ],
    "CUPTI_ACTIVITY_KIND_MEMCPY": [
        *_COMMON, "bytes", "copyKind", "srcKind", "dstKind", "graphNodeId",
    ],
    "CUPTI_ACTIVITY_KIND_MEMSET": [*_COMMON, "value", "bytes", "graphNodeId", "memKind"],
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [*_COMMON, "graphId", "graphExecId"],
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": [*_COMMON, "syncType", "eventId", "eventSyncId"],
    "CUPTI_ACTIVITY_KIND_CUDA_EVENT": [
        "deviceId", "contextId", "streamId", "correlationId", "globalPid", "eventId", "eventSyncId",
    ],
    "CUPTI_ACTIVITY_KIND_RUNTIME": [
        "start", "end", "eventClass", "globalTid", "correlationId", "nameId", "returnValue",
    ],
    "NVTX_EVENTS": [
        "start", "end", "eventType", "rangeId", "text", "globalTid", "endGlobalTid", "textId",
        "domainId", "jsonText", "binaryData",
    ],
    "NVTX_PAYLOAD_SCHEMA_ENTRIES": [
        "domainId", "schemaId", "idx", "flags", "type", "name", "description", "offset",
    ],
    "CUDA_GPU_MEMORY_USAGE_EVENTS": [
        "start", "globalPid", "deviceId", "contextId", "address", "pc", "bytes", "memKind",
        "memoryOperationType", "name",
    ],
    "TARGET_INFO_GPU": [
        "id", "name", "busLocation", "totalMemory", "memoryBandwidth", "smCount", "uuid",
        "chipName", "cuDevice", "computeMajor", "computeMinor",
    ],
    "TARGET_INFO_CUDA_DEVICE": ["gpuId", "cudaId", "pid"],
    "TARGET_INFO_SESSION_START_TIME": ["utcEpochNs", "utcTime", "localTime"],
    "TARGET_INFO_SYSTEM_ENV": ["globalVid", "devStateName", "name", "nameEnum", "value"],
    "DIAGNOSTIC_EVENT": ["timestamp", "timestampType", "source", "severity", "text", "globalPid"],
    "PROCESSES": ["globalPid", "pid", "name"],
    "ThreadNames": ["nameId", "priority", "globalTid"],
    "ProcessStreams": ["globalPid", "filenameId", "contentId"],
    "META_DATA_EXPORT": ["name", "value"],
    "EXPORT_META_DATA": ["name", "value"],
    "META_DATA_CAPTURE": ["name", "value"],
    "ENUM_CUDA_MEMCPY_OPER": ["id", "name", "label"],
    "ENUM_CUDA_MEM_KIND": ["id", "name", "label"],
}  # fmt: skip
_TEXT_COLUMNS = frozenset(
    [
        "value",
        "text",
        "jsonText",
        "binaryData",
        "name",
        "description",
        "busLocation",
        "uuid",
        "chipName",
        "utcTime",
        "localTime",
        "devStateName",
        "label",
        "tensorSizeMinusOneElements",
    ]
)
_LATER_KERNEL = ["graphId", "clusterX", "clusterY", "clusterZ", "tensorSizeMinusOneElements"]
Value = int | float | str | bytes | None


def process(pid: int, hardware: int = 1) -> int:
    """The globalPid of `pid`, as a signed 64-bit number."""
    number = (hardware << 56) | (pid << 24)
    return number - (1 << 64) if number >= 1 << 63 else number


def thread(pid: int, tid: int = 1, hardware: int = 1) -> int:
    return process(pid, hardware) | tid


def payload(schema: int, *fields: tuple[str, int]) -> bytes:
    """A NVTX payload blob with `fields` as (struct format, value)."""
    body = b"".join(struct.pack("<" + kind, value) for kind, value in fields)
    body += b"\0" * (-len(body) % 8)
    return struct.pack("<4Q", 1, NCCL_SCHEMA + schema, len(body), 32) + body


def message(schema: int, communicator: int, size: int, peer: int | None = None) -> bytes:
    fields = [("Q", communicator), ("Q", size)]
    return payload(schema, *fields, *([("i", peer)] if peer is not None else []))


def comm_init(communicator: int, ranks: int, rank: int, device: int = 0) -> bytes:
    return payload(11, ("Q", communicator), ("i", ranks), ("i", rank), ("i", device))


@dataclass
class NsysExport:
    """An export in the making; `write` puts it into a file."""

    schema: str = "3.20.3"
    rows: dict[str, list[dict[str, Value]]] = field(default_factory=dict)
    strings: dict[str, int] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()

    def add(self, table: str, **values: Value) -> None:
        self.rows.setdefault(table, []).append(values)

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings) + 1)

    def kernel(
        self,
        start: Value,
        end: Value,
        name: str = "gemm",
        correlation: Value = 0,
        pid: int = 10,
        *,
        device: Value = 0,
        stream: Value = 7,
        grid: Sequence[Value] = (2, 3, 1),
        graph_node: Value = None,
        hardware: int = 1,
    ) -> None:
        number = self.string(name)
        self.add(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            start=start, end=end, deviceId=device, contextId=1, streamId=stream,
            correlationId=correlation, globalPid=process(pid, hardware), demangledName=number,
            shortName=number, mangledName=number, gridX=grid[0], gridY=grid[1], gridZ=grid[2],
            blockX=1, blockY=1, blockZ=1, graphNodeId=graph_node,
        )  # fmt: skip

    def call(
        self,
        start: Value,
        end: Value,
        name: str = "cudaLaunchKernel_v7000",
        correlation: Value = 0,
        pid: int = 10,
        *,
        tid: int = 1,
        hardware: int = 1,
    ) -> None:
        self.add(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=start, end=end, eventClass=0, globalTid=thread(pid, tid, hardware),
            correlationId=correlation, nameId=self.string(name), returnValue=0,
        )  # fmt: skip

    def launched(
        self, start: int, end: int, name: str, correlation: int, pid: int = 10, **more: int
    ) -> None:
        """A kernel and the call that launched it, 100 ns long and 50 ns before."""
        tid = more.pop("tid", 1)
        called = more.pop("called", start - 150)
        self.call(called, called + 100, "cuLaunchKernelEx", correlation, pid, tid=tid)
        self.kernel(start, end, name, correlation, pid, **more)

    def copy(
        self, start: int, end: int, correlation: int = 0, pid: int = 10, **values: Value
    ) -> None:
        self.add(
            "CUPTI_ACTIVITY_KIND_MEMCPY",
            **{
                "start": start, "end": end, "deviceId": 0, "contextId": 1, "streamId": 7,
                "correlationId": correlation, "globalPid": process(pid), "bytes": 64,
                "copyKind": 1, "srcKind": 1, "dstKind": 2, **values,
            },
        )  # fmt: skip

    def range(
        self,
        start: Value,
        end: Value,
        text: str,
        pid: int = 10,
        *,
        tid: int = 1,
        domain: int = 0,
        kind: int = 59,
        registered: bool = False,
        blob: bytes | None = None,
    ) -> None:
        self.add(
            "NVTX_EVENTS",
            start=start, end=end, eventType=kind, globalTid=thread(pid, tid), domainId=domain,
            text=None if registered else text,
            textId=self.string(text) if registered else None, binaryData=blob,
        )  # fmt: skip

    def nccl(
        self,
        start: int,
        end: int,
        name: str,
        blob: bytes | None = None,
        pid: int = 10,
        tid: int = 1,
    ) -> None:
        self.range(start, end, name, pid, tid=tid, domain=1, registered=True, blob=blob)

    def columns(self, table: str) -> list[str]:
        """The columns that `table` has in this generation."""
        columns = list(_TABLES[table])
        if self.schema == "3.0.0":
            columns = [column for column in columns if column != "greenContextId"]
        if self.schema in ("3.0.0", "3.7.2"):
            columns = [column for column in columns if column != "binaryData"]
        if self.schema == "3.28.1" and table == "CUPTI_ACTIVITY_KIND_KERNEL":
            columns += _LATER_KERNEL
        return [column for column in columns if f"{table}.{column}" not in self.skip]

    def metadata(self) -> None:
        """Describe the export itself, in the table of its generation."""
        table = "EXPORT_META_DATA" if self.schema == "3.0.0" else "META_DATA_EXPORT"
        self.add(table, name="EXPORT_SCHEMA_VERSION", value=self.schema)
        self.add(table, name="EXPORT_PRODUCT_VERSION", value="2025.3.2.0")

    def tables(self) -> dict[str, tuple[list[str], list[list[Value]]]]:
        """Table -> its columns and rows; tables without rows don't exist, as in a lazy export."""
        rows = dict(self.rows)
        if self.strings:
            rows["StringIds"] = [
                {"id": number, "value": text} for text, number in self.strings.items()
            ] + rows.get("StringIds", [])
        result = {}
        for table, entries in rows.items():
            if table in self.skip:
                continue
            columns = self.columns(table)
            result[table] = (columns, [[entry.get(one) for one in columns] for entry in entries])
        return result

    def write(self, path: Path, *, indexes: Iterable[str] = ()) -> Path:
        with sqlite3.connect(path) as database:
            for table, (columns, rows) in self.tables().items():
                typed = ", ".join(
                    f'"{one}" {"TEXT" if one in _TEXT_COLUMNS else "INTEGER"}' for one in columns
                )
                database.execute(f'CREATE TABLE "{table}" ({typed})')
                marks = ", ".join("?" * len(columns))
                database.executemany(f'INSERT INTO "{table}" VALUES ({marks})', rows)
            for statement in indexes:
                database.execute(statement)
        database.close()
        return path


def two_steps(schema: str = "3.20.3", pid: int = 10) -> NsysExport:
    """One rank, two annotated steps of one kernel each, a copy and a memset."""
    export = NsysExport(schema)
    export.metadata()
    for step in range(2):
        at = 1_000 + 10_000 * step
        export.range(at, at + 9_000, f"iteration {step}", pid)
        export.launched(at + 1_000, at + 4_000, "gemm", 2 * step + 1, pid)
        export.call(at + 4_000, at + 4_100, "cudaMemcpyAsync_v3020", 2 * step + 2, pid)
        export.copy(at + 4_200, at + 4_500, 2 * step + 2, pid)
    export.add(
        "CUPTI_ACTIVITY_KIND_MEMSET", start=500, end=600, deviceId=0, contextId=1, streamId=7,
        correlationId=99, globalPid=process(pid), value=0, bytes=8, memKind=2,
    )  # fmt: skip
    return export
