"""Traces with a canary in every text that is no name of work."""

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

CANARY = "CANARYsecret"
KEPT = {"cat", "ph", "name", "s", "bp"}
"""Fields of events that say what the event is."""
KEPT_ARGS = {
    "Collective name", "dtype", "Process Group Name", "Process Group Description",
    "Process Group Ranks", "In split size", "Out split size",
}  # fmt: skip
WORK = {
    ("StringIds", "value"), ("NVTX_EVENTS", "text"), ("META_DATA_EXPORT", "name"),
    ("META_DATA_CAPTURE", "name"), ("TARGET_INFO_SYSTEM_ENV", "name"),
}  # fmt: skip
"""Columns with names of work, and those that tell what a value is."""


def plant_nsys(source: Path, target: Path) -> int:
    """A copy of an export with the canary in every text cell; returns how many columns."""
    target.write_bytes(source.read_bytes())
    columns = 0
    with closing(sqlite3.connect(target)) as database:
        database.execute("pragma secure_delete=off")
        tables = [
            r[0] for r in database.execute("select name from sqlite_master where type='table'")
        ]
        for table in tables:
            if table.startswith("sqlite_"):
                continue
            for _, column, kind, *_ in database.execute(f'pragma table_info("{table}")').fetchall():
                if (table, column) in WORK:
                    continue
                done = database.execute(
                    f'update "{table}" set "{column}" = ? || rowid where typeof("{column}") = ?',
                    (CANARY, "text"),
                )
                columns += done.rowcount > 0
                if kind == "TEXT" and done.rowcount == 0:
                    columns += (
                        database.execute(
                            f'update "{table}" set "{column}" = ? where "{column}" is null and rowid % 2',
                            (CANARY,),
                        ).rowcount
                        > 0
                    )
        # Strings of no kernel, call or range; rows of unknown names; a table nobody knows.
        database.execute(
            "update StringIds set value = ? where id not in (select demangledName from "
            "CUPTI_ACTIVITY_KIND_KERNEL union select shortName from CUPTI_ACTIVITY_KIND_KERNEL "
            "union select nameId from CUPTI_ACTIVITY_KIND_RUNTIME "
            "union select textId from NVTX_EVENTS where textId is not null)",
            (CANARY,),
        )
        for variable in ("HF_TOKEN", "NCCL_ALGO", "CUDA_DEVICE_MAX_CONNECTIONS"):
            row = ("PROCESS_0:ENVIRONMENT_VARIABLE", f'{variable}="{CANARY}"')
            database.execute("insert into META_DATA_CAPTURE values (?, ?)", row)
        database.execute("insert into META_DATA_EXPORT values (?, ?)", (CANARY, CANARY))
        database.execute(f'create table "{CANARY}" ("{CANARY}" text)')
        database.execute(f'insert into "{CANARY}" values (?)', (CANARY * 100,))
        database.commit()
        # Free pages keep what was deleted.
        database.execute(f'drop table "{CANARY}"')
        database.execute(f'create view "{CANARY}" as select 1')
        database.commit()
    return columns


def plant_kineto(source: Path, target: Path) -> int:
    """A copy of a trace with the canary in every text; returns how many different keys."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rb") as file:
        trace = json.loads(file.read())
    keys: set[str] = set()

    def planted(value: Any, key: str) -> Any:
        if isinstance(value, str):
            keys.add(key)
            return CANARY + value[:3]
        if isinstance(value, list):
            return [planted(item, key) for item in value]
        if isinstance(value, dict):
            return {k: planted(item, f"{key}.{k}") for k, item in value.items()}
        return value

    for event in trace["traceEvents"]:
        for key in event.keys() - KEPT - {"args"}:
            event[key] = planted(event[key], key)
        args = event.get("args")
        if isinstance(args, dict):
            event["args"] = {
                key: value if key in KEPT_ARGS else planted(value, f"args.{key}")
                for key, value in args.items()
            }
        if event.get("ph") == "M":
            event["name"] = CANARY
        event[CANARY] = CANARY
    for key in trace.keys() - {"traceEvents", "distributedInfo", "deviceProperties"}:
        trace[key] = planted(trace[key], key)
    job = trace.get("distributedInfo", {})
    for key in ("backend", "nccl_version", "hostname", "job"):
        job[key] = CANARY
    for group in job.get("pg_config", ()):
        group["backend_config"] = group["host"] = CANARY
    for device in trace.get("deviceProperties", ()):
        device["name"] = device["uuid"] = CANARY
    for key in ("hostname", "username", "host_name", "trace_path", CANARY):
        trace[key] = f"/home/{CANARY}/x"
        keys.add(key)
    target.write_bytes(gzip.compress(json.dumps(trace).encode(), 1))
    return len(keys)
