"""Builds small Kineto traces, laid out as torch's writer lays them out."""

import gzip
import json
from pathlib import Path
from typing import Any

PID, TID, STREAM = 100, 101, 7

Event = dict[str, Any]


def kernel(
    name: str, ts: float, dur: float, correlation: int = 0, *, stream: int = STREAM, **args: Any
) -> Event:
    merged = {
        "External id": 1,
        "queued": 0,
        "device": 0,
        "context": 1,
        "stream": stream,
        "correlation": correlation,
        "grid": [4, 2, 1],
        "block": [128, 1, 1],
        **args,
    }
    return _complete("kernel", name, ts, dur, merged["device"], stream, merged)


def copy(name: str, ts: float, dur: float, correlation: int = 0, size: int = 64) -> Event:
    args = {"device": 0, "context": 1, "stream": 7, "correlation": correlation, "bytes": size}
    return _complete("gpu_memcpy", name, ts, dur, 0, 7, args)


def memset(ts: float, dur: float, correlation: int = 0, size: int = 64) -> Event:
    args = {"device": 0, "context": 1, "stream": 7, "correlation": correlation, "bytes": size}
    return _complete("gpu_memset", "Memset (Device)", ts, dur, 0, 7, args)


def call(
    ts: float,
    dur: float,
    correlation: int,
    name: str = "cudaLaunchKernel",
    *,
    cat: str = "cuda_runtime",
    pid: Any = PID,
    tid: Any = TID,
) -> Event:
    args = {"External id": 1, "cbid": 211, "correlation": correlation}
    return _complete(cat, name, ts, dur, pid, tid, args)


def operator(name: str, ts: float, dur: float, *, tid: Any = TID, **args: Any) -> Event:
    return _complete("cpu_op", name, ts, dur, PID, tid, {"External id": 1, **args})


def comms(ts: float, dur: float, **args: Any) -> Event:
    return operator("record_param_comms", ts, dur, **args)


def annotation(name: str, ts: float, dur: float, *, tid: Any = TID) -> Event:
    return _complete("user_annotation", name, ts, dur, PID, tid, {"External id": 1})


def collective(name: str, **changes: Any) -> dict[str, Any]:
    """The arguments that torch 2.11 gives a collective of two ranks."""
    return {
        "Collective name": name,
        "In msg nelems": 100,
        "Out msg nelems": 60,
        "Group size": 2,
        "dtype": "BFloat16",
        "In split size": "[30, 20]",
        "Out split size": "[10, 20]",
        "Process Group Name": "1",
        "Process Group Description": "EXPERT_MODEL_PARALLEL_GROUP",
        "Process Group Ranks": "[0, 1]",
        **changes,
    }


def _complete(
    cat: str, name: str, ts: float, dur: float, pid: Any, tid: Any, args: dict[str, Any]
) -> Event:
    return {
        "ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur,
        "args": args,
    }  # fmt: skip


METADATA: dict[str, Any] = {
    "schemaVersion": 1,
    "deviceProperties": [
        {
            "id": 0,
            "name": "NVIDIA H200",
            "totalGlobalMem": 150109880320,
            "computeMajor": 9,
            "computeMinor": 0,
            "numSms": 132,
        }
    ],
    "cuda_runtime_version": 13000,
    "cupti_version": 130001,
    "distributedInfo": {
        "backend": "nccl",
        "rank": 1,
        "world_size": 2,
        "pg_config": [
            {"pg_name": "0", "pg_desc": "default_pg", "pg_size": 2, "ranks": [0, 1]},
            {"pg_name": "1", "pg_desc": "EP", "pg_size": 2, "ranks": "[0, 1]"},
        ],
    },
    "displayTimeUnit": "ms",
    "baseTimeNanoseconds": 1759276800000000000,
}

LAUNCHED = (call(10.0, 5.0, 1), kernel("first_kernel", 20.0, 30.5, 1))
"""One call and the kernel it launched."""


def event_text(event: Event) -> str:
    """One event as torch writes it: some keys on each line."""
    head = ", ".join(f'"{key}": {json.dumps(event[key])}' for key in ("ph", "cat", "name"))
    where = ", ".join(f'"{key}": {json.dumps(event[key])}' for key in ("pid", "tid"))
    when = f'"ts": {event["ts"]:.3f}, "dur": {event["dur"]:.3f}'
    args = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in event["args"].items())
    return (
        f"\n  {{\n    {head},\n    {where},\n    {when},\n"
        f'    "args": {{\n      {args}\n    }}\n  }}'
    )


def trace(*events: Event, **metadata: Any) -> bytes:
    """A whole trace in torch's layout; metadata of None is left out."""
    merged = {k: v for k, v in {**METADATA, **metadata}.items() if v is not None}
    head = json.dumps(merged)[:-1]
    body = ",".join(event_text(event) for event in events)
    return f'\n  {head},\n  "traceEvents": [{body}\n  ],\n  "traceName": "x.json"\n}}'.encode()


def write(folder: Path, content: bytes, name: str = "trace.json") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    return path
