"""Builds small rank traces row by row: times in µs, names as text."""

from dataclasses import dataclass, field

import polars as pl

from moe_advisor.model import (
    ACTIVITY_SCHEMA,
    CALL_SCHEMA,
    COLLECTIVE_SCHEMA,
    NONE,
    RANGE_SCHEMA,
    ActivityKind,
    CollectiveKind,
    CopyKind,
    Device,
    RangeKind,
    RankTrace,
)

US = 1_000
GEMM = "nvjet_sm90_tst_256x128"
GROUPED = "void cutlass::device_kernel<cutlass::gemm::GroupProblemShape<x>>"
FLASH = "void pytorch_flash::flash_fwd_kernel<x>()"
ADD = "void at::native::vectorized_elementwise_kernel<4, add>()"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)"


@dataclass
class TraceBuilder:
    """Collects rows; `build` sorts them and resolves names and calls."""

    rank: int = 0
    world_size: int | None = None
    names: dict[str, int] = field(default_factory=dict)
    activities: list[dict] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    ranges: list[dict] = field(default_factory=list)

    def name(self, text: str) -> int:
        return self.names.setdefault(text, len(self.names))

    def call(self, start: float, end: float, name: str = "cudaLaunchKernel", tid: int = 1) -> dict:
        row = {
            "start_ns": int(start * US),
            "end_ns": int(end * US),
            "tid": tid,
            "name": self.name(name),
        }
        self.calls.append(row)
        return row

    def kernel(
        self,
        start: float,
        end: float,
        name: str = ADD,
        *,
        launch: float | None = -1.0,
        tid: int = 1,
        stream: int = 7,
        blocks: int = 1,
        kind: ActivityKind = ActivityKind.KERNEL,
        copy: CopyKind = CopyKind.NONE,
        pageable: bool = False,
        size: int = NONE,
        via: dict | None = None,
        collective: dict | None = None,
    ) -> dict:
        """GPU work; `launch` is when its call began (-1: 1 µs before its start; None: unknown)."""
        if via is None and launch is not None:
            began = start - 1 if launch == -1.0 else launch
            via = self.call(began, began + 0.5, tid=tid)
        row = {
            "start_ns": int(start * US),
            "end_ns": int(end * US),
            "kind": kind,
            "name": self.name(name),
            "stream": stream,
            "blocks": blocks,
            "bytes": size,
            "copy_kind": copy,
            "pageable": pageable,
            "in_graph": False,
            "via": via,
            "collective": collective,
        }
        self.activities.append(row)
        return row

    def collective(
        self,
        start: float,
        end: float,
        kind: CollectiveKind,
        group: str,
        description: str = "",
        *,
        name: str = SEND_RECV,
        sent: int = 1 << 20,
        received: int | None = None,
        own: int = NONE,
        size: int = 2,
        sequence: int = NONE,
        place: int = NONE,
        to: tuple[int, ...] = (),
        from_: tuple[int, ...] = (),
        **options,
    ) -> dict:
        meta = {
            "kind": kind,
            "group": self.name(group),
            "description": self.name(description),
            "group_size": size,
            "bytes_sent": sent,
            "bytes_received": sent if received is None else received,
            "bytes_self": own,
            "in_splits": [],
            "out_splits": [],
            "sequence": sequence,
            "place": place,
            "to_low": min(to, default=NONE),
            "to_high": max(to, default=NONE),
            "from_low": min(from_, default=NONE),
            "from_high": max(from_, default=NONE),
        }
        return self.kernel(start, end, name, collective=meta, **options)

    def range(
        self,
        start: float,
        end: float,
        name: str,
        *,
        tid: int = 1,
        kind: RangeKind = RangeKind.ANNOTATION,
        sequence: int = NONE,
        forward_tid: int = NONE,
    ) -> None:
        self.ranges.append(
            {
                "start_ns": int(start * US),
                "end_ns": int(end * US),
                "tid": tid,
                "name": self.name(name),
                "kind": kind,
                "sequence": sequence,
                "forward_tid": forward_tid,
            }
        )

    def build(self) -> RankTrace:
        calls = sorted(self.calls, key=lambda row: row["start_ns"])
        place = {id(row): index for index, row in enumerate(calls)}
        rows = sorted(self.activities, key=lambda row: (row["start_ns"], row["end_ns"]))
        for row in rows:
            row["call"] = place.get(id(row["via"]), NONE) if row["via"] else NONE
        collectives = [
            {"activity": index, **row["collective"]}
            for index, row in enumerate(rows)
            if row["collective"]
        ]
        ranges = sorted(self.ranges, key=lambda row: (row["start_ns"], -row["end_ns"]))
        self.name("")
        return RankTrace(
            rank=self.rank,
            rank_source="metadata",
            names=tuple(self.names),
            activities=pl.DataFrame(
                [{key: row[key] for key in ACTIVITY_SCHEMA} for row in rows], schema=ACTIVITY_SCHEMA
            ),
            calls=pl.DataFrame(calls, schema=CALL_SCHEMA),
            ranges=pl.DataFrame(ranges, schema=RANGE_SCHEMA),
            collectives=pl.DataFrame(collectives, schema=COLLECTIVE_SCHEMA),
            device=Device(name="NVIDIA H200", memory_bytes=150 << 30),
            world_size=self.world_size,
        )
